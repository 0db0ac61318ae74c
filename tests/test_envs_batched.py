"""The batched VecEnv: the same as a plain MuJoCo loop and as single environments, and Stable-Baselines3's contract."""

import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
from mujoco.batch import SimulationError
from numpy.typing import NDArray
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from sb3_maesn.envs import BatchedTaskVecEnv, make_env, make_family, make_vec
from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.mujoco_physics import MujocoPhysics
from sb3_maesn.envs.task_family import Array

MUJOCO = [f"{name}{kind}-v0" for name in ("WheeledGoal", "AntGoal", "PusherBlock") for kind in ("", "Sparse")]
ALL = [*MUJOCO, "PointGoal-v0", "PointGoalSparse-v0"]
N = 3


def random_actions(env_id: str, n_steps: int, n: int = N) -> NDArray[np.float32]:
    (size,) = make_family(env_id).action_space.shape or ()
    return np.random.default_rng(7).uniform(-1.3, 1.3, (n_steps, n, size)).astype(np.float32)


def physics(env: BatchedTaskVecEnv) -> MujocoPhysics:
    assert isinstance(env.simulator.physics, MujocoPhysics)
    return env.simulator.physics


# The same as a plain loop


def plain_episode(
    family: MujocoFamily, task: Array, seed: int, actions: NDArray[np.float32]
) -> tuple[list[Array], list[float]]:
    """One episode of one MjData with mj_step, and mj_forward where the family reads what mj_step leaves behind."""
    model, rng = family.model, np.random.Generator(np.random.PCG64(seed))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = family.initial_state(task, rng)
    fields = ("qpos", "qvel", *family.derived)
    if family.derived:
        mujoco.mj_forward(model, data)
    observations, rewards = [family.observation({f: getattr(data, f)[None] for f in fields})[0]], []
    for action in actions:
        controls = family.controls(action.astype(np.float64)[None])
        data.ctrl[:] = controls[0]
        mujoco.mj_step(model, data)
        if family.derived:
            mujoco.mj_forward(model, data)
        state = {f: getattr(data, f)[None] for f in fields}
        observations.append(family.observation(state)[0])
        rewards.append(float(family.reward(state, controls, task[None])[0]))
    return observations, rewards


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("env_id", MUJOCO)
def test_batched_is_a_plain_mujoco_loop_bit_for_bit(env_id: str, n_threads: int) -> None:
    env = make_vec(env_id, N, n_threads)
    family = env.family
    assert isinstance(family, MujocoFamily)
    tasks = family.task_set("validation", N)
    env.set_tasks(tasks)
    env.seed(11)
    observations = [env.reset()]
    actions = random_actions(env_id, env.horizon)
    rewards, ends, alive = [], np.zeros(N, dtype=int), np.ones(N, dtype=bool)
    for t, action in enumerate(actions):
        observation, reward, dones, infos = env.step(action)
        last = np.stack([info.get("terminal_observation", o) for info, o in zip(infos, observation, strict=True)])
        observations.append(last)
        rewards.append(reward)
        for member in np.flatnonzero(dones & alive):
            ends[member], alive[member] = t + 1, False
    assert not alive.any()
    assert max(ends) == env.horizon
    for i, end in enumerate(ends.tolist()):
        expected_observations, expected_rewards = plain_episode(family, tasks[i], 11 + i, actions[:end, i])
        np.testing.assert_array_equal(np.stack(observations)[: end + 1, i], expected_observations)
        np.testing.assert_array_equal(np.stack(rewards)[:end, i], np.array(expected_rewards, dtype=np.float32))


@pytest.mark.parametrize("env_id", ALL)
def test_batched_is_single_bit_for_bit(env_id: str) -> None:
    """Over an episode and into the next, with tasks the members draw themselves in the first one."""
    env = make_vec(env_id, N, 2)
    env.seed(5)
    observations = env.reset()
    singles = [make_env(env_id) for _ in range(N)]
    for i, single in enumerate(singles):
        np.testing.assert_array_equal(single.reset(seed=5 + i)[0], observations[i])
        np.testing.assert_array_equal(single.task, env.get_attr("task", i)[0])
    next_tasks = env.family.task_set("test", N)
    env.set_tasks(next_tasks)
    for single, task in zip(singles, next_tasks, strict=True):
        single.set_task(task)
    for action in random_actions(env_id, env.horizon + 5):
        observations, rewards, dones, infos = env.step(action)
        for i, single in enumerate(singles):
            observation, reward, terminated, truncated, info = single.step(action[i])
            assert rewards[i] == np.float32(reward)
            assert dones[i] == (terminated or truncated)
            if dones[i]:
                assert infos[i]["is_success"] == info["is_success"]
                assert infos[i]["TimeLimit.truncated"] == truncated
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observation)
                observation, _ = single.reset()
                np.testing.assert_array_equal(single.task, next_tasks[i])
            else:
                assert infos[i] == info == {}
            np.testing.assert_array_equal(observations[i], observation)


@pytest.mark.parametrize("env_id", ALL)
def test_what_is_handed_out_is_never_overwritten(env_id: str) -> None:
    env = make_vec(env_id, N, 1)
    env.seed(0)
    handed_out: list[NDArray[Any]] = [env.reset()]
    before = [handed_out[0].copy()]
    for action in random_actions(env_id, env.horizon + 2):
        given = action.copy()
        observations, rewards, dones, infos = env.step(action)
        arrays = [observations, rewards, dones, *env.get_attr("task")]
        arrays += [info["terminal_observation"] for info in infos if info]
        handed_out += arrays
        before += [array.copy() for array in arrays]
        np.testing.assert_array_equal(action, given)
    env.reset()
    for array, copy in zip(handed_out, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("env_id", MUJOCO)
def test_members_do_not_depend_on_each_other(env_id: str) -> None:
    """A member among others, restarted at other times than they, is a member alone."""
    actions = random_actions(env_id, 30, 5)
    env, alone = make_vec(env_id, 5, 2), make_vec(env_id, 1, 1)
    tasks = env.family.task_set("train", 5)
    env.set_tasks(tasks)
    alone.set_tasks(tasks[3:4])
    env.seed(0)
    alone.seed(3)
    np.testing.assert_array_equal(env.reset()[3], alone.reset()[0])
    for action in actions:
        np.testing.assert_array_equal(env.step(action)[0][3], alone.step(action[3:4])[0][0])


# The contract of a VecEnv


def test_episode_end() -> None:
    env = make_vec("PointGoal-v0", 2)
    env.set_tasks([[1.0, 0.0], [0.0, 1.0]])
    env.seed(0)
    env.reset()
    to_first_goal = np.array([[0.5, 0.0], [0.5, 0.0]])
    for t in range(20):
        observations, _, dones, infos = env.step(to_first_goal)
        assert dones.tolist() == [t == 19] * 2
    assert [info["is_success"] for info in infos] == [True, False]
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert not any("diverged" in info for info in infos)
    np.testing.assert_allclose(infos[0]["terminal_observation"], [1.0, 0.0], atol=0.05)
    assert np.abs(observations).max() < 0.1  # the next episode's start


def test_falling_terminates_and_restarts_only_that_member() -> None:
    env = make_vec("AntGoal-v0", 3, 1)
    env.seed(0)
    env.reset()
    physics(env).state["qpos"][1, 2] = 1.2
    observations, _, dones, infos = env.step(np.zeros((3, 8)))
    assert dones.tolist() == [False, True, False]
    assert infos[1]["is_success"] is infos[1]["TimeLimit.truncated"] is False
    assert "diverged" not in infos[1]
    assert infos[1]["terminal_observation"][2] > 1.0
    assert observations[1, 2] == pytest.approx(0.55, abs=0.05)
    assert env.get_attr("elapsed_steps") == [1, 0, 1]


def test_a_task_counts_from_the_next_reset() -> None:
    env = make_vec("PointGoal-v0", 3)
    goals = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert env.get_attr("task") == [None] * 3
    env.set_tasks(goals)
    env.reset()
    env.env_method("set_task", [0.5, 0.5], indices=[1])
    env.set_tasks([[0.1, 0.2]], indices=[-1])
    env.set_attr("task", [0.3, 0.4], indices=0)
    np.testing.assert_array_equal(env.get_attr("task"), goals)
    rewards = env.step(np.zeros((3, 2)))[1]
    np.testing.assert_allclose(rewards, -1.0, atol=0.05)
    for _ in range(19):
        env.step(np.zeros((3, 2)))
    np.testing.assert_array_equal(env.get_attr("task"), [[0.3, 0.4], [0.5, 0.5], [0.1, 0.2]])
    env.env_method("set_task", None, indices=[0])
    env.reset()
    assert np.linalg.norm(env.get_attr("task", [0])[0]) == pytest.approx(1.0)  # drawn from the distribution again


def test_unset_tasks_are_drawn_for_every_episode() -> None:
    env = make_vec("PointGoal-v0", 2)
    env.seed(0)
    env.reset()
    first = np.array(env.get_attr("task"))
    env.reset()
    assert (np.array(env.get_attr("task")) != first).all()
    assert (first[0] != first[1]).any()


def test_seeds_and_options() -> None:
    env = make_vec("WheeledGoal-v0", 3, 1)
    assert env.seed(4) == [4, 5, 6]
    first = env.reset()
    second = env.reset()
    assert (first != second).any()
    env.seed(4)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(env.reset(), second)
    env.set_options({"task": [1.0, 1.0]})
    env.reset()
    np.testing.assert_array_equal(env.get_attr("task"), np.ones((3, 2)))
    env.set_options([{}, {"task": [0.5, 0.5]}, {}])
    env.reset()
    np.testing.assert_array_equal(env.get_attr("task"), [[1.0, 1.0], [0.5, 0.5], [1.0, 1.0]])
    env.set_options({"goal": 1})
    with pytest.raises(ValueError, match="the only reset option is 'task', got 'goal'"):
        env.reset()


def test_attributes_and_methods_of_members() -> None:
    env = make_vec("AntGoalSparse-v0", 3, 1)
    assert env.get_attr("horizon") == [200] * 3
    assert env.get_attr("render_mode", 1) == [None]
    assert env.has_attr("np_random")
    assert not env.has_attr("nothing")
    with pytest.raises(AttributeError, match="nothing"):
        env.get_attr("nothing")
    env.set_attr("note", "mine", indices=[0, 2])
    assert env.get_attr("note", [0, 2]) == ["mine", "mine"]
    generator = np.random.default_rng(0)
    env.set_attr("np_random", generator, indices=1)
    assert env.get_attr("np_random", 1)[0] is generator
    np.testing.assert_array_equal(env.env_method("task_set", "test", indices=[0])[0], env.family.task_set("test"))
    assert env.env_method("sample_tasks", 5, indices=[0])[0].shape == (5, 2)
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert env.get_attr("family", 0)[0].sparse


def test_a_negative_seed_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        make_vec("PusherBlock-v0", 1).simulator.seed(0, -1)  # whose episodes draw nothing


def test_a_seeded_member_samples_tasks_reproducibly() -> None:
    env = make_vec("PointGoal-v0", 2)
    draws = []
    for _ in range(2):
        env.seed(3)
        env.reset()
        draws.append(env.env_method("sample_tasks", 4, indices=[1])[0])
    np.testing.assert_array_equal(*draws)


def test_stable_baselines_wrappers() -> None:
    env = VecFrameStack(VecNormalize(VecMonitor(make_vec("WheeledGoal-v0", 2, 1))), 2)
    env.seed(0)
    assert env.reset().shape == (2, 24)  # type: ignore[union-attr]  # an array: the space is a Box
    for action in random_actions("WheeledGoal-v0", 200, 2):
        observations, _, dones, infos = env.step(action)
    assert np.isfinite(observations).all()  # type: ignore[arg-type]  # an array, as above
    assert dones.all()
    assert infos[0]["episode"]["l"] == 200
    assert infos[0]["terminal_observation"].shape == (24,)


@pytest.mark.parametrize("algorithm", [PPO, TRPO])
@pytest.mark.parametrize("env_id", ["AntGoal-v0", "PusherBlock-v0", "WheeledGoalSparse-v0", "PointGoal-v0"])
def test_stable_baselines_algorithms_train(algorithm: type[PPO] | type[TRPO], env_id: str) -> None:
    env = VecMonitor(make_vec(env_id, 4, 1))
    model = algorithm("MlpPolicy", env, n_steps=110, batch_size=110, seed=0, device="cpu")
    model.learn(880)
    assert model.num_timesteps == 880
    observations = env.reset()
    assert isinstance(observations, np.ndarray)
    action, _ = model.predict(observations, deterministic=True)
    assert env.action_space.shape is not None
    assert np.asarray(action).shape == (4, *env.action_space.shape)


# Bad input


def test_bad_actions() -> None:
    env = make_vec("WheeledGoal-v0", 3, 1)
    with pytest.raises(RuntimeError, match=r"reset\(\) must be called before step\(\)"):
        env.step(np.zeros((3, 2)))
    env.reset()
    for shape in [(3, 3), (2, 2), (2,), (3, 2, 1)]:
        with pytest.raises(ValueError, match=r"actions must have shape \(3, 2\), got \("):
            env.step(np.zeros(shape))
    actions = np.zeros((3, 2))
    actions[1] = [0.0, np.nan]
    with pytest.raises(ValueError, match=r"actions must be finite, got \[0\.0, nan\] for member 1"):
        env.step(actions)
    assert env.get_attr("elapsed_steps") == [0, 0, 0]


def test_bad_members_and_tasks() -> None:
    env = make_vec("PointGoal-v0", 3)
    with pytest.raises(IndexError, match="index 3 is out of range for 3 members"):
        env.set_tasks([[0.0, 1.0]], indices=[3])
    with pytest.raises(IndexError, match="index -4 is out of range for 3 members"):
        env.get_attr("task", -4)
    with pytest.raises(IndexError, match="indices must be integers"):
        env.set_tasks([[0.0, 1.0]], indices=[0.5])
    with pytest.raises(ValueError, match="expected one task for each of 3 members, got 2 tasks"):
        env.set_tasks([[0.0, 1.0]] * 2)
    with pytest.raises(ValueError, match=r"must be finite, got task 0 = \[nan, 1\.0\]"):
        env.env_method("set_task", [np.nan, 1.0], indices=[0])
    with pytest.raises(ValueError, match=r"must have shape \(n, 2\), got \(1, 3\)"):
        env.env_method("set_task", [0.0, 1.0, 2.0], indices=[0])
    assert env.set_tasks(np.zeros((0, 2)), indices=[]) is None  # type: ignore[func-returns-value]  # no-op


def test_bad_construction() -> None:
    with pytest.raises(ValueError, match="number of members must be at least 1, got 0"):
        make_vec("PointGoal-v0", 0)
    with pytest.raises(ValueError, match="n_threads must be 0"):
        make_vec("WheeledGoal-v0", 2, -1)
    with pytest.raises(ValueError, match="render_mode must be None, 'rgb_array' or 'human', got 'ansi'"):
        make_vec("PointGoal-v0", 2, render_mode="ansi")


def test_mujoco_3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco, "__version__", "3.3.7")
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)  # importing it fails, as with mujoco 3
    for env_id in MUJOCO:
        with pytest.raises(ImportError, match=r"need mujoco>=4 .* found mujoco 3\.3\.7"):
            make_vec(env_id, 2)
    env = make_vec("PointGoal-v0", 2)
    env.reset()
    env.step(np.zeros((2, 2)))


# Divergence


@pytest.mark.parametrize("env_id", MUJOCO)
@pytest.mark.parametrize("value", [1e12, np.nan, 1e9])
def test_divergence_ends_only_that_episode(
    env_id: str,
    value: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    envs = [make_vec(env_id, 4, 2) for _ in range(2)]
    for env in envs:
        env.set_tasks(env.family.task_set("train", 4))
        env.seed(0)
        env.reset()
    others = [0, 1, 3]
    diverged_at = None
    for t, action in enumerate(random_actions(env_id, 12, 4)):
        if t == 5:
            physics(envs[0]).state["qvel"][2] = value
        (observations, rewards, dones, infos), (expected, expected_rewards, expected_dones, _) = (
            env.step(action) for env in envs
        )
        np.testing.assert_array_equal(observations[others], expected[others])
        np.testing.assert_array_equal(rewards[others], expected_rewards[others])
        np.testing.assert_array_equal(dones[others], expected_dones[others])
        assert np.isfinite(observations).all()
        assert np.isfinite(rewards).all()
        if infos[2].get("diverged") and diverged_at is None:
            diverged_at = t
            assert dones[2]
            assert infos[2]["is_success"] is infos[2]["TimeLimit.truncated"] is False
            assert np.abs(infos[2]["terminal_observation"]).max() < 10
            assert np.abs(observations[2]).max() < 10
    if value != 1e9:  # MuJoCo itself allows values up to 1e10
        assert diverged_at == 5
    assert (envs[0].n_diverged, envs[1].n_diverged) == (int(diverged_at is not None), 0)
    assert envs[0].get_attr("n_diverged") == [0, 0, int(diverged_at is not None), 0]
    assert list(tmp_path.iterdir()) == []  # no MUJOCO_LOG.TXT
    assert capfd.readouterr() == ("", "")


def test_simulation_errors_end_only_those_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    env, reference = make_vec("WheeledGoal-v0", 3, 1), make_vec("WheeledGoal-v0", 3, 1)
    for e in (env, reference):
        e.seed(0)
        e.reset()
    batch = physics(env).batch
    step = batch.step

    def failing_step(**kwargs: Any) -> None:
        step(**kwargs)
        raise SimulationError(np.array([1]), "stack overflow", 3)

    monkeypatch.setattr(batch, "step", failing_step, raising=False)
    actions = np.ones((3, 2))
    observations, rewards, dones, infos = env.step(actions)
    expected, expected_rewards, _, _ = reference.step(actions)
    assert dones.tolist() == [False, True, False]
    assert infos[1]["diverged"] is True
    assert np.isfinite(rewards).all()
    np.testing.assert_array_equal(observations[[0, 2]], expected[[0, 2]])
    np.testing.assert_array_equal(rewards[[0, 2]], expected_rewards[[0, 2]])
    monkeypatch.undo()
    assert not env.step(actions)[2].any()


def test_mujoco_settings_of_others_are_left_alone() -> None:
    before = mujoco.MjLogConfig.get()
    env = make_vec("WheeledGoal-v0", 1, 1)
    env.reset()
    env.step(np.zeros((1, 2)))
    after = mujoco.MjLogConfig.get()
    assert (before.logto_console, before.logto_file) == (after.logto_console, after.logto_file)
