"""The comparison of RL2 with the best return there could be."""

import csv
import json
import runpy
from pathlib import Path

from sb3_maesn.envs import make_family


def test_the_comparison_with_the_optimum_runs(tmp_path: Path, root: Path) -> None:
    """A miniature of what wrote results/rl2-*.csv."""
    script = runpy.run_path(str(root / "scripts" / "compare_optimum.py"))
    flags = ["-n", "16000", "--evaluations", "2", "--tasks", "4", "--csv", str(tmp_path / "table.csv")]
    assert script["main"](["PointGoal-v0", *flags]) == 0
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["timesteps"] for row in rows] == ["0", "0", "8000", "8000", "16000", "16000"]
    assert all(float(row["mean_return"]) < float(row["best_return"]) < 0.0 for row in rows)
    assert json.loads((tmp_path / "table.json").read_text())["seed"] == 0


def test_the_comparison_is_on_the_tasks_asked_for(tmp_path: Path, root: Path) -> None:
    """The best return is that of these tasks: two of a set are compared with what the goals next in it allow."""
    script = runpy.run_path(str(root / "scripts" / "compare_optimum.py"))
    best = []
    for flags in (["--split", "validation"], ["--split", "test"], ["--split", "test", "--first-task", "2"]):
        path = tmp_path / "table.csv"
        small = ["-n", "8000", "--evaluations", "1", "--tasks", "2", "--csv", str(path)]
        assert script["main"](["PointGoal-v0", *flags, *small]) == 0
        with path.open(encoding="utf-8") as file:
            best.append({row["best_return"] for row in csv.DictReader(file)})
        about = json.loads(path.with_suffix(".json").read_text())
        assert [about["split"], str(about["first_task"])] == [flags[1], flags[3] if len(flags) > 2 else "0"]
    family = make_family("PointGoal-v0")
    wanted = (family.task_set("validation", 2), family.task_set("test", 2), family.task_set("test", 4)[2:])
    assert best == [{str(round(script["point_optimum"](tasks), 4))} for tasks in wanted]
    assert len(set.union(*best)) == 3
