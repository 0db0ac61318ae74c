"""Episodes of one task seen from another, against replays in that task."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch as th

from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.shared_episodes import dynamics_groups, sample_by_group, share_episodes
from sb3_maesn.common.type_aliases import Rollout, Tasks
from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.relabel import relabelled_returns

GAMMA = 0.97
FAMILIES = [
    f"{name}{kind}-v0" for name in ("PointGoal", "WheeledGoal", "AntGoal", "PusherBlock") for kind in ("", "Sparse")
]
N = 4


@dataclass
class Episodes:
    """N episodes under one task, (T, N, ...), as far as they go."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    mask: np.ndarray


def replay(env: MultiTaskVecEnv, task: np.ndarray, seed: int = 3) -> Episodes:
    """The same start and the same actions, whatever the task."""
    rng = np.random.default_rng(seed)
    assert env.action_space.shape is not None
    shape = (env.horizon, N, *env.action_space.shape)
    drift = rng.uniform(-1, 1, (1, N, 1))  # so that some episodes come near a goal or fall
    actions = np.clip(rng.normal(drift, 1.0, shape), -2, 2)
    env.set_tasks([task] * N)
    env.seed(seed)
    observation, live = env.reset(), np.ones(N, dtype=bool)
    assert isinstance(observation, np.ndarray)
    shapes = (observation.shape[1:], shape[2:], (), ())
    record = Episodes(*(np.zeros((env.horizon, N, *one)) for one in shapes))
    for t in range(env.horizon):
        record.observations[t], record.actions[t], record.mask[t] = observation, actions[t], live
        observation, rewards, dones, _ = env.step(np.clip(actions[t], -1, 1))
        record.rewards[t] = rewards * live
        live &= ~dones
    return record


def received(episodes: Episodes) -> np.ndarray:
    """Discounted rewards of all steps but an episode's last, whose next observation is not known."""
    counted = np.concatenate([episodes.mask[1:], np.zeros((1, N))])
    discount = GAMMA ** np.arange(len(counted))[:, None]
    total: np.ndarray = (episodes.rewards * counted * discount).sum(axis=0)
    return total


@pytest.mark.parametrize("env_id", FAMILIES)
def test_relabelled_returns_equal_those_of_a_replay(env_id: str) -> None:
    env = MultiTaskVecEnv(make_vec(env_id, N, n_threads=1))
    tasks = np.stack(env.task_set("train"))
    alike = np.flatnonzero(env.family.dynamics_groups(tasks) == 0)[:3]
    episodes = replay(env, tasks[alike[0]])
    got = relabelled_returns(env.family, episodes.observations, episodes.actions, episodes.mask, tasks[alike], GAMMA)
    assert got.shape == (3, N)
    for row, task in zip(got, tasks[alike], strict=True):  # its own task first
        assert row == pytest.approx(received(replay(env, task)), rel=1e-5, abs=1e-5)
    if "Sparse" not in env_id:
        assert np.ptp(got, axis=0).min() > 0.01  # the tasks differ


def as_rollout(banks: list[Episodes]) -> Rollout:
    """One bank of N episodes for each group: (T, n_groups, N, ...)."""
    observations, actions, rewards, mask = (
        th.as_tensor(np.stack([getattr(bank, name) for bank in banks], axis=1), dtype=th.float32)
        for name in ("observations", "actions", "rewards", "mask")
    )
    latents = th.randn(len(banks), N, 2)
    return Rollout(
        observations,
        actions,
        DiagGaussian(actions, actions[:1, :1, :1]),
        rewards,
        rewards,
        mask,
        latents,
        latents,
        np.zeros((len(banks), N)),
    )


def test_every_task_sees_the_bank_of_its_group() -> None:
    env = MultiTaskVecEnv(make_vec("PusherBlock-v0", N, n_threads=1))
    everything = np.stack(env.task_set("train"))
    layouts = env.family.dynamics_groups(everything)
    ids = np.concatenate([np.flatnonzero(layouts == layout)[:2] for layout in (3, 7)])
    tasks = Tasks(ids, list(everything[ids]))
    groups, first = dynamics_groups(env, tasks)
    assert groups.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert groups[[list(ids).index(i) for i in first.ids]].tolist() == [0, 1]
    assert (np.stack(first.values) == everything[first.ids]).all()
    banks = [replay(env, task, seed) for seed, task in enumerate(first.values)]
    batch = share_episodes(env, tasks, groups, as_rollout(banks), GAMMA)
    assert batch.groups is not None
    assert batch.groups.tolist() == [0, 0, 0, 0]  # all layouts try the same latents
    for row, (group, task) in enumerate(zip(groups, tasks.values, strict=True)):
        expected = received(replay(env, task, seed=int(group)))
        assert batch.advantages[row].numpy() == pytest.approx(expected, rel=1e-3)
    assert th.equal(batch.latents[0], batch.latents[1])
    assert not th.equal(batch.latents[1], batch.latents[2])


def test_invalid_episodes_stay_invalid() -> None:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", N))
    bank = replay(env, env.task("train", 0))
    bank.mask[:, 2] = 0.0
    tasks = Tasks(np.arange(3), env.task_set("train")[:3])
    batch = share_episodes(env, tasks, np.zeros(3, dtype=int), as_rollout([bank]), GAMMA)
    assert batch.mask.tolist() == [[1.0, 1.0, 0.0, 1.0]] * 3


def test_tasks_are_drawn_from_few_groups() -> None:
    groups = np.repeat(np.arange(20), 5)
    for seed in range(20):
        ids = sample_by_group(groups, 12, np.random.default_rng(seed))
        assert len(set(ids.tolist())) == 12
        assert len(set(groups[ids].tolist())) == 3
        assert (np.diff(ids) > 0).all()
    alike = sample_by_group(np.zeros(100, dtype=int), 40, np.random.default_rng(0))
    assert len(set(alike.tolist())) == 40


def test_every_task_is_drawn_as_often() -> None:
    groups = np.repeat(np.arange(4), 5)
    counts = np.zeros(20)
    for seed in range(2000):
        counts[sample_by_group(groups, 7, np.random.default_rng(seed))] += 1
    assert counts / 2000 == pytest.approx(np.full(20, 7 / 20), abs=0.04)
