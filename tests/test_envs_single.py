"""The single environments: Gymnasium's and Stable-Baselines3's checks, tasks, and rendering."""

import sys
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_maesn.envs import FAMILIES, make_env, make_vec
from sb3_maesn.envs.rendering import Window
from sb3_maesn.envs.single import TaskEnv


def unwrapped(env: gym.Env[Any, Any]) -> TaskEnv:
    assert isinstance(env.unwrapped, TaskEnv)
    return env.unwrapped


# as of Gymnasium's own MuJoCo environments, the observations have no bounds
@pytest.mark.filterwarnings("ignore:.*A Box observation space m.*imum value is -?infinity")
@pytest.mark.parametrize("env_id", FAMILIES)
def test_gymnasium_check_env(env_id: str) -> None:
    gymnasium_check_env(unwrapped(gym.make(env_id)), skip_render_check=True)


@pytest.mark.parametrize("env_id", FAMILIES)
def test_stable_baselines_check_env(env_id: str) -> None:
    sb3_check_env(unwrapped(gym.make(env_id)))


@pytest.mark.parametrize("env_id", FAMILIES)
def test_made_by_gymnasium_it_truncates_once_at_its_horizon(env_id: str) -> None:
    env = gym.make(env_id)
    horizon = unwrapped(env).horizon
    for seed in (0, None):
        env.reset(seed=seed)
        for t in range(horizon):
            _, _, terminated, truncated, info = env.step(np.zeros(env.action_space.shape, dtype=np.float32))
            assert not terminated
            assert truncated == (t == horizon - 1)
            assert ("is_success" in info) == truncated
    assert env.spec is not None
    assert env.spec.max_episode_steps is None


def test_reset_options_and_tasks() -> None:
    env = make_env("PusherBlock-v0")
    assert env.task is None
    task = env.task_set("test", 3)[2]
    observation, _ = env.reset(seed=0, options={"task": task})
    np.testing.assert_array_equal(env.task, task)
    np.testing.assert_allclose(observation[3:13], task[3:], atol=1e-15)
    env.set_task(env.task_set("train", 1)[0])
    np.testing.assert_array_equal(env.task, task)
    env.reset()
    np.testing.assert_array_equal(env.task, env.task_set("train", 1)[0])
    with pytest.raises(ValueError, match="the only reset option is 'task', got 'layout'"):
        env.reset(options={"layout": 1})
    assert env.sample_tasks(4).shape == (4, 13)


def test_seeding_is_gymnasiums() -> None:
    env = make_env("PointGoal-v0")
    env.reset()
    assert env.np_random_seed == -1
    first, _ = env.reset(seed=3)
    assert env.np_random_seed == 3
    assert env.np_random is env._np_random
    env.reset()
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)


def test_bad_actions() -> None:
    env = make_env("PointGoal-v0")
    env.reset()
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 2\), got \(1, 3\)"):
        env.step(np.zeros(3, dtype=np.float32))
    with pytest.raises(ValueError, match=r"actions must be finite, got \[nan, 0\.0\] for member 0"):
        env.step(np.array([np.nan, 0.0], dtype=np.float32))


def test_divergence() -> None:
    env = make_env("WheeledGoal-v0")
    env.reset(seed=0)
    env._simulator.physics.state["qvel"][0] = 1e12
    observation, reward, terminated, truncated, info = env.step(np.zeros(2, dtype=np.float32))
    assert terminated
    assert not truncated
    assert np.isfinite(observation).all()
    assert np.isfinite(reward)
    assert info == {"is_success": False, "diverged": True}
    assert env.n_diverged == 1


def test_vec_envs_of_singles_are_the_batched_one() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (25, 2, 2)).astype(np.float32)
    trajectories = []
    for kind in (DummyVecEnv, SubprocVecEnv, None):
        env = make_vec("PointGoal-v0", 2) if kind is None else kind([lambda: make_env("PointGoal-v0")] * 2)
        env.env_method("set_task", np.array([0.0, 1.0]), indices=[1])
        env.seed(0)
        steps: list[Any] = [env.reset()]
        for action in actions:
            observations, rewards, dones, infos = env.step(action)
            steps += [observations, np.float32(rewards), dones]  # SubprocVecEnv keeps rewards in float64
            assert [info.get("is_success") is not None for info in infos] == dones.tolist()
        trajectories.append(steps)
        env.close()
    for other in trajectories[1:]:
        for a, b in zip(trajectories[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_stable_baselines_trains_on_singles() -> None:
    env = make_vec_env("WheeledGoal-v0", n_envs=2, seed=0)
    model = PPO("MlpPolicy", env, n_steps=50, batch_size=50, n_epochs=1, device="cpu").learn(200)
    assert model.num_timesteps == 200


# Rendering


def rendering_env(env_id: str, **kwargs: Any) -> TaskEnv:
    env = make_env(env_id, "rgb_array", **kwargs)
    env.reset(seed=0)
    try:
        env.render()
    except RuntimeError as error:
        pytest.skip(f"no OpenGL here: {error}")
    return env


@pytest.mark.parametrize("env_id", FAMILIES)
def test_frames_show_goal_and_motion(env_id: str) -> None:
    env = rendering_env(env_id)
    low, high = env.task_set("train", 8)[[0, 3]]
    env.reset(seed=1, options={"task": low})
    first = env.render()
    assert first is not None
    assert first.shape == (360, 480, 3)
    assert first.dtype == np.uint8
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 20  # something is drawn
    copy = first.copy()
    env.reset(seed=1, options={"task": high})
    other_goal = env.render()
    for _ in range(15):
        env.step(np.full(env.action_space.shape, 1.0, dtype=np.float32))  # type: ignore[arg-type]  # a Box has a shape
    moved = env.render()
    assert other_goal is not None
    assert moved is not None
    assert (first != other_goal).any()
    assert (other_goal != moved).any()
    np.testing.assert_array_equal(first, copy)
    env.close()


def test_rendering_changes_nothing() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 8)).astype(np.float32)
    trajectories: list[Any] = []
    for env in (rendering_env("AntGoal-v0", width=64, height=48), make_env("AntGoal-v0")):
        env.reset(seed=0)
        observations = []
        for action in actions:
            observations.append(env.step(action)[0])
            if env.render_mode:
                env.render()
        trajectories.append(observations)
    np.testing.assert_array_equal(*trajectories)


def test_vec_env_frames_are_tiled() -> None:
    env = make_vec("PointGoal-v0", 3, render_mode="rgb_array")
    env.seed(0)
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before render\(\)"):
        env.render()
    env.reset()
    image = env.render()
    assert image is not None
    assert image.shape == (720, 960, 3)
    images = env.get_images()
    assert len(images) == 3
    np.testing.assert_array_equal(images[1], image[:360, 480:])
    env.close()


def test_render_without_a_mode_warns() -> None:
    env = make_env("PointGoal-v0")
    env.reset()
    with pytest.warns(UserWarning, match="needs a render_mode"):
        assert env.render() is None


class FakeWindow(Window):
    def __init__(self, title: str, fps: float) -> None:
        self.title, self.fps, self.shown, self.closed = title, fps, list[Any](), False

    def show(self, frame: Any) -> None:
        self.shown.append(frame)

    def close(self) -> None:
        self.closed = True


def test_human_mode_shows_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_maesn.envs.simulator.Window", FakeWindow)
    env = make_env("PointGoal-v0", "human")
    env.reset(seed=0)
    for _ in range(3):
        env.step(np.ones(2, dtype=np.float32))
    window = env._simulator._window
    assert isinstance(window, FakeWindow)
    assert (window.title, window.fps, len(window.shown)) == ("PointGoal-v0", 10, 4)
    env.close()
    assert window.closed

    batched = make_vec("PointGoal-v0", 2, render_mode="human")
    batched.reset()
    batched.render()
    shared = batched.simulator._window
    assert isinstance(shared, FakeWindow)
    assert shared.shown[0].shape == (720, 480, 3)


def test_human_mode_without_a_display_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_display() -> None:
        raise Exception("no display name")  # a TclError, which only exists where tkinter does

    monkeypatch.setitem(sys.modules, "tkinter", SimpleNamespace(Tk=no_display))
    with pytest.raises(RuntimeError, match=r"render_mode='human' needs a display .*no display name"):
        Window("title", 10)
