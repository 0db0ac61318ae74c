"""Tables of results: their rows, their files, and the command, seed and versions that produced them."""

import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sb3_maesn.common.adaptation.learners import DEFAULT_RULE, OWN_RULE
from sb3_maesn.common.adaptation.rounds import SOLVED_SHARE
from sb3_maesn.common.checkpoint.file import package_versions
from sb3_maesn.evaluation import AdaptableModel, AdaptationResult
from sb3_maesn.rl2 import RL2

Row: TypeAlias = Mapping[str, Any]
#: Name that stands for the adaptation rule of a model that adapts through its hidden state.
MEMORY = "memory"
#: Share of the goals' distance from the origin beyond which the end of an episode counts for the coverage of the prior.
COVERAGE_SHARE = 0.6
#: Columns of a table of adaptation rounds that figures need.
ADAPTATION_COLUMNS = ("model", "rule", "round", "mean_return", "return_interval", "success", "success_interval")


def provenance(seed: int | None, **settings: Any) -> dict[str, Any]:
    """Describe how a result was produced: the command, the seed, the package versions and the machine.

    :param seed: seed of the run, None if there is none
    :param settings: further settings to record
    :return: plain values
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        "seed": seed,
        **settings,
        "versions": {"python": platform.python_version(), **package_versions()},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def table_path(path: str | Path) -> Path:
    """Check the name of a table, so that neither its description nor a figure of the same name overwrites it.

    :param path: name that the user chose
    :return: path of the table
    :raises ValueError: if the name does not end in ``.csv``
    """
    if Path(path).suffix != ".csv":
        raise ValueError(f"the name of a table must end in .csv, got {path}")
    return Path(path)


def write_table(path: str | Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write rows to a CSV file and their origin to a JSON file of the same name beside it.

    :param path: CSV file, whose name must end in ``.csv``
    :param rows: rows of the table, at least one, all with the same columns
    :param about: description of the origin, as :func:`provenance` returns it
    :raises ValueError: if the name does not end in ``.csv``
    """
    path = table_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".json").write_text(json.dumps(dict(about), indent=2) + "\n", encoding="utf-8")


def format_table(rows: Sequence[Row]) -> str:
    """Format rows as a table of plain text.

    :param rows: rows of the table, at least one, all with the same columns
    :return: header, rule and one line per row
    """
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def load_evaluations(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the learning curve that ``MetaEvalCallback`` wrote.

    :param path: file ``evaluations.npz``
    :return: environment steps of the E evaluations (E,), and mean return and share of successful episodes by round
        (both (E, n_rounds + 1))
    """
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["timesteps"], arrays["returns_by_round"], arrays["success_by_round"]


def rule_name(model: AdaptableModel, rule: str | None) -> str:
    """Name the rule by which a model adapts.

    :param model: trained model
    :param rule: name of the rule that the user asks for, None for the default
    :return: name of that rule or of the model's default, ``MEMORY`` for a model that adapts through its hidden state
    """
    if isinstance(model, RL2):
        return MEMORY
    return rule or (OWN_RULE if model.policy.latent_dim == 0 else DEFAULT_RULE)


def adaptation_rows(returns: np.ndarray, success: np.ndarray, rule: str = "") -> list[dict[str, Any]]:
    """Summarise an adaptation by round.

    A task is solved in a round if a share of at least ``SOLVED_SHARE`` of the round's episodes succeeds.

    :param returns: returns of all episodes (n_rounds + 1, n_tasks, n_episodes)
    :param success: success of all episodes, 0 or 1, NaN if it is unknown (n_rounds + 1, n_tasks, n_episodes)
    :param rule: adaptation rule; a round of ``MEMORY`` is one episode, and its further episodes are those of other
        trials
    :return: one row per round; intervals are half widths of 95 % confidence intervals over tasks
    """
    per_round = 1 if rule == MEMORY else returns.shape[2]
    by_task = np.asarray(success, dtype=float).mean(axis=2)  # (n_rounds + 1, n_tasks)
    mean_return, return_interval = mean_and_interval(np.asarray(returns, dtype=float).mean(axis=2))
    mean_success, success_interval = mean_and_interval(by_task)
    return [
        {
            "round": r,
            "episodes": r * per_round,
            "mean_return": round(float(mean_return[r]), 2),
            "return_interval": round(float(return_interval[r]), 2),
            "success": round(float(mean_success[r]), 4),
            "success_interval": round(float(success_interval[r]), 4),
            "solved": round(float(np.where(np.isnan(by_task[r]), np.nan, by_task[r] >= SOLVED_SHARE).mean()), 4),
        }
        for r in range(len(by_task))
    ]


def known_columns(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Leave out what is unknown: the columns of the success where the environment does not report it.

    :param rows: rows of :func:`adaptation_rows`
    :return: rows with the columns that are not NaN in the last one
    """
    return [{key: value for key, value in row.items() if not np.isnan(rows[-1][key])} for row in rows]


def read_adaptation_tables(paths: Sequence[str | Path]) -> dict[str, list[dict[str, str]]]:
    """Read tables of adaptation rounds.

    :param paths: CSV files with the columns of :func:`adaptation_rows` and the columns ``model`` and ``rule``
    :return: rows by ``"{model}, {rule}"``, or ``"{model}, {rule}, {env}"`` if the tables are of different environments
    :raises ValueError: if a file is no such table, or has no rows
    """
    rows = [row for path in paths for row in read_adaptation_table(path)]
    named = ["model", "rule", *(["env"] if len({row.get("env") for row in rows}) > 1 else [])]
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        tables.setdefault(", ".join(row[key] for key in named if key in row), []).append(row)
    return tables


def read_adaptation_table(path: str | Path) -> list[dict[str, str]]:
    """Read a table of adaptation rounds.

    :param path: CSV file with the columns of :func:`adaptation_rows` and the columns ``model`` and ``rule``
    :return: rows
    :raises ValueError: if the file is no such table, or has no rows
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of adaptation rounds: {error}") from error
    missing = [name for name in ADAPTATION_COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"{path} is no table of adaptation rounds: it has no column {missing[0]}")
    if not rows or any(None in row or None in row.values() for row in rows):  # lines longer or shorter than the header
        raise ValueError(f"{path} is no table of adaptation rounds: it has {'incomplete' if rows else 'no'} rows")
    return rows


def latent_rows(result: AdaptationResult, task: int = 0) -> list[dict[str, Any]]:
    """Summarise the adaptation to one task by round, with its latent distribution.

    :param result: result of ``evaluate_adaptation`` or ``adapt``
    :param task: index of the task in the result
    :return: one row per round; the column ``latent`` holds mean±standard deviation of each component at the beginning
        of the round
    """
    one = slice(task, task + 1)
    rows = []
    for r, row in enumerate(adaptation_rows(result.returns[:, one], result.success[:, one])):
        parts = zip(result.mean[r, task], np.exp(result.log_std[r, task]), strict=True)
        latent = " ".join(f"{mean:+.2f}±{std:.2f}" for mean, std in parts)
        rows.append({key: row[key] for key in ("round", "episodes", "mean_return", "success")} | {"latent": latent})
    return rows


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over tasks and compute the half width of the 95 % normal confidence interval of the mean.

    :param values: values by task (n_points, n_tasks)
    :return: means and half widths (both (n_points,)); half widths are 0 for a single task
    """
    n_tasks = values.shape[1]
    if n_tasks < 2:
        return values.mean(axis=1), np.zeros(values.shape[0])
    return values.mean(axis=1), 1.96 * values.std(axis=1, ddof=1) / np.sqrt(n_tasks)


def coverage_radius(goals: np.ndarray) -> float:
    """Compute the distance from the origin beyond which the end of an episode counts for the coverage of the prior.

    :param goals: goals, all at the same distance from the origin (n, 2)
    :return: ``COVERAGE_SHARE`` of that distance
    :raises ValueError: if the distances differ
    """
    distances = np.linalg.norm(goals, axis=1)
    if np.ptp(distances) > 1e-6:
        raise ValueError(
            "coverage counts directions from the origin: expected goals at the same distance from it, got distances"
            f" from {distances.min():.3g} to {distances.max():.3g}"
        )
    return round(COVERAGE_SHARE * float(distances[0]), 4)


def sector_shares(end_points: np.ndarray, radius: float, n_sectors: int = 6) -> np.ndarray:
    """Compute the share of far end points in every sector of the upper half plane.

    :param end_points: last positions of episodes (n, 2)
    :param radius: distance from the origin up to which end points do not count
    :param n_sectors: number of sectors of equal angle
    :return: shares of the end points beyond the radius, counter-clockwise from the x axis (n_sectors,); the sum is less
        than 1 if some of them lie in the lower half plane
    """
    far = end_points[np.linalg.norm(end_points, axis=1) > radius]
    angle = np.degrees(np.arctan2(far[:, 1], far[:, 0]))
    counts, _ = np.histogram(angle, bins=n_sectors, range=(0.0, 180.0))
    return np.asarray(counts / max(len(far), 1))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
