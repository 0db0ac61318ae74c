"""Folders of training runs."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from sb3_maesn.run_folder import (
    Run,
    create_run_folder,
    find_model,
    find_run,
    latest_checkpoint,
    list_runs,
    write_settings,
)


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


def test_two_runs_at_once_get_two_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_folder(tmp_path, "maesn", "PointGoal-v0"), range(40)))
    assert len(set(folders)) == 40


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for algo, env_id in (("rl2", "PointGoal-v0"), ("maesn", "ns/Env-v0"), *[("maesn", "PointGoal-v0")] * 11):
        folder = create_run_folder(tmp_path, algo, env_id)
        write_settings(folder, env_id, {"gamma": 0.9}, {"env": env_id}, ["train"])
    (tmp_path / "maesn" / "PointGoal-v0_12").mkdir()  # without settings
    return tmp_path


def test_runs_are_listed_in_order_of_their_numbers(logs: Path) -> None:
    runs = list_runs(logs)
    found = [f"{run.algo} {run.folder.name}" for run in runs]
    assert found == [*(f"maesn PointGoal-v0_{n}" for n in range(1, 12)), "maesn ns-Env-v0_1", "rl2 PointGoal-v0_1"]
    assert runs[-2].env_id == "ns/Env-v0"
    assert (runs[0].setting("config.yml", "gamma"), runs[0].setting("config.yml", "n_envs")) == (0.9, None)
    with pytest.raises(ValueError, match="no log folder"):
        list_runs(logs / "nowhere")


def test_settings_of_the_zoo_itself_are_read_and_no_other_objects(tmp_path: Path) -> None:
    folder = create_run_folder(tmp_path, "maesn", "PointGoal-v0")
    run, path = Run("maesn", "PointGoal-v0", folder), folder / "PointGoal-v0" / "args.yml"
    pairs = [("env", "PointGoal-v0"), ("hyperparams", OrderedDict(gamma=0.5))]
    path.write_text(yaml.dump(OrderedDict(pairs)))  # as rl-zoo does
    assert "!!python" in path.read_text()
    assert (run.setting("args.yml", "env"), run.setting("args.yml", "hyperparams")) == ("PointGoal-v0", {"gamma": 0.5})
    assert [found.folder for found in list_runs(tmp_path)] == [folder]
    path.write_text(f"env: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    assert run.setting("args.yml", "env") is None
    assert not (tmp_path / "made").exists()


def test_the_latest_run_is_found_unless_another_is_named(logs: Path) -> None:
    assert find_run(logs, "maesn", "PointGoal-v0") == logs / "maesn" / "PointGoal-v0_12"
    assert find_run(logs, "maesn", "PointGoal-v0", exp_id=3) == logs / "maesn" / "PointGoal-v0_3"
    assert find_run(logs, "maesn", "PointGoal-v0", exp_id=-1) == logs / "maesn"
    for algo, env_id, exp_id in (("maml", "PointGoal-v0", 0), ("maesn", "PointGoal-v1", 0), ("rl2", "PointGoal-v0", 7)):
        with pytest.raises(FileNotFoundError, match=f"no log folder .*{algo}.*{env_id}_"):
            find_run(logs, algo, env_id, exp_id)


def test_model_of_a_run_is_the_one_asked_for(tmp_path: Path) -> None:
    for name in ("PointGoal-v0", "best_model", "rl_model_900_steps", "rl_model_10000_steps"):
        (tmp_path / f"{name}.zip").touch()
    found = [
        find_model(tmp_path, "PointGoal-v0"),
        find_model(tmp_path, "PointGoal-v0", best=True),
        find_model(tmp_path, "PointGoal-v0", checkpoint=900),
        find_model(tmp_path, "PointGoal-v0", last_checkpoint=True),
    ]
    assert [path.stem for path in found] == ["PointGoal-v0", "best_model", "rl_model_900_steps", "rl_model_10000_steps"]
    with pytest.raises(
        FileNotFoundError, match=r"no rl_model_5_steps.zip in .* holds PointGoal-v0.zip, best_model.zip"
    ):
        find_model(tmp_path, "PointGoal-v0", checkpoint=5)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* holds no model"):
        find_model(tmp_path / "empty", "PointGoal-v0", last_checkpoint=True)


def test_a_run_without_a_model_points_to_the_latest_that_has_one(tmp_path: Path) -> None:
    folders = [create_run_folder(tmp_path, "maesn", "PointGoal-v0") for _ in range(12)]
    for n, name in ((2, "PointGoal-v0.zip"), (10, "PointGoal-v0.zip"), (11, "rl_model_40_steps.zip")):
        (folders[n - 1] / name).touch()
    missing = (
        r"no PointGoal-v0\.zip in .*PointGoal-v0_12, which holds no model; the latest run that has one is number 10"
    )
    with pytest.raises(FileNotFoundError, match=f"{missing}: choose it with --exp-id 10"):
        find_model(folders[11], "PointGoal-v0")
    for wanted in ({"last_checkpoint": True}, {"checkpoint": 40}):
        with pytest.raises(FileNotFoundError, match="--exp-id 11"):
            find_model(folders[11], "PointGoal-v0", **wanted)
    with pytest.raises(FileNotFoundError, match=r"which holds no model$"):
        find_model(folders[11], "PointGoal-v0", best=True)
