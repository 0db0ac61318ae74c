"""Learning curves of training runs, read from files in rl-zoo's format."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_maesn.config import ConfigError
from sb3_maesn.run_folder import find_runs, parent_of, recorded_argument

Array: TypeAlias = np.ndarray

#: Labels of the x axes by name, and labels and columns of the monitor files of the y axes by name.
X_AXES = {"steps": "environment steps", "episodes": "episodes", "time": "hours"}
Y_AXES = {
    "reward": ("training episode return", "r"),
    "success": ("training success rate", "is_success"),
    "length": ("training episode length", "l"),
}

#: Arrays of ``evaluations.npz`` that can be averaged (n_evaluations, n_episodes).
KEYS = ("results", "successes", "ep_lengths")


class Evaluations(NamedTuple):
    """Averaged evaluations of several runs with the same settings.

    :param timesteps: environment steps trained at each of the E evaluations (E,)
    :param mean: mean over runs and episodes (E,)
    :param std_error: standard error of the mean over runs (E,)
    :param last: mean of each run at the last of these steps (n_runs,)
    """

    timesteps: Array
    mean: Array
    std_error: Array
    last: Array

    @property
    def last_std_error(self) -> float:
        """Standard error of the mean over runs at the last step."""
        return float(_standard_error(self.last))


def _standard_error(values: Array) -> Array:
    """Compute the standard error of the mean over the first dimension, 0 for a single value."""
    return np.asarray(values.std(axis=0, ddof=min(1, len(values) - 1)) / np.sqrt(len(values)))


def read_monitor(folder: str | Path) -> dict[str, Array]:
    """Read the monitor files of a run, with the episodes in the order in which they ended.

    :param folder: folder of the run, with ``*.monitor.csv``
    :return: columns by name, such as ``r``, ``l`` and ``t`` (n_episodes,); empty if there are no files
    """
    rows: list[dict[str, str]] = []
    for path in sorted(Path(folder).glob("*.monitor.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            next(file)  # header in JSON
            rows += csv.DictReader(file)
    order = np.argsort([float(row["t"]) for row in rows], kind="stable")
    names = rows[0] if rows else ()
    return {name: np.array([_number(rows[i][name]) for i in order]) for name in names}


def _number(text: str) -> float:
    return {"True": 1.0, "False": 0.0}[text] if text in ("True", "False") else float(text)


def training_curve(
    folder: str | Path, x_axis: str = "steps", y_axis: str = "reward", window: int = 100, max_steps: float = np.inf
) -> tuple[Array, Array] | None:
    """Compute the moving average of a quantity of the training episodes.

    :param folder: folder of the run
    :param x_axis: key of ``X_AXES``
    :param y_axis: key of ``Y_AXES``
    :param window: number of episodes in the window of the average
    :param max_steps: environment steps after which episodes are ignored
    :return: positions and moving average (both (n_episodes - window + 1,)); None if the run has too few episodes or
        did not record the quantity
    """
    columns, name = read_monitor(folder), Y_AXES[y_axis][1]
    if name not in columns:
        return None
    steps = np.cumsum(columns["l"]) + (recorded_argument(Path(folder), "steps_before") or 0)
    kept = steps <= max_steps
    if kept.sum() < window:
        return None
    x = {"steps": steps, "episodes": np.arange(1, len(steps) + 1), "time": columns["t"] / 3600}[x_axis][kept]
    sums = np.cumsum(np.insert(columns[name][kept], 0, 0.0))
    return x[window - 1 :], (sums[window:] - sums[:-window]) / window


def merge_evaluations(
    folders: Sequence[str | Path], key: str = "results", max_steps: float = np.inf, min_steps: float = 0
) -> Evaluations | None:
    """Average the evaluations of several runs.

    A run that went on with the model of another is joined to it. If the runs were evaluated at different steps, those
    of the run with the fewest evaluations are used, as far as all runs have evaluations before and after them, and the
    values of the others are interpolated.

    :param folders: folders of runs; those without ``evaluations.npz`` are skipped
    :param key: array to average, one of ``KEYS``
    :param max_steps: environment steps after which evaluations are ignored
    :param min_steps: environment steps that a run must have reached in order to count
    :return: averages, None if no run has such evaluations
    :raises ConfigError: if the key is unknown, or the runs have no steps in common
    """
    if key not in KEYS:
        raise ConfigError(f"the key must be one of {', '.join(KEYS)}, got {key!r}")
    runs = {
        folder: (timesteps[timesteps <= max_steps], means[timesteps <= max_steps])
        for folder, (timesteps, means) in _whole_runs([Path(folder) for folder in folders], key).items()
        if timesteps[-1] >= min_steps and timesteps[0] <= max_steps
    }
    if not runs:
        return None
    grid = min((timesteps for timesteps, _ in runs.values()), key=len)
    first = max(timesteps[0] for timesteps, _ in runs.values())
    last = min(timesteps[-1] for timesteps, _ in runs.values())
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        spans = ", ".join(f"{folder} from {steps[0]} to {steps[-1]}" for folder, (steps, _) in runs.items())
        raise ConfigError(f"the evaluations have no steps in common: {spans}; -min leaves short runs out")
    by_run = np.stack([np.interp(grid, timesteps, means) for timesteps, means in runs.values()])  # (n_runs, E)
    return Evaluations(grid, by_run.mean(axis=0), _standard_error(by_run), by_run[:, -1])


def _whole_runs(folders: Sequence[Path], key: str) -> dict[Path, tuple[Array, Array]]:
    """Read the evaluations of runs, each joined to those of the run that it went on with, which is then left out.

    :param folders: folders of runs, a resumed one after the one that it went on with
    :param key: array to average over episodes, one of ``KEYS``
    :return: environment steps and means by folder (both (E,))
    """
    read = {folder: evaluations for folder in folders if (evaluations := _read_evaluations(folder, key)) is not None}
    parents = {folder: parent_of(folder, list(read)) for folder in read}
    for folder, parent in parents.items():
        if parent is not None:
            (steps, means), (earlier_steps, earlier_means) = read[folder], read[parent]
            before = earlier_steps <= (recorded_argument(folder, "steps_before") or steps[0])
            joined_steps = np.concatenate([earlier_steps[before], steps])
            read[folder] = joined_steps, np.concatenate([earlier_means[before], means])
    return {folder: evaluations for folder, evaluations in read.items() if folder not in parents.values()}


def _read_evaluations(folder: Path, key: str) -> tuple[Array, Array] | None:
    """Read the steps and the means over episodes of a run's evaluations (both (E,)), None if there are none."""
    path = folder / "evaluations.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        if key not in arrays.files or not len(arrays["timesteps"]):
            return None
        timesteps, values = arrays["timesteps"], np.asarray(arrays[key], dtype=float)
    return timesteps, values.reshape(len(timesteps), -1).mean(axis=1)


def gather(
    roots: Mapping[str, str], algos: Sequence[str], env_id: str, key: str, max_steps: float, min_steps: float
) -> dict[str, Evaluations]:
    """Average the evaluations of all runs of each algorithm in each log folder.

    :param roots: log folders by label
    :param algos: names of algorithms
    :param env_id: environment id
    :param key: array to average, one of ``KEYS``
    :param max_steps: environment steps after which evaluations are ignored
    :param min_steps: environment steps that a run must have reached in order to count
    :return: averages by ``{algo}-{label}``, without algorithms that have no evaluations
    :raises ConfigError: if the key is unknown, or the runs of an algorithm have no steps in common
    """
    found = {
        f"{algo}-{label}": merge_evaluations(find_runs(root, algo, [env_id]), key, max_steps, min_steps)
        for algo in algos
        for label, root in roots.items()
    }
    return {name: merged for name, merged in found.items() if merged is not None}


def last_row(env_id: str, name: str, evaluations: Evaluations, median: bool = False) -> dict[str, Any]:
    """Make a row of a table of last evaluations.

    :param env_id: environment id
    :param name: name of the algorithm and the log folder
    :param evaluations: averaged evaluations
    :param median: whether to report the median over runs instead of the mean
    :return: values by column
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
    """Format rows as a Markdown table.

    :param rows: rows of the table, at least one, all with the same columns
    :return: lines of the table
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
