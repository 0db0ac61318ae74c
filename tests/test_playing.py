"""Trained agents: found, adapted, played, measured and filmed."""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_maesn import MAESN, RL2, MultiTaskVecEnv, TrialVecEnv, benchmarking, playing, video
from sb3_maesn.benchmarking import EvaluationPlan
from sb3_maesn.config import ConfigError
from sb3_maesn.envs import make_vec
from sb3_maesn.playing import Adaptation, Episode
from sb3_maesn.run_folder import create_run_folder, write_settings
from sb3_maesn.tasks import tasks_of
from sb3_maesn.trained import AgentChoice, TrainedAgent, list_agents, load_agent
from sb3_maesn.training import ALGOS
from tests.tiny import POINT, assert_same, tiny
from tests.toy import Walk


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = create_run_folder(tmp_path, "maesn", POINT)
    write_settings(folder, POINT, {}, {"env": POINT}, ["train"])
    tiny(seed=1).save(folder / f"{POINT}.zip")
    tiny(seed=2).save(folder / "best_model.zip")
    return tmp_path


def tiny_rl2(n_episodes: int = 3) -> RL2:
    env = MultiTaskVecEnv(make_vec(POINT, 2))
    small = {"lstm_hidden_size": 8, "net_arch": [8]}
    return RL2("MlpLstmPolicy", env, meta_batch_size=2, n_episodes=n_episodes, seed=0, policy_kwargs=small)


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


@pytest.mark.parametrize("numbers", [{}, {"n_timesteps": -5}, {"n_timesteps": 0}, {"n_episodes": 0}])
def test_playing_without_an_end_is_refused(numbers: dict[str, int]) -> None:
    model: Any = Counting()
    with pytest.raises(ValueError, match="never end" if not numbers else "must be at least 1, got"):
        playing.play(model, Walk(), **numbers)  # type: ignore[arg-type]  # mypy takes the numbers for the other arguments
    assert model.starts == []


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
    assert isinstance(model, MAESN)
    assert model.adaptation is not None
    assert model.adaptation.returns.shape == (2, 1, 4)
    assert agent.model.adaptation is None  # type: ignore[attr-defined]  # it is a MAESN
    table = playing.describe_adaptation(model).splitlines()
    assert len(table) == 2 + 2  # a header, a rule, two rounds
    assert playing.prepare(agent, Adaptation(["3"], n_rounds=0))[0] is agent.model
    with pytest.raises(ValueError, match="from 0 to 99"):
        playing.prepare(agent, Adaptation(["100"]))


def test_settings_that_are_left_open_suit_the_agent() -> None:
    maesn, rl2 = TrainedAgent("maesn", POINT, "tiny", tiny()), TrainedAgent("rl2", POINT, "rl2", tiny_rl2(3))
    assert Adaptation().complete(maesn) == Adaptation(("0",), n_rounds=3, n_episodes=20)
    assert Adaptation().complete(rl2) == Adaptation(("0",), n_rounds=2, n_episodes=1)
    given = Adaptation(("3",), n_rounds=0, n_episodes=1)
    assert given.complete(maesn) == given.complete(rl2) == given
    titles = [Adaptation(n_rounds=1, n_episodes=20), Adaptation(n_rounds=2, n_episodes=1)]
    assert [each.describe() for each in titles] == ["1 round of 20 episodes", "2 episodes"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_rounds": -1}, "--rounds must be at least 0, got -1"),
        ({"n_episodes": 0}, "--episodes must be at least 1, got 0"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Adaptation(**settings)


# RL2


@pytest.mark.parametrize("discrete", [True, False])
def test_observations_of_a_trial_are_those_of_a_trial_vec_env(discrete: bool) -> None:
    single = playing.TrialObservation(Walk(discrete, length=4))
    members = MultiTaskVecEnv(DummyVecEnv([lambda: Walk(discrete, length=4)]), train_tasks=[1.0])
    trials = TrialVecEnv(members, 1)
    np.testing.assert_array_equal(single.reset(seed=0)[0], trials.reset()[0])
    for step in range(4):
        action: Any = np.int64(step % 2) if discrete else np.array([step / 4 - 0.6], np.float32)
        observation, reward, terminated, truncated, _ = single.step(action)
        expected, rewards, dones, infos = trials.step(np.array([action]))
        expected = infos[0]["terminal_observation"] if dones[0] else expected[0]  # type: ignore[index]  # no Dict
        np.testing.assert_array_equal(observation, expected)
        assert reward == pytest.approx(rewards[0])
        assert (terminated or truncated) == dones[0]
    assert single.observation_space == trials.observation_space


def test_rl2_plays_every_episode_as_the_next_of_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = TrainedAgent("rl2", POINT, "rl2", tiny_rl2())
    model, task = playing.prepare(agent, Adaptation(["2"], n_rounds=2))
    assert isinstance(model, RL2)
    assert model.adaptation is not None
    assert model.adaptation.returns.shape == (2, 1, 1)
    assert playing.describe_adaptation(model).count("\n") == 3  # a header, a rule, two episodes
    env = TrialVecEnv(MultiTaskVecEnv(DummyVecEnv([lambda: gym.make(POINT)]), train_tasks=[task]), 1)
    env.seed(0)
    inputs, observations, state = [], env.reset(), None
    for t in range(40):
        inputs.append(observations[0])
        actions, state = model.predict(observations, state, np.array([t % 20 == 0]), deterministic=True)
        observations = env.step(actions)[0]  # type: ignore[assignment]  # no Dict
    seen: list[np.ndarray] = []
    predict = model.predict

    def spy(observation: Any, *args: Any) -> Any:
        seen.append(observation)
        return predict(observation, *args)

    monkeypatch.setattr(model, "predict", spy)
    assert len(playing.play(model, playing.make_stage(POINT, task), n_episodes=2)) == 2
    np.testing.assert_allclose(seen, inputs, rtol=1e-5, atol=1e-6)
    unadapted, _ = playing.prepare(agent, Adaptation(["2"], n_rounds=0))
    assert unadapted is agent.model
    before, after = (playing.play(each, playing.make_stage(POINT, task), 20) for each in (unadapted, model))
    assert len(before) == 1
    assert before != after  # the memory of the trial counts


@pytest.mark.parametrize(
    ("settings", "given"),
    [({"rule": "kernel"}, "--rule kernel"), ({"n_rounds": 0, "n_episodes": 20}, "--episodes 20")],
)
def test_rl2_refuses_what_it_has_no_use_for(settings: dict[str, Any], given: str) -> None:
    agent = TrainedAgent("rl2", POINT, "rl2", tiny_rl2())
    with pytest.raises(ConfigError, match=f"RL2 adapts by its memory, .*: leave out {given}"):
        playing.prepare(agent, Adaptation(**settings))


def test_the_recipe_chooses_the_test_environment() -> None:
    agents = {algo: TrainedAgent(algo, POINT, algo, tiny()) for algo in ALGOS}
    assert {algo for algo, agent in agents.items() if agent.test_env_id == "PointGoalSparse-v0"} == {
        "latent_space",
        "maesn",
        "maml",
    }
    assert all(agent.test_env_id == ALGOS[algo].test_env_id(POINT) for algo, agent in agents.items())


def test_rl2_is_measured_with_the_reward_of_its_training() -> None:
    agent = TrainedAgent("rl2", POINT, "rl2", tiny_rl2())
    result = benchmarking.measure_adaptation(agent, EvaluationPlan(n_tasks=2, n_rounds=1, n_episodes=2))
    expected = tiny_rl2().evaluate_trials(POINT, tasks_of(POINT, "test", 2), 2, n_trials=2)
    np.testing.assert_array_equal(result.returns, expected.returns)


# Benchmark and tasks


def test_a_benchmark_row_counts_the_last_round() -> None:
    agent = TrainedAgent("maesn", POINT, "tiny", tiny())
    plan = EvaluationPlan(n_tasks=3, n_rounds=1, n_episodes=4)
    row = benchmarking.benchmark_row(agent, plan)
    result = benchmarking.measure_adaptation(agent, plan)
    assert row["mean_reward"] == round(float(result.returns[1].mean()), 2)
    assert (row["eval_episodes"], row["eval_timesteps"], row["n_timesteps"]) == (12, 240, "0k")
    assert row["success"] == round(float(result.success[1].mean()), 3)
    assert benchmarking.in_millions(48_900_000) == "48M"


def single_task(env_id: str = POINT, *task: str) -> TrainedAgent:
    return TrainedAgent("trpo", env_id, "ppo", PPO("MlpPolicy", gym.make(env_id), n_steps=64, seed=0), task=task)


def test_an_agent_of_one_task_plays_that_task() -> None:
    agent, learned = single_task(POINT, "3"), tasks_of(POINT, "train", 4)[3]
    for words in ([], ["3"], ["train:3"], [repr(float(number)) for number in learned]):
        model, task = playing.prepare(agent, Adaptation(words))
        assert model is agent.model
        np.testing.assert_array_equal(task, learned)
    outcome = benchmarking.measure(agent, EvaluationPlan(n_episodes=3))
    assert outcome.returns.shape == (1, 3)
    assert outcome.knows_success


@pytest.mark.parametrize("words", [["5"], ["test:3"], ["0.6", "0.8"]])
def test_an_agent_of_one_task_plays_no_other(words: list[str]) -> None:
    message = rf"ppo was trained with --task 3 .* and plays no other task, got --task {' '.join(words)}"
    with pytest.raises(ConfigError, match=message):
        playing.prepare(single_task(POINT, "3"), Adaptation(words))


def test_a_task_may_be_chosen_where_the_run_does_not_tell_it() -> None:
    _, task = playing.prepare(single_task(), Adaptation(["5"]))
    np.testing.assert_array_equal(task, tasks_of(POINT, "train", 6)[5])
    assert playing.prepare(single_task(), Adaptation())[1] is None


def test_an_environment_without_tasks_has_none_to_choose() -> None:
    agent = single_task("CartPole-v1")
    assert playing.prepare(agent, Adaptation())[1] is None
    with pytest.raises(ConfigError, match="CartPole-v1 has no tasks to choose from: leave --task out"):
        playing.prepare(agent, Adaptation(["3"]))


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"n_rounds": 2}, "--rounds 2"),
        ({"n_episodes": 20, "rule": "kernel"}, "--episodes 20 and --rule kernel"),
    ],
)
def test_an_agent_of_one_task_does_not_adapt(settings: dict[str, Any], given: str) -> None:
    with pytest.raises(ConfigError, match=f"trpo does not adapt: leave out {given}"):
        playing.prepare(single_task(POINT, "3"), Adaptation(**settings))
    assert Adaptation(n_rounds=0).complete(single_task(POINT, "3")).n_rounds == 0


class Few(Walk):
    """A walk with two tasks in every set."""

    def task_set(self, split: str, n_tasks: int = 100) -> list[float]:
        return [-1.0, 1.0][:n_tasks]


def test_as_many_tasks_are_listed_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for env_id, entry_point in {"Walk-v0": "tests.toy:Walk", "Few-v0": "tests.test_playing:Few"}.items():
        monkeypatch.setitem(gym.registry, env_id, EnvSpec(env_id, entry_point))
    for env_id in (POINT, "PusherBlock-v0", "Walk-v0"):
        hundred, more = tasks_of(env_id, "test", 100), tasks_of(env_id, "test", 130)
        assert (len(hundred), len(more)) == (100, 130)
        np.testing.assert_array_equal(more[:100], hundred)
        for n in (0, -3):
            with pytest.raises(ConfigError, match=f"the number of tasks must be at least 1, got {n}"):
                tasks_of(env_id, "test", n)
    assert tasks_of("Few-v0", "test", 2) == [-1.0, 1.0]
    with pytest.raises(ConfigError, match="Few-v0 has only 2 test tasks, expected 3"):
        tasks_of("Few-v0", "test", 3)


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
