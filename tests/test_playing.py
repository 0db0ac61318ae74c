"""Trained agents: found, adapted, played, measured and filmed."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from sb3_maesn import benchmarking, playing, video
from sb3_maesn.benchmarking import EvaluationPlan
from sb3_maesn.config import ConfigError
from sb3_maesn.playing import Adaptation, Episode
from sb3_maesn.run_folder import create_run_folder, write_settings
from sb3_maesn.tasks import tasks_of
from sb3_maesn.trained import AgentChoice, TrainedAgent, list_agents, load_agent
from tests.tiny import POINT, assert_same, tiny
from tests.toy import Walk


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = create_run_folder(tmp_path, "maesn", POINT)
    write_settings(folder, POINT, {}, {"env": POINT}, ["train"])
    tiny(seed=1).save(folder / f"{POINT}.zip")
    tiny(seed=2).save(folder / "best_model.zip")
    return tmp_path


class Counting:
    """Plays the action 1 and counts its steps in its state."""

    def __init__(self) -> None:
        self.starts: list[bool] = []

    def predict(self, obs: Any, state: Any, episode_start: np.ndarray, deterministic: bool) -> tuple[int, Any]:
        self.starts.append(bool(episode_start[0]))
        return 1, (0 if state is None else state) + 1


def test_the_agent_of_a_run_is_loaded(logs: Path) -> None:
    last = load_agent(AgentChoice("maesn", POINT, str(logs)))
    best = load_agent(AgentChoice("maesn", POINT, str(logs), best=True))
    assert (last.name, best.name) == ("maesn/PointGoal-v0_1/PointGoal-v0", "maesn/PointGoal-v0_1/best_model")
    assert_same(last.model, tiny(seed=1))  # type: ignore[arg-type]  # it is a MAESN
    assert (last.adapts, last.test_env_id, last.task) == (True, "PointGoalSparse-v0", ())


def test_without_a_run_the_agent_of_the_package_is_loaded(logs: Path) -> None:
    agent = load_agent(AgentChoice("maesn", "WheeledGoal-v0", str(logs)))
    assert (agent.name, agent.folder) == ("maesn-WheeledGoal-v0", None)
    for choice in (
        AgentChoice("maesn", "WheeledGoal-v0", str(logs), exp_id=2),
        AgentChoice("maesn", "WheeledGoal-v0", str(logs), best=True),
        AgentChoice("maml", "WheeledGoal-v0", str(logs)),
    ):
        with pytest.raises(FileNotFoundError, match="no log folder"):
            load_agent(choice)
    with pytest.raises(ConfigError, match="did you mean maesn"):
        load_agent(AgentChoice("mesn", POINT, str(logs)))


def test_agents_are_listed_once(logs: Path) -> None:
    names = [(choice.algo, choice.env_id) for choice in list_agents(str(logs))]
    assert names == sorted(set(names))
    assert {("maesn", POINT), ("maesn", "WheeledGoal-v0")} <= set(names)
    assert [choice.env_id for choice in list_agents(str(logs), pretrained=False)] == [POINT]
    assert list_agents(str(logs / "nowhere"), pretrained=False) == []


def test_episodes_by_hand() -> None:
    model: Any = Counting()
    env = Walk(length=4)
    env.set_task(1.0)
    episodes = playing.play(model, env, n_timesteps=10)
    assert episodes == [Episode(4.0, 4, True)] * 2  # the third has not come to an end
    assert model.starts == [True, False, False, False] * 2 + [True, False]
    seen: list[int] = []
    assert len(playing.play(model, env, n_episodes=3, watch=lambda: seen.append(env.t))) == 3
    assert seen == [1, 2, 3, 4] * 3
    assert playing.summarise(episodes) == [
        "Success rate: 100.00%",
        "2 Episodes",
        "Mean reward: 4.00 +/- 0.00",
        "Mean episode length: 4.00 +/- 0.00",
    ]
    assert "raise -n" in playing.summarise([])[0]


def test_playing_is_reproducible() -> None:
    env = gym.make(POINT)
    first, second, other = (playing.play(tiny(), env, 60, deterministic=False, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first != other


def test_adaptation_comes_before_playing() -> None:
    agent = TrainedAgent("maesn", POINT, "tiny", tiny())
    adaptation = Adaptation(["-0.6", "0.8"], n_rounds=2, n_episodes=4, rule="policy_gradient")
    model, task = playing.prepare(agent, adaptation)
    assert task == [-0.6, 0.8]
    assert not np.allclose(model.policy.latent_mean.numpy(), tiny().policy.latent_mean.numpy())  # type: ignore[operator]  # buffers are tensors
    table = playing.describe_adaptation(model).splitlines()
    assert len(table) == 2 + 2  # a header, a rule, two rounds
    assert playing.prepare(agent, Adaptation(["3"], n_rounds=0))[0] is agent.model
    with pytest.raises(ValueError, match="from 0 to 99"):
        playing.prepare(agent, Adaptation(["100"]))


def test_a_benchmark_row_counts_the_last_round() -> None:
    agent = TrainedAgent("maesn", POINT, "tiny", tiny())
    plan = EvaluationPlan(n_tasks=3, n_rounds=1, n_episodes=4)
    row = benchmarking.benchmark_row(agent, plan)
    result = benchmarking.measure_adaptation(agent, plan)
    assert row["mean_reward"] == round(float(result.returns[1].mean()), 2)
    assert (row["eval_episodes"], row["eval_timesteps"], row["n_timesteps"]) == (12, 240, "0k")
    assert row["success"] == round(float(result.success[1].mean()), 3)
    assert benchmarking.in_millions(48_900_000) == "48M"


def test_an_agent_of_one_task_plays_that_task() -> None:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", gym.make(POINT), n_steps=64, seed=0)
    agent = TrainedAgent("trpo", POINT, "ppo", model, task=("3",))
    _, task = playing.prepare(agent, Adaptation(["5"]))
    np.testing.assert_array_equal(task, tasks_of(POINT, "train", 4)[3])
    outcome = benchmarking.measure(agent, EvaluationPlan(n_episodes=3))
    assert outcome.returns.shape == (1, 3)
    assert outcome.knows_success


def test_a_film_shows_every_panel_under_its_title(tmp_path: Path) -> None:
    frames = video.film(tiny(), "PointGoalSparse-v0", [-0.6, 0.8], n_timesteps=8)
    n_frames, height, width, _ = frames.shape
    assert n_frames == -(-8 // video.steps_per_frame(gym.make(POINT).metadata["render_fps"]))
    both = video.side_by_side([frames, frames[:2]], ["before", "after"])
    assert both.shape == (n_frames, height + video.STRIP, 2 * width + video.GAP, 3)
    np.testing.assert_array_equal(both[:, video.STRIP :, :width], frames)
    np.testing.assert_array_equal(both[-1, video.STRIP :, -width:], frames[min(1, n_frames - 1)])
    assert both[0, : video.STRIP].min() < 128 < both[0, : video.STRIP].max()  # there is text
    pytest.importorskip("imageio_ffmpeg")  # the extra video
    for name in ("a.mp4", "a.gif"):
        video.write_video(tmp_path / "new" / name, both)
        assert (tmp_path / "new" / name).stat().st_size > 1000
    from PIL import Image

    with Image.open(tmp_path / "new" / "a.gif") as image:
        assert (image.size, image.n_frames) == ((both.shape[2] // 2, both.shape[1] // 2), n_frames)  # type: ignore[attr-defined]  # of animated images
    with pytest.raises(ConfigError, match=r"\.mp4 or \.gif"):
        video.write_video(tmp_path / "a.avi", both)


def test_flags_name_the_agent() -> None:
    args = argparse.Namespace(
        algo="maesn", env=POINT, folder="l", exp_id=3, load_best=False, load_checkpoint=9, load_last_checkpoint=False
    )
    args.device = "cpu"
    assert AgentChoice.from_args(args) == AgentChoice("maesn", POINT, "l", 3, False, 9, False)
