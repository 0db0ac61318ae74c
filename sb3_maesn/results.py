"""Tables of published results: what adaptation reached, where the prior ends up, and how each table was made."""

import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sb3_maesn.evaluation import AdaptationResult

Row: TypeAlias = Mapping[str, Any]
PACKAGES = ("sb3_maesn", "stable_baselines3", "sb3_contrib", "torch", "gymnasium", "mujoco", "numpy")


def provenance(seed: int | None, **settings: Any) -> dict[str, Any]:
    """Say how a result was made: the command, the seed, the versions and the machine.

    :param seed: seed of the run
    :param settings: whatever else matters
    :return: plain values
    """
    return {
        "command": shlex.join(["python", *sys.argv]),
        "seed": seed,
        **settings,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def write_table(path: str | Path, rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    """Write rows as CSV and, beside it under the same name, a JSON file that says how they were made.

    :param path: CSV file
    :param rows: at least one row; all have the same columns
    :param about: from ``provenance``
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".json").write_text(json.dumps(dict(about), indent=2) + "\n", encoding="utf-8")


def format_table(rows: Sequence[Row]) -> str:
    """Lay rows out for a terminal.

    :param rows: at least one row; all have the same columns
    :return: a header line and one line a row
    """
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def load_evaluations(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the learning curve that ``MetaEvalCallback`` wrote.

    :param path: ``evaluations.npz``
    :return: environment steps (E,), and mean return and success by round, each (E, n_rounds + 1)
    """
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["timesteps"], arrays["returns_by_round"], arrays["success_by_round"]


def adaptation_rows(returns: np.ndarray, success: np.ndarray) -> list[dict[str, Any]]:
    """Summarise an adaptation by round. A task is solved if at least half of the round's episodes succeed.

    :param returns: (n_rounds + 1, n_tasks, n_episodes)
    :param success: success of the same episodes
    :return: one row a round; intervals are half widths of 95 % intervals over tasks
    """
    by_task = np.asarray(success, dtype=float).mean(axis=2)  # (n_rounds + 1, n_tasks)
    mean_return, return_interval = mean_and_interval(np.asarray(returns, dtype=float).mean(axis=2))
    mean_success, success_interval = mean_and_interval(by_task)
    return [
        {
            "round": r,
            "episodes": r * returns.shape[2],
            "mean_return": round(float(mean_return[r]), 2),
            "return_interval": round(float(return_interval[r]), 2),
            "success": round(float(mean_success[r]), 4),
            "success_interval": round(float(success_interval[r]), 4),
            "solved": round(float((by_task[r] >= 0.5).mean()), 4),
        }
        for r in range(len(by_task))
    ]


def read_adaptation_tables(paths: Sequence[str | Path]) -> dict[str, list[dict[str, str]]]:
    """Read tables of adaptation rounds.

    :param paths: CSV files whose rows are those of ``adaptation_rows`` with the columns ``model`` and ``rule`` before
    :return: model and rule -> rows
    :raises ValueError: if a file is no such table
    """
    tables: dict[str, list[dict[str, str]]] = {}
    for path in paths:
        with Path(path).open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if not {"model", "rule", "round", "success_interval"} <= row.keys():
                    raise ValueError(f"{path} is no table of adaptation rounds: it has the columns {', '.join(row)}")
                tables.setdefault(f"{row['model']}, {row['rule']}", []).append(row)
    return tables


def latent_rows(result: AdaptationResult, task: int = 0) -> list[dict[str, Any]]:
    """Summarise the adaptation to one task by round, with its latent distribution.

    :param result: from ``evaluate_adaptation`` or ``adapt``
    :param task: its place among the tasks
    :return: one row a round; ``latent`` holds mean±standard deviation of each component as the round began
    """
    one = slice(task, task + 1)
    rows = []
    for r, row in enumerate(adaptation_rows(result.returns[:, one], result.success[:, one])):
        parts = zip(result.mean[r, task], np.exp(result.log_std[r, task]), strict=True)
        latent = " ".join(f"{mean:+.2f}±{std:.2f}" for mean, std in parts)
        rows.append({key: row[key] for key in ("round", "episodes", "mean_return", "success")} | {"latent": latent})
    return rows


def mean_and_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over tasks with the half width of a 95 % normal interval.

    :param values: (n_points, n_tasks)
    :return: means and half widths, each (n_points,); the half width is 0 where there is one task only
    """
    n_tasks = values.shape[1]
    if n_tasks < 2:
        return values.mean(axis=1), np.zeros(values.shape[0])
    return values.mean(axis=1), 1.96 * values.std(axis=1, ddof=1) / np.sqrt(n_tasks)


def sector_shares(end_points: np.ndarray, radius: float = 1.2, n_sectors: int = 6) -> np.ndarray:
    """Share of far end points in every sector of the upper half circle.

    :param end_points: (n, 2) where episodes ended
    :param radius: end points within this distance of the origin do not count
    :param n_sectors: sectors of equal angle
    :return: (n_sectors,) shares of the end points beyond the radius, counter-clockwise from the x axis;
        they sum to less than 1 where episodes end in the lower half plane
    """
    far = end_points[np.linalg.norm(end_points, axis=1) > radius]
    angle = np.degrees(np.arctan2(far[:, 1], far[:, 0]))
    counts, _ = np.histogram(angle, bins=n_sectors, range=(0.0, 180.0))
    return np.asarray(counts / max(len(far), 1))


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
