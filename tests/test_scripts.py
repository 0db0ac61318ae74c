"""The scripts: what they write, how they resume, and how they refuse bad input."""

import csv
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from sb3_maesn import MAESN, MAML, envs, recipes
from sb3_maesn.config import constructor_arguments
from sb3_maesn.envs import PointGoal
from sb3_maesn.model_files import guess_test_env
from sb3_maesn.recipes import TrainingRun
from sb3_maesn.training import find_recipe, steps_to_train
from tests.tiny import tiny

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TINY = ["meta_batch_size:3", "n_episodes:4", "n_prior_episodes:null", "balance_episodes:false"]
ITERATION = 3 * 4 * 2 * 20  # environment steps of PointGoal


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains a tiny PointGoal agent in a folder of its own; returns the run's folder."""
    monkeypatch.chdir(tmp_path)
    script = load("train")

    def run(*flags: str) -> Path:
        before = set(Path("logs/maesn").glob("*"))
        command = ["--env", "PointGoal-v0", "--eval-freq", "-1", "--save-freq", "-1", "--verbose", "0", *flags]
        assert script.main([*command, "--hyperparams", *TINY]) == 0
        (folder,) = set(Path("logs/maesn").glob("*")) - before
        return folder.resolve()

    return run


@pytest.fixture
def model_file(train: Callable[..., Path]) -> str:
    return str(train("-n", str(ITERATION), "--seed", "0") / "PointGoal-v0.zip")


def parameters(path: Path) -> dict[str, torch.Tensor]:
    found = MAESN.load(path).get_parameters()
    return {f"{part}.{name}": value for part in ("policy", "task_latents") for name, value in found[part].items()}


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("[!_]*.py")))
def test_help_is_quick_from_any_directory(tmp_path: Path, name: str) -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{name}.py", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert time.perf_counter() - start < 2
    assert done.returncode == 0
    assert "usage" in done.stdout


def test_train_writes_the_files_of_the_zoo(train: Callable[..., Path]) -> None:
    frequencies = ["--eval-freq", str(2 * ITERATION), "--save-freq", str(ITERATION), "--tensorboard-log", "tb"]
    evaluation = ["--eval-tasks", "2", "--eval-episodes", "3"]
    folder = train("-n", str(4 * ITERATION), "--seed", "5", *frequencies, *evaluation)
    assert folder.name == "PointGoal-v0_1"
    names = {path.name for path in folder.iterdir()}
    assert {
        "PointGoal-v0",
        "PointGoal-v0.zip",
        "best_model.zip",
        "evaluations.npz",
        "progress.csv",
        "0.monitor.csv",
    } <= names
    assert {f"rl_model_{i * ITERATION}_steps.zip" for i in (1, 2, 3)} <= names
    args = yaml.safe_load((folder / "PointGoal-v0" / "args.yml").read_text())
    assert (args["seed"], args["env"]) == (5, "PointGoal-v0")
    assert yaml.safe_load((folder / "PointGoal-v0" / "config.yml").read_text())["meta_batch_size"] == 3
    assert "--seed 5" in (folder / "PointGoal-v0" / "command.txt").read_text()
    episodes = (folder / "0.monitor.csv").read_text().splitlines()
    assert episodes[1] == "r,l,t,is_success"
    assert len(episodes) == 2 + 4 * 3 * 4 * 2  # all episodes before and after every inner update
    rows = read_csv(folder / "progress.csv")
    assert len([row for row in rows if row["time/iterations"]]) == 4
    assert len([row for row in rows if row["eval/mean_reward"]]) == 2
    assert MAESN.load(folder / "best_model.zip").num_timesteps <= 4 * ITERATION
    assert list(Path("tb/maesn/PointGoal-v0_1").glob("events*"))


@pytest.mark.parametrize("n_envs", [12, 5])  # all episodes at once, or in waves
def test_a_resumed_run_equals_one_that_was_never_stopped(train: Callable[..., Path], n_envs: int) -> None:
    Path("conf.yml").write_text(f"default: {{n_envs: {n_envs}, inner_update: reward_weighted}}")
    whole = train("-n", str(4 * ITERATION), "--seed", "1", "--save-freq", "1", "--conf-file", "conf.yml")
    *_, checkpoint = sorted(whole.glob("rl_model_*"), key=lambda path: path.stat().st_mtime_ns)[:2]
    steps = MAESN.load(checkpoint).num_timesteps
    left = MAESN.load(whole / "PointGoal-v0.zip").num_timesteps - steps
    resumed = train("-n", str(left), "-i", str(checkpoint), "--conf-file", "conf.yml")
    expected, got = parameters(whole / "PointGoal-v0.zip"), parameters(resumed / "PointGoal-v0.zip")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name
    assert MAESN.load(resumed / "PointGoal-v0.zip").num_timesteps == steps + left


def test_interrupt_leaves_a_whole_checkpoint_and_says_how_to_resume(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(SCRIPTS / "train.py"),
        "--env",
        "PointGoal-v0",
        "--verbose",
        "0",
        "--eval-freq",
        "-1",
    ]
    command += ["-n", "100_000_000".replace("_", ""), "--save-freq", str(ITERATION), "--hyperparams", *TINY]
    folder = tmp_path / "logs" / "maesn" / "PointGoal-v0_1"
    # a suite that runs in the background of a shell hands down that it ignores the signal
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) as process:
        signal.signal(signal.SIGINT, handler)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("rl_model_*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        try:
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    advised = output.split("go on with")[1].split()
    checkpoint = Path(advised[advised.index("-i") + 1])
    steps = int(checkpoint.stem.split("_")[2])
    assert int(advised[advised.index("-n") + 1]) == 100_000_000 - steps
    for path in folder.glob("*.zip"):
        assert MAESN.load(path).num_timesteps == int(path.stem.split("_")[2])
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--algo", "vime", "--env", "PointGoal-v0", "--task", "-0.6", "0.8", "-i", "old.zip", "-n", "500", "-P"],
        [
            *("--conf-file", "my conf.yml", "-f", "my logs", "-tb", "tb", "--seed", "3", "--num-threads", "2"),
            *("--eval-freq", "-1", "--eval-episodes", "7", "--eval-tasks", "9", "--save-freq", "800", "--verbose", "0"),
            *("--hyperparams", "policy_kwargs:{net_arch: [8], activation_fn: tanh}", "n_envs:5"),
        ],
    ],
)
def test_the_command_that_goes_on_repeats_the_flags(tmp_path: Path, flags: list[str]) -> None:
    script = load("train")
    checkpoint = tmp_path / "rl_model_400_steps.zip"
    checkpoint.touch()
    args = script.make_parser().parse_args(flags)
    advice = script.resume_advice(tmp_path, args, goal=1000)
    python, name, *advised = shlex.split(advice.split("go on with")[1])
    assert (python, name) == ("python", "scripts/train.py")
    expected = {**vars(args), "trained_agent": str(checkpoint), "n_timesteps": 600}
    assert vars(script.make_parser().parse_args(advised)) == expected


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.zip"])
def test_training_goes_on_from_a_checkpoint_as_from_a_saved_model(
    train: Callable[..., Path], model_file: str, name: str
) -> None:
    MAESN.load(model_file).save_checkpoint(name, contents="agent")
    ends = [train("-n", str(ITERATION), "-i", path) / "PointGoal-v0.zip" for path in (model_file, name)]
    expected, got = parameters(ends[0]), parameters(ends[1])
    start = parameters(Path(model_file))
    assert not torch.equal(start["policy.log_std"], got["policy.log_std"])
    assert all(torch.equal(value, got[key]) for key, value in expected.items())
    assert MAESN.load(ends[1]).num_timesteps == 2 * ITERATION


def test_training_goes_on_from_what_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, shipped = "maesn-WheeledGoal-v0", MAESN.from_pretrained("maesn-WheeledGoal-v0")
    flags = ["--env", "WheeledGoal-v0", "-n", "1", "--eval-freq", "-1", "--save-freq", "-1", "--verbose", "0"]
    assert load("train").main([*flags, "-i", name, "--hyperparams", *TINY]) == 0
    longer = MAESN.load("logs/maesn/WheeledGoal-v0_1/WheeledGoal-v0.zip")
    assert longer.num_timesteps == shipped.num_timesteps + 3 * 4 * 2 * 200
    assert (longer.meta_batch_size, longer.gamma) == (3, shipped.gamma)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env", "WheledGoal-v0"], "did you mean WheeledGoal"),
        (["--algo", "mason"], "did you mean maesn"),
        (["--hyperparams", "metabatch_size:3"], "did you mean meta_batch_size"),
        (["--hyperparams", "meta_batch_size"], "key:value"),
        (["--hyperparams", "meta_batch_size:400"], "must not exceed the number of training tasks"),
        (["--hyperparams", "inner_update:magic"], "inner_update"),
        (["--hyperparams", "learning_rate:lin_fast"], "lin_<number>"),
        (["-i", "nowhere.zip"], "nowhere.zip"),
        (["-i", "maesn-WheelGoal-v0"], "did you mean maesn-WheeledGoal-v0"),
        (["--algo", "maml", "-i", "maesn-WheeledGoal-v0"], "expected a model of MAML"),
        (["-i", "maesn-WheeledGoal-v0"], "spaces"),
        (["--conf-file", "nowhere.yml"], "nowhere.yml"),
        (["--env", "CartPole-v1"], "CartPole-v1 has no tasks, of which a meta-learner needs many: give it"),
        (["--algo", "maml", "--env", "CartPole-v1"], "take reinforce, trpo or vime"),
        (["--algo", "latent_space", "--env", "CartPole-v1"], "has no tasks"),
        (["--algo", "rl2", "--env", "CartPole-v1"], "has no tasks"),
        (["--hyperparams", "n_episodes:-1"], "n_episodes must be at least 2, got -1"),
        (["--hyperparams", "meta_batch_size:0"], "meta_batch_size must be at least 1, got 0"),
        (["--algo", "rl2", "--hyperparams", "meta_batch_size:0"], "meta_batch_size must be at least 1, got 0"),
        (["--algo", "rl2", "--hyperparams", "n_episodes:0"], "expected trials of at least 1 episode, got n_episodes=0"),
        (["--algo", "rl2", "--hyperparams", "policy:MlpPolicy"], "RL2 has no policy 'MlpPolicy'; there are: MlpLstm"),
        (["--algo", "maml", "--hyperparams", "meta_step:sgd"], "meta_step must be one of trpo, ppo, got 'sgd'"),
        (["--hyperparams", "meta_batch_size:many"], "meta_batch_size must be a whole number, got 'many'"),
        (["--hyperparams", "n_timesteps:long"], "n_timesteps must be a whole number or null, got 'long'"),
        (["--hyperparams", "n_timesteps:-4"], "n_timesteps must be at least 1, got -4"),
        (["--hyperparams", "n_envs:0"], "n_envs must be at least 1, got 0"),
        (["--hyperparams", "eval_rule:foo"], "posterior, got 'foo'"),
        (["--hyperparams", "stats_window_size:-3"], "stats_window_size must be at least 1, got -3"),
        (["--hyperparams", "policy_kwargs:{net_arch: [-3]}"], "must have at least 1 unit each, got [-3]"),
        (["--hyperparams", "policy_kwargs:{latent_dim: two}"], "latent_dim of policy_kwargs must be a whole number"),
        (["--hyperparams", "seed:3"], "seed is no hyperparameter: it has a flag of its own, --seed"),
        (["--device", "abacus"], "abacus"),
        (["-n", "-5"], "--n-timesteps must be at least 1, or -1 for the default, got -5"),
        (["-n", "0"], "--n-timesteps must be at least 1, or -1 for the default, got 0"),
        (["--num-threads", "0"], "--num-threads must be at least 1, or -1 for the default, got 0"),
        (["--eval-tasks", "0"], "--eval-tasks must be at least 1, got 0"),
        (["--eval-episodes", "-1"], "--eval-episodes must be at least 1, got -1"),
        (["--algo", "maml", "--hyperparams", "step_size_init:0.5"], "step size is policy_step_size_init"),
    ],
)
def test_train_refuses_bad_input_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--verbose", "0", "-n", "10", *flags]
    if "--env" not in flags:
        command += ["--env", "PointGoal-v0"]
    with pytest.raises(SystemExit) as stopped:
        load("train").main(command)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))  # nor does a run that cannot begin leave files


def test_an_evaluation_by_an_unknown_rule_is_refused_before_training(tmp_path: Path) -> None:
    run = TrainingRun("maesn", "PointGoal-v0", {"eval_rule": "foo"}, tmp_path)
    with pytest.raises(ValueError, match="got 'foo'"):
        find_recipe("maesn").make_evaluation(run, tiny())


def test_training_does_not_go_on_from_a_folder(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("-n", "1")
    for name, advice in (
        (folder, f"name one of its models: {folder / 'PointGoal-v0.zip'}"),
        (folder.parent, "it holds no model"),
    ):
        with pytest.raises(SystemExit):
            train("-n", "1", "-i", str(name))
        assert capsys.readouterr().err == f"error: {name} is a folder, not a model; {advice}\n"


def test_evaluation_on_more_tasks_than_there_are_is_announced(
    train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train("-n", "1", "--eval-freq", "0", "--eval-tasks", "101", "--eval-episodes", "1", "--verbose", "1")
    assert "PointGoal-v0 has 100 validation tasks: evaluations use all of them, not 101" in capsys.readouterr().out
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["results"].shape == (1, 100)


@pytest.mark.parametrize(("algo", "latents"), [("maml", 0), ("latent_space", 2)])
def test_train_adapt_and_evaluate_other_meta_learners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str, latents: int
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--algo", algo, "--env", "PointGoal-v0", "--verbose", "0", "-n", "1", "--eval-tasks", "2"]
    assert load("train").main([*command, "--hyperparams", *TINY[:2], "policy_kwargs:{net_arch: [8]}"]) == 0
    folder = Path("logs", algo, "PointGoal-v0_1")
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["returns_by_round"].shape == (1, 4)
    file = str(folder / "PointGoal-v0.zip")
    assert find_recipe(algo).algorithm.load(file).policy.latent_dim == latents
    flags = ["--rounds", "1", "--episodes", "4"]
    assert load("adapt").main([file, "--task", "3", "--rule", "policy_gradient", "--csv", "a.csv", *flags]) == 0
    rules = ["--rules", "policy_gradient", "--out", "out", "--name", algo]
    assert load("evaluate").main(["learning", file, "--tasks", "3", *flags, *rules]) == 0
    assert [row["round"] for row in read_csv(Path("out", f"{algo}-learning.csv"))] == ["0", "1"]


SINGLE = {
    "reinforce": ["n_envs:10", "n_episodes:10"],
    "trpo": ["n_envs:10", "n_steps:20", "batch_size:200"],
    "vime": ["n_envs:10", "n_steps:20", "batch_size:200", "n_dynamics_updates:5"],
}


def run_single(algo: str, *flags: str) -> Path:
    """Trains one task of PointGoal with iterations of 200 steps; returns the run's folder."""
    before = set(Path("logs", algo).glob("*"))
    command = ["--algo", algo, "--env", "PointGoal-v0", "--verbose", "0", "--eval-episodes", "4", *flags]
    assert load("train").main([*command, "--hyperparams", *SINGLE[algo]]) == 0
    (folder,) = set(Path("logs", algo).glob("*")) - before
    return folder


@pytest.mark.parametrize("algo", SINGLE)
def test_train_learns_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[np.ndarray] = []
    plain = PointGoal.success

    def success(self: PointGoal, state: Any, tasks: np.ndarray) -> np.ndarray:
        seen.append(tasks)
        return plain(self, state, tasks)

    monkeypatch.setattr(PointGoal, "success", success)
    folder = run_single(algo, "--task", "3", "-n", "600", "--eval-freq", "200", "--save-freq", "200")
    names = {path.name for path in folder.iterdir()}
    assert {"PointGoal-v0.zip", "best_model.zip", "progress.csv", "0.monitor.csv"} <= names
    assert {"rl_model_200_steps.zip", "rl_model_400_steps.zip"} <= names
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["results"].shape == (len(evaluations["timesteps"]), 4)
        assert evaluations["timesteps"][0] == 200
    (task,) = np.unique(np.concatenate(seen), axis=0)
    assert np.array_equal(task, PointGoal().task_set("train")[3])


@pytest.mark.parametrize("algo", ["reinforce", "vime"])
def test_resumed_training_of_one_task_equals_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algo: str
) -> None:
    monkeypatch.chdir(tmp_path)
    task = ["--task", "-0.6", "0.8", "--eval-freq", "-1"]
    whole = run_single(algo, *task, "-n", "800", "--seed", "1", "--save-freq", "400")
    resumed = run_single(algo, *task, "-n", "400", "-i", str(whole / "rl_model_400_steps.zip"))
    algorithm = find_recipe(algo).algorithm
    expected, got = (algorithm.load(folder / "PointGoal-v0.zip") for folder in (whole, resumed))
    assert got.num_timesteps == 800
    assert all(torch.equal(a, b) for a, b in zip(expected.policy.parameters(), got.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algo", "trpo"], "choose with --task N, a training task from 0 to 99"),
        (["--algo", "reinforce"], "choose with --task N"),
        (["--algo", "vime", "--task", "100"], "expected a train task id from 0 to 99, got 100"),
        (["--algo", "vime", "--task", "-1"], "from 0 to 99, got -1"),
        (["--algo", "trpo", "--task", "trial:1"], "split must be one of train, validation, test, got 'trial'"),
        (["--algo", "trpo", "--task", "left"], "an index or a task's values, got 'left'"),
        (["--algo", "trpo", "--task", "1", "nan"], "finite"),
        (["--algo", "trpo", "--task", "1", "2", "3"], "a task of PointGoal must have shape (2,), got (3,)"),
        (["--algo", "trpo", "--env", "CartPole-v1", "--task", "3"], "CartPole-v1 has no tasks to choose from"),
        (["--algo", "maesn", "--task", "3"], "maesn learns from all tasks"),
    ],
)
def test_a_task_that_cannot_be_is_refused_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    env = [] if "--env" in flags else ["--env", "PointGoal-v0"]
    with pytest.raises(SystemExit) as stopped:
        load("train").main(["--verbose", "0", "-n", "10", *env, *flags])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_budget_of_a_single_task_must_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf.yml").write_text("default: {n_envs: 2, n_steps: 20, batch_size: 40}")
    with pytest.raises(SystemExit):
        run_single("trpo", "--task", "validation:0", "--conf-file", "conf.yml")
    assert "neither the configuration nor -n says how many steps" in capsys.readouterr().err


def test_exploration_is_compared_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("compare_exploration")
    table = tmp_path / "exploration.csv"
    flags = ["--env", "PointGoal-v0", "--task", "3", "--algos", "reinforce", "trpo", "--seeds", "0", "1"]
    assert script.main([*flags, "-n", "1000", "--csv", str(table)]) == 0
    rows = read_csv(table)
    assert [(row["algo"], row["seed"]) for row in rows] == [(a, s) for a in ("reinforce", "trpo") for s in ("0", "1")]
    assert (
        script.main([*flags[:4], "--algos", "trpo", "--seeds", "1", "2", "-n", "200", "--csv", str(table), "--keep"])
        == 0
    )
    kept, rows = rows, read_csv(table)
    assert rows[:3] == kept[:3]
    assert [(row["seed"], row["timesteps"]) for row in rows[3:]] == [("1", "1000"), ("2", "1000")]
    about = json.loads(table.with_suffix(".json").read_text())
    assert [row["algo"] for row in about["summary"]] == ["reinforce", "trpo"]
    found = script.first_success([(10, False), (20, True), (30, False), (40, True)], 40)
    assert found == {"found": True, "first_success": 20, "late_success": 1.0, "timesteps": 40}
    assert script.first_success([(10, False)], 40)["first_success"] == ""
    runs = [{"env": "e", "algo": "a", "found": bool(step), "first_success": step} for step in (30, "", 10)]
    (summary,) = script.summarise(runs)
    assert (summary["seeds_that_found"], summary["median_first_success"]) == ("2 of 3", 30)


def test_curiosity_is_compared_on_what_the_latent_misses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load("compare_curiosity")
    monkeypatch.chdir(tmp_path)
    tiny().save("model")
    few = ["--rounds", "1", "--episodes", "2", "--policy-rounds", "1", "--etas", "0", "0.5", "--fresh-episodes", "3"]
    flags = ["model", "--env", "PointGoal-v0", "--n-tasks", "2", *few, "--csv", "table.csv"]
    assert script.main(flags) == 0
    rows = read_csv(Path("table.csv"))
    assert [(row["task"], row["eta"]) for row in rows] == [("0", "0.0"), ("0", "0.5"), ("1", "0.0"), ("1", "0.5")]
    assert rows[0]["mean_return"] != rows[1]["mean_return"]  # from the same adapted latent
    about = json.loads(Path("table.json").read_text())
    assert [(row["eta"], row["missed"], row["solved"]) for row in about["summary"]] == [(0.0, 2, 0), (0.5, 2, 0)]
    monkeypatch.setattr(PointGoal, "success", lambda self, state, tasks: np.ones(len(tasks), dtype=bool))
    with pytest.raises(SystemExit):
        script.main(flags)
    assert "finds the reward of all 2 tasks: there is nothing to compare" in capsys.readouterr().err
    found = {"eta": 0.1, "success": 0.2, "solved": False, "mean_return": -3.0}
    (summary,) = script.summarise([found, {**found, "success": 0.6, "solved": True, "mean_return": -1.0}], 10)
    assert summary == {"eta": 0.1, "tasks": 10, "missed": 2, "found": 2, "solved": 1, "mean_return": -2.0}


def test_verbose_2_keeps_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="did you mean PointGoal"):
        load("train").main(["--env", "PointGaol-v0", "--verbose", "2"])


def test_a_resumed_run_records_the_settings_of_the_model(train: Callable[..., Path]) -> None:
    first = train("-n", str(ITERATION), "--seed", "0")
    Path("conf.yml").write_text("default: {gamma: 0.5, n_envs: 6, eval_rule: kernel}")
    kept = train("-n", str(ITERATION), "-i", str(first / "PointGoal-v0.zip"))
    given = train("-n", str(ITERATION), "-i", str(first / "PointGoal-v0.zip"), "--conf-file", "conf.yml")
    for folder, gamma in ((kept, 0.99), (given, 0.5)):
        config = yaml.safe_load((folder / "PointGoal-v0" / "config.yml").read_text())
        model = MAESN.load(folder / "PointGoal-v0.zip")
        assert (model.gamma, config["gamma"], config["n_episodes"], config["meta_batch_size"]) == (gamma, gamma, 4, 3)
        assert constructor_arguments(config, MAESN)["target_kl"] == pytest.approx(model.target_kl)
        assert yaml.safe_load((folder / "PointGoal-v0" / "args.yml").read_text())["steps_before"] == ITERATION
    assert (config["n_envs"], config["eval_rule"]) == (6, "kernel")


def test_a_model_whose_batch_is_its_members_keeps_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "--algo rl2 --env PointGoal-v0 --eval-freq -1 --verbose 0 -n 160"
    flags = [*command.split(), "--hyperparams"]
    assert load("train").main([*flags, "n_envs:4", "meta_batch_size:4", "n_episodes:2"]) == 0
    resume = ["-i", "logs/rl2/PointGoal-v0_1/PointGoal-v0.zip"]
    with pytest.raises(SystemExit):
        load("train").main([*flags, "n_envs:7", *resume])
    assert "expected n_envs:4 or none, got 7" in capsys.readouterr().err
    assert not Path("logs/rl2/PointGoal-v0_2").exists()


def test_interrupted_after_training_the_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MAESN, "learn_score_prior", interrupt)
    flags = ["--env", "PointGoal-v0", "--eval-freq", "-1", "--save-freq", "-1", "--verbose", "0", "-n", str(ITERATION)]
    assert load("train").main([*flags, "--hyperparams", *TINY]) == 130
    path = Path("logs/maesn/PointGoal-v0_1/PointGoal-v0.zip")
    assert f"Interrupted after training; {path} lacks" in capsys.readouterr().out
    assert MAESN.load(path).num_timesteps == ITERATION


def test_threads_are_those_of_physics_too(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = envs.make_vec

    def make_vec(env_id: str, n_envs: int, n_threads: int = 0) -> Any:
        asked.append(n_threads)
        return whole(env_id, n_envs, n_threads)

    monkeypatch.setattr(recipes, "make_vec", make_vec)
    before = torch.get_num_threads()
    try:
        train(
            "-n", str(ITERATION), "--num-threads", "1", "--eval-freq", "1", "--eval-tasks", "2", "--eval-episodes", "2"
        )
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 1, 1]  # to train, to evaluate, and for the score prior


def test_a_spent_budget_asks_for_more_steps(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("-n", str(ITERATION))
    Path("conf.yml").write_text(f"default: {{n_timesteps: {ITERATION}}}")
    with pytest.raises(SystemExit):
        train("-i", str(folder / "PointGoal-v0.zip"), "--conf-file", "conf.yml")
    assert "say with -n how many more" in capsys.readouterr().err
    assert not Path("logs/maesn/PointGoal-v0_2").exists()  # or it would count as the latest run


def test_without_a_configured_budget_a_resumed_run_ends_where_the_whole_one_does(train: Callable[..., Path]) -> None:
    run = TrainingRun("maesn", "PointGoal-v0", {}, Path(), trained_agent="before")
    model = MAESN.load(train("-n", str(ITERATION)) / "PointGoal-v0.zip", env=tiny().env)
    assert steps_to_train(run, model) == 300 * ITERATION - ITERATION


def test_adapt_prints_and_writes_the_rounds(model_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = load("adapt")
    flags = ["--rounds", "2", "--episodes", "5", "--rule", "policy_gradient", "--env", "PointGoal-v0"]
    assert (
        script.main([model_file, "--task", "-0.6", "0.8", "--csv", "new/a.csv", "--save", "adapted.zip", *flags]) == 0
    )
    assert [row["round"] for row in read_csv(Path("new/a.csv"))] == ["0", "1", "2"]
    assert json.loads(Path("new/a.json").read_text())["env"] == "PointGoal-v0"
    assert Path("new/a.png").stat().st_size > 10_000
    assert Path("new/a-latents.png").stat().st_size > 10_000
    assert "mean_return" in capsys.readouterr().out
    prior, adapted = MAESN.load(model_file), MAESN.load("adapted.zip")
    assert not torch.equal(prior.policy.latent_mean, adapted.policy.latent_mean)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "100"], "from 0 to 99"),
        (["--task", "left"], "an index or"),
        (["--task", "nan", "0"], "finite"),
        (["--task", "1.0"], "a task of PointGoalSparse must have shape (2,), got (1,)"),
        (["--seed", "-3"], "seed must be at least 0, got -3"),
        (["--rule", "magic"], "posterior"),
        (["--env", "PointGaol-v0"], "did you mean PointGoal"),
        (["--env", "WheeledGoal-v0"], "space"),
        (["--csv", "demo/t.png"], "the name of a table must end in .csv, got demo/t.png"),
    ],
)
def test_adapt_refuses_bad_input_on_one_line(
    model_file: str, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load("adapt").main([model_file, "--episodes", "2", *flags])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_evaluate_learning_reports_every_round_and_model(model_file: str) -> None:
    flags = ["--tasks", "3", "--rounds", "1", "--episodes", "4", "--out", "out", "--name", "p"]
    assert load("evaluate").main(["learning", model_file, model_file, *flags, "--rules", "kernel", "posterior"]) == 0
    rows = read_csv(Path("out/p-learning.csv"))
    assert len(rows) == 2 * 2 * 2  # models, rules, rounds
    assert rows[0]["solved"]
    assert Path("out/p-learning.png").is_file()
    about = json.loads(Path("out/p-learning.json").read_text())
    assert (about["split"], about["tasks"]) == ("test", 3)
    assert load("evaluate").main(["learning", model_file, *flags]) == 0
    assert {row["rule"] for row in read_csv(Path("out/p-learning.csv"))} == {"posterior"}


def test_evaluate_few_episodes_reports_every_rule(model_file: str) -> None:
    flags = ["--tasks", "2", "--out", "out", "--name", "p"]
    assert load("evaluate").main(["few-episodes", model_file, *flags]) == 0
    rows = read_csv(Path("out/p-few-episodes.csv"))
    assert [row["episodes"] for row in rows[:5]] == ["0", "5", "10", "20", "45"]
    assert len({row["rule"] for row in rows}) == 6
    assert all(0 <= float(row["success"]) <= 1 for row in rows)
    assert Path("out/p-few-episodes.png").is_file()


def test_evaluate_few_episodes_takes_the_rules_that_suit_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    MAML("MlpPolicy", "PointGoal-v0", meta_batch_size=2, n_episodes=2, policy_kwargs={"net_arch": [4]}).save("maml")
    flags = ["--env", "PointGoal-v0", "--tasks", "1", "--out", "out", "--name", "p"]
    assert load("evaluate").main(["few-episodes", "maml.zip", *flags]) == 0
    assert {row["rule"] for row in read_csv(Path("out/p-few-episodes.csv"))} == {"policy_gradient"}


def test_evaluate_coverage_counts_all_prior_episodes(model_file: str) -> None:
    flags = ["--tasks", "4", "--episodes", "5", "--out", "out", "--name", "p"]
    assert load("evaluate").main(["coverage", model_file, *flags]) == 0
    (row,) = read_csv(Path("out/p-coverage.csv"))
    assert row["episodes"] == "20"
    assert "150-180" in row
    assert "beyond_0.6" in row  # of goals at distance 1


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("evaluate", ["learning", "maesn-WheeledGoal-v0", "--tasks", "-3"], "must be at least 1, got -3"),
        ("evaluate", ["coverage", "maesn-PusherBlock-v0"], "expected goals at the same distance from it"),
        ("compare_curiosity", ["maesn-WheeledGoal-v0", "--n-tasks", "-97", "--csv", "a.csv"], "at least 1, got -97"),
        ("compare_curiosity", ["maesn-WheeledGoal-v0", "--csv", "a.png"], "must end in .csv, got a.png"),
        ("compare_exploration", ["--csv", "a.json"], "must end in .csv, got a.json"),
        ("compare_optimum", ["Bandit-v0", "-n", "-5"], "must be at least 1, or -1 for the default, got -5"),
        ("compare_optimum", ["Bandit-v0", "--evaluations", "0"], "--evaluations must be at least 1, got 0"),
        ("compare_optimum", ["Bandit-v0", "--tasks", "0"], "--tasks must be at least 1, or -1 for the default, got 0"),
        ("compare_optimum", ["Bandit-v0", "--first-task", "-1"], "--first-task must be at least 0, got -1"),
        ("demo", ["--env", "Bandit-v0", "-n", "2000"], "paths are known for WheeledGoal"),
        ("demo", ["--env", "PointGaol-v0"], "did you mean PointGoal"),
        ("demo", ["--env", "PointGoal-v0", "--tasks", "0"], "must be at least 1, got 0"),
        ("plot_adaptation", ["-o", "a.csv"], "the name of an image must end in one of"),
    ],
)
def test_what_cannot_be_measured_is_refused_on_one_line_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        load(script).main(flags)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_exploration_needs_an_environment_that_reports_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "CartPole-v1", "--algos", "trpo", "--seeds", "0", "-n", "2000", "--csv", "x.csv"]
    with pytest.raises(SystemExit):
        load("compare_exploration").main(flags)
    assert "expected episodes that report is_success at their end, got those of CartPole-v1" in capsys.readouterr().err


def test_optimum_is_compared_though_the_budget_is_less_than_the_evaluations(tmp_path: Path) -> None:
    table = tmp_path / "o.csv"
    assert load("compare_optimum").main(["Bandit-v0", "-n", "5", "--tasks", "20", "--csv", str(table)]) == 0
    assert len(read_csv(table)) >= 1


def test_plot_adaptation_tells_how_many_tasks_it_measured(model_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("sb3_maesn.plots.plot_adaptation_tables", lambda tables, path, title: titles.append(title))
    flags = ["-e", "PointGoal-v0", "--n-tasks", "2", "--rounds", "1", "--episodes", "2", "-o", "new/figure"]
    assert load("plot_adaptation").main(flags) == 0
    assert titles == ["PointGoalSparse-v0, 2 test tasks, 2 episodes a round"]
    assert json.loads(Path("new/figure.json").read_text())["tasks"] == 2
    assert {row["rule"] for row in read_csv(Path("new/figure.csv"))} == {"posterior"}


def test_plot_train_tells_which_file_it_wrote(train: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    train("-n", "1")
    assert load("plot_train").main(["-e", "PointGoal-v0", "-w", "3", "-o", "new/figure"]) == 0
    assert capsys.readouterr().out.endswith("Wrote new/figure.png\n")
    assert Path("new/figure.png").is_file()


def test_names_tell_models_apart() -> None:
    names = load("evaluate").short_names
    assert names(["logs/maesn/A_1/A.zip", "maesn-B"]) == ["A_1/A", "maesn-B"]
    assert names(["l/maesn/A_1/A.zip", "l/maml/A_1/A.zip"]) == ["maesn/A_1/A", "maml/A_1/A"]
    assert names(["A.zip", "A.zip"]) == ["A", "A"]


def test_benchmark_measures_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("benchmark_speed")
    monkeypatch.setattr(script, "N_TASKS", 2)
    monkeypatch.setattr(script, "N_EPISODES", 2)
    monkeypatch.setattr(script, "TRPO_BATCH", 400)
    monkeypatch.setitem(script.TRPO_SETTINGS, "batch_size", 400)
    monkeypatch.setattr(script, "SCALING_TASKS", (1,))
    monkeypatch.setattr(script, "peak_memory_gb", lambda *_: 1.0)
    table = tmp_path / "speed.csv"
    sections = ["collect", "iteration", "baselines", "trpo", "scaling", "single"]
    assert script.main(["WheeledGoal-v0", "--repeats", "1", "--csv", str(table), "--sections", *sections]) == 0
    rows = read_csv(table)
    bare = ["collect", "collect-plain", "iteration", "iteration-plain"]
    baselines = ["iteration-maml", "iteration-latent_space", "iteration-rl2", "meta-step-maml"]
    single = ["iteration-reinforce", "iteration-trpo", "iteration-vime"]
    assert [row["section"] for row in rows] == [*bare, *baselines, *sections[3:5], *single]
    assert all(float(row["value"]) > 0 for row in rows)
    assert float(rows[0]["target"]) == 0.6


def test_benchmark_compares_with_the_plain_model_too() -> None:
    physics = [load("benchmark_speed").BarePhysics("PusherBlock-v0", 4, 0, plain=plain) for plain in (False, True)]
    assert [each.physics.model.nexclude for each in physics] == [6, 0]
    assert all(each.run() > 0 for each in physics)


def test_benchmark_compares_with_physics_that_computes_what_is_observed(tmp_path: Path) -> None:
    script = load("benchmark_speed")
    table = tmp_path / "speed.csv"
    flags = ["AntGoal-v0", "WheeledGoal-v0", "--repeats", "1", "--csv", str(table), "--sections", "collect"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "N_TASKS", 1)
        patch.setattr(script, "N_EPISODES", 2)
        assert script.main(flags) == 0
    ant = ["collect", "collect-plain", "collect-observed"]
    assert [row["section"] for row in read_csv(table)] == [*ant, *ant[:2]]
    observed = script.BarePhysics("AntGoal-v0", 2, 0, observed=True)
    assert observed.run() > 0
    assert np.abs(observed.physics.state["cfrc_ext"]).sum() > 0


def test_benchmark_refuses_a_family_without_physics(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load("benchmark_speed").main(["PointGoal-v0", "--sections", "collect"])
    assert "PointGoal-v0 has no physics" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        load("benchmark_speed").main(["--repeats", "0"])
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err


def test_demo_draws_all_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--env", "PointGoal-v0", "-n", "32000", "--tasks", "6", "--rounds", "1", "--episodes", "5"]
    assert load("demo").main(flags) == 0
    for name in ("learning_curve", "adaptation_curve", "trajectories", "latents"):
        assert (tmp_path / "demo" / f"{name}.png").stat().st_size > 10_000, name
    assert "solved" in capsys.readouterr().out


def test_environment_of_a_model_is_told_by_its_name() -> None:
    names: dict[str, Any] = {
        "maesn-WheeledGoal-v0": "WheeledGoalSparse-v0",
        "logs/maesn/PointGoal-v0_3/best_model.zip": "PointGoalSparse-v0",
        os.path.join("WheeledGoal-v0_1", "PointGoalSparse-v0.zip"): "PointGoalSparse-v0",
    }
    assert {name: guess_test_env(name) for name in names} == names
    with pytest.raises(ValueError, match="say it with --env"):
        guess_test_env("best_model.zip")


def test_seed_is_recorded_where_none_was_given(train: Callable[..., Path]) -> None:
    seeds = [yaml.safe_load((train("-n", "1") / "PointGoal-v0" / "args.yml").read_text())["seed"] for _ in range(2)]
    assert np.all(np.array(seeds) >= 0)
    assert seeds[0] != seeds[1]
