"""Folders of training runs."""

from pathlib import Path

import yaml

from sb3_maesn.run_folder import create_run_folder, latest_checkpoint, write_settings


def test_runs_are_numbered_per_environment(tmp_path: Path) -> None:
    first = create_run_folder(tmp_path, "maesn", "PointGoal-v0")
    second = create_run_folder(tmp_path, "maesn", "PointGoal-v0")
    other = create_run_folder(tmp_path, "maesn", "PointGoal-v01")
    assert [folder.name for folder in (first, second, other)] == ["PointGoal-v0_1", "PointGoal-v0_2", "PointGoal-v01_1"]
    assert (first / "PointGoal-v0").is_dir()


def test_number_goes_on_after_the_highest(tmp_path: Path) -> None:
    (tmp_path / "maesn" / "PointGoal-v0_11").mkdir(parents=True)
    (tmp_path / "maesn" / "PointGoal-v0_x").mkdir()
    assert create_run_folder(tmp_path, "maesn", "PointGoal-v0").name == "PointGoal-v0_12"


def test_settings_are_plain_yaml(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path, "maesn", "ns/Env-v0")
    write_settings(folder, "ns/Env-v0", {"gamma": 0.9}, {"seed": 1, "env_kwargs": None}, ["python", "train.py", "a b"])
    settings = folder / "ns-Env-v0"
    assert yaml.safe_load((settings / "config.yml").read_text()) == {"gamma": 0.9}
    assert yaml.safe_load((settings / "args.yml").read_text()) == {"seed": 1, "env_kwargs": None}
    assert (settings / "command.txt").read_text() == "python train.py 'a b'\n"


def test_latest_checkpoint_is_the_one_with_most_steps(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for steps in (900, 10_000):
        (tmp_path / f"rl_model_{steps}_steps.zip").touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "rl_model_10000_steps.zip"
