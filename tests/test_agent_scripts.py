"""The scripts that use trained agents: what they print and write, and how they refuse bad input."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import TRPO

from sb3_maesn import MAESN, benchmarking, plots, video
from sb3_maesn.checkpoints import read_rounds
from sb3_maesn.envs import rendering
from sb3_maesn.run_folder import create_run_folder, write_settings
from tests.test_playing import tiny_rl2
from tests.test_scripts import load, read_csv
from tests.tiny import POINT, tiny

QUICK = ["--rounds", "1", "--episodes", "4"]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs with everything that training writes, in ``logs`` of the current directory."""
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        folder = create_run_folder("logs", "maesn", POINT)
        write_settings(folder, POINT, {"n_timesteps": 100}, {"env": POINT, "task": []}, ["train"])
        tiny(seed=seed).save(folder / f"{POINT}.zip")
        episodes = [f"{-i}.0,20,{i}.5,{i % 2 == 0}" for i in range(30)]
        (folder / "0.monitor.csv").write_text("\n".join(["#{}", "r,l,t,is_success", *episodes]) + "\n")
        results = np.arange(6.0).reshape(2, 3) + seed
        np.savez(folder / "evaluations.npz", timesteps=np.array([10, 20]), results=results)
    return tmp_path / "logs"


def test_enjoy_adapts_and_plays(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--env", POINT, "--exp-id", "1", "--task", "3", "--no-render", "-n", "45", "--stochastic", *QUICK]
    assert load("enjoy").main(flags) == 0
    printed = capsys.readouterr().out
    assert "Loaded maesn/PointGoal-v0_1/PointGoal-v0" in printed
    assert "PointGoalSparse-v0, task" in printed
    assert printed.count("Episode Reward") == 2
    assert "Success rate: " in printed
    assert load("enjoy").main([*flags, "--verbose", "0"]) == 0
    assert capsys.readouterr().out == ""


def trpo(env_id: str) -> TRPO:
    return TRPO("MlpPolicy", gym.make(env_id), n_steps=64, batch_size=64, seed=0)


@pytest.fixture
def other_logs(logs: Path) -> Path:
    """Runs of RL2, of an algorithm that learned training task 3, and of one whose environment has no tasks."""
    for algo, model in {"rl2": tiny_rl2(3), "trpo": trpo(POINT)}.items():
        folder = create_run_folder("logs", algo, POINT)
        write_settings(folder, POINT, {}, {"env": POINT, "task": ["3"] if algo == "trpo" else []}, ["train"])
        model.save(folder / f"{POINT}.zip")
    folder = create_run_folder("logs", "trpo", "CartPole-v1")
    write_settings(folder, "CartPole-v1", {}, {"env": "CartPole-v1", "task": []}, ["train"])
    trpo("CartPole-v1").save(folder / "CartPole-v1.zip")
    return logs


@pytest.mark.parametrize(("rounds", "n_rows"), [([], 2), (["--rounds", "1"], 1), (["--rounds", "0"], 0)])
def test_enjoy_plays_rl2(other_logs: Path, capsys: pytest.CaptureFixture[str], rounds: list[str], n_rows: int) -> None:
    assert load("enjoy").main(["--algo", "rl2", "--env", POINT, "--no-render", "-n", "45", *rounds]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("PointGoal-v0, task [")
    assert sum(line.startswith("    ") for line in lines) == n_rows
    assert "2 Episodes" in lines


def test_enjoy_plays_the_trained_task(other_logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ([], ["--task", "3"]):
        assert load("enjoy").main(["--algo", "trpo", "--env", POINT, "--no-render", "-n", "25", *task]) == 0
    first, second = capsys.readouterr().out.split("Loaded")[1:]
    assert first == second
    assert load("enjoy").main(["--algo", "trpo", "--env", "CartPole-v1", "--no-render", "-n", "25"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "CartPole-v1"


@pytest.mark.parametrize(
    ("flags", "titles", "name"),
    [
        (["rl2"], ["before adaptation", "after 2 episodes"], "PointGoal-v0-task-0"),
        (["rl2", "--rounds", "0"], ["rl2/PointGoal-v0_1/PointGoal-v0"], "PointGoal-v0-task-0"),
        (["maesn", *QUICK], ["before adaptation", "after 1 round of 4 episodes"], "PointGoalSparse-v0-task-0"),
        (["trpo"], ["trpo/PointGoal-v0_1/PointGoal-v0"], "PointGoal-v0-task-3"),
    ],
)
def test_record_video_films_all_kinds_of_agents(
    other_logs: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], titles: list[str], name: str
) -> None:
    written: list[Path] = []
    seen: list[str] = []

    def side_by_side(panels: list[np.ndarray], titles: list[str]) -> np.ndarray:
        assert len(panels) == len(titles)
        seen.extend(titles)
        return panels[0]

    monkeypatch.setattr(video, "side_by_side", side_by_side)
    monkeypatch.setattr(video, "write_video", lambda path, _: written.append(path))
    monkeypatch.setattr(video, "check_writers", lambda: None)
    assert load("record_video").main(["--env", POINT, "-n", "6", "-o", "v", "--algo", *flags]) == 0
    assert seen == titles
    run = f"{flags[0]}-{POINT}_{2 if flags[0] == 'maesn' else 1}-{POINT}"
    assert [path.name for path in written] == [f"{run}-{name}.mp4", f"{run}-{name}.gif"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("enjoy", ["--no-render", "-n", "-5"], "--n-timesteps must be at least 1, got -5"),
        ("enjoy", ["--no-render", "--rounds", "-1"], "--rounds must be at least 0, got -1"),
        ("enjoy", ["--no-render", "--episodes", "0"], "--episodes must be at least 1, got 0"),
        ("enjoy", ["--no-render", "--seed", "-1"], "--seed must be at least 0, got -1"),
        ("enjoy", [], "cannot show PointGoalSparse-v0: no display; --no-render opens no window"),
        ("record_video", ["--rounds", "-1"], "--rounds must be at least 0, got -1"),
        ("record_video", [], "cannot show PointGoalSparse-v0: no OpenGL"),
    ],
)
def test_what_cannot_be_played_is_refused_before_the_adaptation(
    logs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    flags: list[str],
    message: str,
) -> None:
    def broken(reason: str) -> Callable[..., None]:
        def raise_error(*_: object) -> None:
            raise RuntimeError(reason)

        return raise_error

    monkeypatch.setattr(rendering.Window, "__init__", broken("no display"))
    if script == "record_video":
        monkeypatch.setattr(rendering.PlaneRenderer, "render", broken("no OpenGL"))
    monkeypatch.setattr(MAESN, "adapt", lambda *_, **__: pytest.fail("it adapted"))
    with pytest.raises(SystemExit):
        load(script).main(["--env", POINT, *flags])
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("script", ["enjoy", "record_video"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algo", "rl2", "--env", POINT, "--rule", "kernel"], "leave out --rule kernel"),
        (["--algo", "rl2", "--env", POINT, "--episodes", "20"], "leave out --episodes 20"),
        (["--algo", "trpo", "--env", POINT, "--task", "7"], "was trained with --task 3 ("),
        (["--algo", "trpo", "--env", "CartPole-v1", "--task", "3"], "CartPole-v1 has no tasks to choose from"),
    ],
)
def test_flags_that_make_no_sense_are_refused(
    other_logs: Path, capsys: pytest.CaptureFixture[str], script: str, flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(script).main(flags)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_record_video_writes_both_formats(logs: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")  # the extra video
    assert load("record_video").main(["--env", POINT, "-n", "6", "--task", "-0.6", "0.8", *QUICK]) == 0
    videos = logs / "maesn" / "PointGoal-v0_2" / "videos"
    assert sorted(path.suffix for path in videos.iterdir()) == [".gif", ".mp4"]


def test_record_video_misses_the_extra_before_it_films(
    logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr("sb3_maesn.video.film", lambda *_, **__: pytest.fail("filmed a video that cannot be written"))
    with pytest.raises(SystemExit):
        load("record_video").main(["--env", POINT, "-n", "6", *QUICK])
    assert "an MP4 needs imageio-ffmpeg: pip install 'sb3_maesn[video]'" in capsys.readouterr().err


def test_plots_of_training_are_drawn(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load("plot_train").main(["-e", POINT, "-w", "10", "-y", "success", "-o", "p/train.png"]) == 0
    assert Path("p/train.png").stat().st_size > 5000
    assert load("all_plots").main(["-e", POINT, "-o", "p"]) == 0
    (row,) = read_csv(Path("p/results.csv"))
    assert (row["runs"], row["timesteps"], row["mean"]) == ("2", "20", "5.5")  # last rows 4 5 6 and 5 6 7
    assert f"| {POINT} | maesn-logs | 2 |" in capsys.readouterr().out
    assert Path(f"p/{POINT}.png").is_file()


def test_roots_of_the_same_name_are_told_apart(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("logs", "other/logs")
    assert load("all_plots").main(["-e", POINT, "-f", "logs", "other/logs"]) == 0
    printed = capsys.readouterr().out
    assert "| maesn-logs | 2 |" in printed
    assert "| maesn-other/logs | 2 |" in printed


def test_plot_adaptation_measures_and_draws_its_own_tables_again(logs: Path) -> None:
    script = load("plot_adaptation")
    assert script.main(["-e", POINT, "--n-tasks", "2", "-o", "p/a.png", *QUICK]) == 0
    assert [row["round"] for row in read_csv(Path("p/a.csv"))] == ["0", "1"]
    assert script.main(["p/a.csv", "-o", "p/b.png"]) == 0
    assert Path("p/b.png").stat().st_size > 5000


def test_agents_that_see_different_rewards_are_told_apart(other_logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[list[str]] = []
    monkeypatch.setattr(plots, "plot_adaptation_tables", lambda tables, *_: names.append(list(tables)))
    command = ["-a", "maesn", "rl2", "-e", POINT, "--n-tasks", "2", "-o", "p/a.png", *QUICK]
    assert load("plot_adaptation").main(command) == 0
    assert load("plot_adaptation").main(["p/a.csv", "-o", "p/b.png"]) == 0
    assert [name.rpartition(", ")[2] for drawn in names for name in drawn] == ["PointGoalSparse-v0", "PointGoal-v0"] * 2
    rows = read_csv(Path("p/a.csv"))
    assert [row["episodes"] for row in rows] == ["0", "4", "0", "1"]  # a round of RL2 is an episode
    assert json.loads(Path("p/a.json").read_text())["env"] == "PointGoal-v0, PointGoalSparse-v0"
    _, about = read_rounds(Path("p/a.csv"), "posterior")
    assert about["env"] == "PointGoalSparse-v0"


def test_benchmark_is_a_table_of_all_agents(logs: Path) -> None:
    create_run_folder("logs", "maesn", "AntGoal-v0")  # without a model
    assert load("benchmark").main(["--only", POINT, "--n-tasks", "2", *QUICK]) == 0
    (row,) = read_csv(Path("logs/benchmark/benchmark.csv"))
    assert list(row)[:7] == [
        "algo",
        "env_id",
        "mean_reward",
        "std_reward",
        "n_timesteps",
        "eval_timesteps",
        "eval_episodes",
    ]
    assert json.loads(Path("logs/benchmark/benchmark.json").read_text())["split"] == "test"
    assert "| maesn | PointGoal-v0 |" in Path("logs/benchmark/benchmark.md").read_text()


class Thermostat(gym.Env[np.ndarray, np.ndarray]):
    """A task is a single number, success is not reported, and nothing can be rendered."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    target = 0.0

    def sample_tasks(self, n: int) -> list[float]:
        return list(self.np_random.uniform(-2.0, 2.0, n))

    def set_task(self, task: float) -> None:
        self.target = float(task)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.room = np.zeros(1, np.float32)
        return self.room, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.room = np.clip(self.room + 0.5 * action, -10.0, 10.0).astype(np.float32)
        return self.room, -abs(float(self.room[0]) - self.target), False, False, {}


@pytest.fixture
def thermostat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs of two algorithms on an environment of the user's own; yields its id."""
    monkeypatch.chdir(tmp_path)
    gym.register("Thermostat-v0", f"{__name__}:Thermostat", max_episode_steps=5)
    few = ["--env", "Thermostat-v0", "--eval-freq", "-1", "--verbose", "0", "-n", "20", "--hyperparams", "n_episodes:2"]
    assert load("train").main([*few, "meta_batch_size:2", "n_prior_episodes:null", "balance_episodes:false"]) == 0
    assert load("train").main(["--algo", "reinforce", "--task", "1.5", *few]) == 0
    yield "Thermostat-v0"
    gym.registry.pop("Thermostat-v0")


def test_an_environment_of_ones_own_is_adapted_to_and_played(
    thermostat: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("enjoy").main(["--env", thermostat, "--no-render", "-n", "5", "--task", "1.5", *QUICK]) == 0
    assert "Thermostat-v0, task 1.5" in capsys.readouterr().out
    model = f"logs/maesn/{thermostat}_1/{thermostat}.zip"
    assert load("adapt").main([model, "--env", thermostat, "--task", "-0.5", *QUICK]) == 0
    with pytest.raises(SystemExit):
        load("adapt").main([model, "--env", thermostat, "--task", "1.5", "2.5", *QUICK])
    assert "a task of this environment is a single number, got '1.5 2.5'" in capsys.readouterr().err
    assert load("benchmark").main(["--no-pretrained", "--n-tasks", "2", *QUICK]) == 0
    assert [row["algo"] for row in read_csv(Path("logs/benchmark/benchmark.csv"))] == ["maesn", "reinforce"]


def test_an_agent_that_cannot_be_measured_is_left_out_of_the_benchmark(
    thermostat: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("out of order")

    monkeypatch.setattr(benchmarking, "prepare", fail)
    assert load("benchmark").main(["--no-pretrained", "--n-tasks", "2", *QUICK]) == 0
    assert "left out: TypeError" in capsys.readouterr().err
    assert [row["algo"] for row in read_csv(Path("logs/benchmark/benchmark.csv"))] == ["maesn"]


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("enjoy", ["--algo", "mason"], "did you mean maesn"),
        ("enjoy", ["--env", "PointGaol-v0"], "did you mean PointGoal"),
        ("enjoy", ["--env", "CartPole-v1"], "no log folder logs/maesn/CartPole-v1_1"),
        ("enjoy", ["-f", "nowhere"], "no log folder nowhere"),
        ("enjoy", ["--exp-id", "7"], "PointGoal-v0_7"),
        ("enjoy", ["--load-best"], "no best_model.zip in logs/maesn/PointGoal-v0_2, which holds PointGoal-v0.zip"),
        ("enjoy", ["--load-checkpoint", "5"], "no rl_model_5_steps.zip"),
        ("enjoy", ["--load-last-checkpoint"], "no checkpoint"),
        ("enjoy", ["--task", "100"], "from 0 to 99"),
        ("enjoy", ["--task", "left"], "an index or"),
        ("enjoy", ["--rule", "magic"], "posterior"),
        ("enjoy", ["--device", "abacus"], "abacus"),
        ("record_video", ["--task", "100"], "from 0 to 99"),
        ("plot_train", ["-e", POINT, "-w", "1000"], "nothing to draw"),
        ("record_video", ["-n", "0"], "--n-timesteps must be at least 1, got 0"),
        ("plot_train", ["-e", "AntGoal-v0"], "nothing to draw"),
        ("plot_train", ["-e", POINT, "-w", "0"], "--episode-window must be at least 1, got 0"),
        ("all_plots", ["-e", "AntGoal-v0"], "no evaluations"),
        ("all_plots", ["-e", POINT, "-k", "success"], "must be one of results, successes, ep_lengths, got 'success'"),
        ("all_plots", ["-f", "a", "b", "-l", "c", "c"], "labels that differ, got c, c"),
        ("all_plots", ["-l", "a", "b"], "one label for each of 1 folders, got 2"),
        ("plot_adaptation", ["nowhere.csv"], "nowhere.csv"),
        ("plot_adaptation", ["logs/maesn/PointGoal-v0_1/PointGoal-v0/args.yml"], "no table of adaptation"),
        ("benchmark", ["--log-dir", "nowhere", "--no-pretrained"], "no agents in nowhere"),
        ("adapt", ["nope.zip"], "there is no model file nope.zip"),
        ("evaluate", ["learning", "nope"], "there is no model file nope"),
        ("compare_curiosity", ["nope", "--csv", "table.csv"], "there is no model file nope"),
        ("tune", ["--algo", "mason"], "did you mean maesn"),
        ("tune", ["--env", "PointGaol-v0"], "did you mean PointGoal"),
        ("tune", ["-params", "metabatch_size:3"], "did you mean meta_batch_size"),
        ("tune", ["--start", "target_lk:3"], "did you mean target_kl"),
        ("tune", ["--pruner", "medain"], "did you mean median"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    logs: Path, capsys: pytest.CaptureFixture[str], script: str, flags: list[str], message: str
) -> None:
    command = flags
    if script in ("enjoy", "record_video", "tune") and "--env" not in flags:
        command = [*flags, "--env", POINT]
    with pytest.raises(SystemExit) as stopped:
        load(script).main([*command, *(["--no-render"] if script == "enjoy" else [])])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
