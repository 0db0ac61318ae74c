"""Learning curves of training runs, from the files that rl-zoo's plot scripts read too."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_maesn.config import ConfigError
from sb3_maesn.run_folder import find_runs

Array: TypeAlias = np.ndarray

#: Axes by name: label, and column of the monitor files for those that are drawn upwards.
X_AXES = {"steps": "environment steps", "episodes": "episodes", "time": "hours"}
Y_AXES = {
    "reward": ("training episode return", "r"),
    "success": ("training success rate", "is_success"),
    "length": ("training episode length", "l"),
}

#: Arrays of ``evaluations.npz`` that can be averaged: a row for each evaluation, a column for each episode.
KEYS = ("results", "successes", "ep_lengths")


class Evaluations(NamedTuple):
    """Evaluations of several runs of one setting.

    :param timesteps: (E,) environment steps trained
    :param mean: (E,) mean over runs and episodes
    :param std_error: (E,) of the mean over runs
    :param last: (n_runs,) mean of each run's last evaluation
    """

    timesteps: Array
    mean: Array
    std_error: Array
    last: Array

    @property
    def last_std_error(self) -> float:
        """Standard error of the last evaluations' mean."""
        return float(np.std(self.last) / np.sqrt(len(self.last)))


def read_monitor(folder: str | Path) -> dict[str, Array]:
    """Read all episodes of a run in the order in which they ended.

    :param folder: folder of the run, with ``*.monitor.csv``
    :return: columns such as ``r``, ``l`` and ``t``, each (n_episodes,); none where there is no file
    """
    rows: list[dict[str, str]] = []
    for path in sorted(Path(folder).glob("*.monitor.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            next(file)  # a line of JSON
            rows += csv.DictReader(file)
    order = np.argsort([float(row["t"]) for row in rows], kind="stable")
    names = rows[0] if rows else ()
    return {name: np.array([_number(rows[i][name]) for i in order]) for name in names}


def _number(text: str) -> float:
    return {"True": 1.0, "False": 0.0}[text] if text in ("True", "False") else float(text)


def training_curve(
    folder: str | Path, x_axis: str = "steps", y_axis: str = "reward", window: int = 100, max_steps: float = np.inf
) -> tuple[Array, Array] | None:
    """Smooth the course of training.

    :param folder: folder of the run
    :param x_axis: a key of ``X_AXES``
    :param y_axis: a key of ``Y_AXES``
    :param window: episodes of the moving average
    :param max_steps: environment steps to leave the rest out after
    :return: x and moving average, each (n_episodes - window + 1,); None where there are too few episodes, or the run
        did not record such values
    """
    columns, name = read_monitor(folder), Y_AXES[y_axis][1]
    if name not in columns:
        return None
    steps = np.cumsum(columns["l"])
    kept = steps <= max_steps
    if kept.sum() < window:
        return None
    x = {"steps": steps, "episodes": np.arange(1, len(steps) + 1), "time": columns["t"] / 3600}[x_axis][kept]
    sums = np.cumsum(np.insert(columns[name][kept], 0, 0.0))
    return x[window - 1 :], (sums[window:] - sums[:-window]) / window


def merge_evaluations(
    folders: Sequence[str | Path], key: str = "results", max_steps: float = np.inf, min_steps: float = 0
) -> Evaluations | None:
    """Average the evaluations of several runs. Where they were evaluated at different steps, the run with the fewest
    evaluations says where, and the others are interpolated.

    :param folders: folders of runs, some perhaps without ``evaluations.npz``
    :param key: array to average, one of ``KEYS``
    :param max_steps: environment steps to leave the rest out after
    :param min_steps: leave runs out that were not trained as long
    :return: the average, None where no run has such evaluations
    :raises ConfigError: for another key
    """
    if key not in KEYS:
        raise ConfigError(f"the key must be one of {', '.join(KEYS)}, got {key!r}")
    runs = []
    for folder in folders:
        path = Path(folder) / "evaluations.npz"
        if not path.is_file():
            continue
        with np.load(path, allow_pickle=False) as arrays:
            if key not in arrays.files:
                continue
            timesteps, values = arrays["timesteps"], np.asarray(arrays[key], dtype=float)
        if len(timesteps) and timesteps[-1] >= min_steps and timesteps[0] <= max_steps:
            kept = timesteps <= max_steps
            runs.append((timesteps[kept], values.reshape(len(timesteps), -1).mean(axis=1)[kept]))
    if not runs:
        return None
    grid = min((timesteps for timesteps, _ in runs), key=len)
    grid = grid[grid <= min(timesteps[-1] for timesteps, _ in runs)]
    by_run = np.stack([np.interp(grid, timesteps, means) for timesteps, means in runs])  # (n_runs, E)
    std_error = by_run.std(axis=0) / np.sqrt(len(runs))
    return Evaluations(grid, by_run.mean(axis=0), std_error, np.array([means[-1] for _, means in runs]))


def gather(
    roots: Mapping[str, str], algos: Sequence[str], env_id: str, key: str, max_steps: float, min_steps: float
) -> dict[str, Evaluations]:
    """Average the evaluations of all runs, by algorithm and root.

    :param roots: label -> root of logs
    :param algos: algorithms
    :param env_id: environment id
    :param key: as in ``merge_evaluations``
    :param max_steps: likewise
    :param min_steps: likewise
    :return: ``{algo}-{label}`` -> averages, without those that have none
    """
    found = {
        f"{algo}-{label}": merge_evaluations(find_runs(root, algo, [env_id]), key, max_steps, min_steps)
        for algo in algos
        for label, root in roots.items()
    }
    return {name: merged for name, merged in found.items() if merged is not None}


def last_row(env_id: str, name: str, evaluations: Evaluations, median: bool = False) -> dict[str, Any]:
    """Make the row of a table from last evaluations.

    :param env_id: environment id
    :param name: algorithm and root
    :param evaluations: averages
    :param median: the median over runs in place of the mean
    :return: columns and values
    """
    center = np.median(evaluations.last) if median else evaluations.last.mean()
    return {
        "env_id": env_id,
        "algo": name,
        "runs": len(evaluations.last),
        "timesteps": int(evaluations.timesteps[-1]),
        "median" if median else "mean": round(float(center), 3),
        "std_error": round(evaluations.last_std_error, 3),
    }


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay rows out as a Markdown table.

    :param rows: at least one row; all have the same columns
    :return: its lines
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
