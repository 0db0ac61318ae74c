"""Reports of studies: the best entry, a table of trials, and figures of history, importances and parameters."""

import base64
import html
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from sb3_maesn import study_plots
from sb3_maesn.common.files import write_atomically
from sb3_maesn.config import ConfigError
from sb3_maesn.results import provenance, write_table
from sb3_maesn.tuning import TuningPlan, best_entry

PICTURES = ("history", "importance", "slices")


def write_report(study: optuna.Study, plan: TuningPlan, folder: str | Path) -> list[str]:
    """Write the report of a study.

    :param study: study
    :param plan: plan of its trials
    :param folder: folder for ``best.yml``, ``trials.csv``, ``trials.json``, ``*.png`` and ``report.html``
    :return: lines of the summary
    :raises ConfigError: if the study has no complete trial
    """
    folder = Path(folder)
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not study.get_trials(deepcopy=False):
        raise ConfigError(f"the study {study.study_name} has no trials to report")
    if not done:
        raise ConfigError(f"no trial of the study {study.study_name} has come to an end")
    folder.mkdir(parents=True, exist_ok=True)
    lines, weights = summary(study), importances(study)
    write_table(folder / "trials.csv", trial_rows(study), describe(study, plan, lines, weights))
    write_best(study, plan, folder / "best.yml", lines)
    draw(study, folder, weights)
    page = make_page(study, folder, lines)
    write_atomically(folder / "report.html", lambda file: file.write(page.encode()))
    return lines


def summary(study: optuna.Study) -> list[str]:
    """Summarise a study.

    :param study: study with at least one complete trial
    :return: lines: number of trials by state, value of the start trial if there is one, and the best trial
    """
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    best = study.best_trial
    starts = [trial for trial in trials if trial.user_attrs.get("start") and trial.value is not None]
    return [
        f"{len(trials)} trials: " + ", ".join(f"{n} {name}" for name, n in counts.items() if n),
        *(f"start (trial {trial.number}): {trial.value:.4g}" for trial in starts),
        f"best (trial {best.number}): {best.value:.4g}, seeds {_short(best.user_attrs.get('scores', []))}",
    ]


def describe(
    study: optuna.Study, plan: TuningPlan, lines: Sequence[str], weights: Mapping[str, float]
) -> dict[str, Any]:
    """Describe the origin and the outcome of a study.

    :param study: study
    :param plan: plan of its trials
    :param lines: lines of the summary
    :param weights: shares by parameter, as :func:`importances` returns them
    :return: plain values
    """
    return provenance(
        None,
        study=study.study_name,
        plan=asdict(plan),
        summary=list(lines),
        importances={name: round(share, 4) for name, share in weights.items()},
        optuna=optuna.__version__,
    )


def trial_rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Make a table of all trials.

    :param study: study
    :return: one row per trial; parameters that the trial did not have are None
    """
    trials = study.get_trials(deepcopy=False)
    names = sorted({name for trial in trials for name in trial.params})
    return [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value,
            "steps": trial.last_step,
            "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
            "seeds": " ".join(map(str, _short(trial.user_attrs.get("scores", [])))),
            **{name: trial.params.get(name) for name in names},
        }
        for trial in trials
    ]


def write_best(study: optuna.Study, plan: TuningPlan, path: Path, about: list[str]) -> None:
    """Write the best trial as a hyperparameter file for ``train.py --conf-file``.

    :param study: study
    :param plan: plan of its trials
    :param path: YAML file
    :param about: lines of the comment at the top
    """
    entry = yaml.safe_dump({plan.env_id: best_entry(plan, study.best_trial)}, sort_keys=False)
    comment = [f"{plan.algo} on {plan.env_id}, study {study.study_name}", *about]
    text = "".join(f"# {line}\n" for line in comment) + entry
    write_atomically(path, lambda file: file.write(text.encode()))


def draw(study: optuna.Study, folder: Path, weights: Mapping[str, float]) -> None:
    """Draw the figures of history, importances and slices.

    :param study: study
    :param folder: folder to write to
    :param weights: shares by parameter, as :func:`importances` returns them
    """
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.value is not None]
    ended = [trial for trial in done if trial.state == TrialState.COMPLETE]
    history = [(trial.number, _value(trial), trial.state == TrialState.COMPLETE) for trial in done]
    study_plots.plot_study_history(history, folder / "history.png")
    if parameters := slices(ended):  # fixed settings may leave nothing to sample
        study_plots.plot_slices(parameters, folder / "slices.png")
    if weights:
        study_plots.plot_importances(weights, folder / "importance.png")


def importances(study: optuna.Study) -> Mapping[str, float]:
    """Estimate the importance of each parameter by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255).

    :param study: study
    :return: shares by parameter; empty if there are too few trials or all have the same value
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # warnings about parameters that few trials had
            found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):
        return {}
    return found if all(math.isfinite(share) for share in found.values()) else {}


def slices(trials: list[FrozenTrial]) -> dict[str, list[tuple[Any, float]]]:
    """Pair the values of every parameter with the values of their trials.

    :param trials: complete trials
    :return: pairs of parameter value and trial value, by parameter
    """
    names = sorted({name for trial in trials for name in trial.params})
    return {name: [(t.params[name], _value(t)) for t in trials if name in t.params] for name in names}


def make_page(study: optuna.Study, folder: Path, lines: list[str]) -> str:
    """Make a self-contained HTML page with embedded pictures.

    :param study: study
    :param folder: folder of the pictures
    :param lines: lines of the summary
    :return: HTML
    """
    pictures = [folder / f"{name}.png" for name in PICTURES if (folder / f"{name}.png").is_file()]
    rows = trial_rows(study)
    parts = [
        "<!doctype html><meta charset='utf-8'>",
        f"<title>{html.escape(study.study_name)}</title>",
        "<style>body{font:14px sans-serif;margin:2em;color:#333}td,th{padding:2px 8px;text-align:right}</style>",
        f"<h1>{html.escape(study.study_name)}</h1>",
        *(f"<p>{html.escape(line)}</p>" for line in lines),
        f"<pre>{html.escape((folder / 'best.yml').read_text(encoding='utf-8'))}</pre>",
        *(f"<img src='data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}'>" for p in pictures),
        f"<table><tr>{_cells('th', list(rows[0]))}</tr>",
        *(f"<tr>{_cells('td', ['' if value is None else value for value in row.values()])}</tr>" for row in rows),
        "</table>",
    ]
    return "\n".join(parts)


def _cells(tag: str, values: list[Any]) -> str:
    return "".join(f"<{tag}>{html.escape(_text(value))}</{tag}>" for value in values)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None
    return float(trial.value)


def _short(scores: list[float]) -> list[float]:
    return [float(f"{score:.4g}") for score in scores]
