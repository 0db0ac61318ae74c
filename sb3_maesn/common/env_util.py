"""Functions that turn an environment as a user passes it into a MultiTaskVecEnv."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_maesn.envs import FAMILIES, make_vec
from sb3_maesn.envs.batched import BatchedTaskVecEnv
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, find_multi_task, has_tasks
from sb3_maesn.envs.wrappers import frozen_statistics, normalizers

MAX_MEMBERS = 1000
MAX_SINGLE_MEMBERS = 8  # members of a DummyVecEnv, which steps them one after another and gains nothing from more


def as_multi_task(env: GymEnv | str, n_envs: int, tasks: Sequence[Any] | None = None) -> MultiTaskVecEnv:
    """Turn an environment id, a Gymnasium environment or a VecEnv into a MultiTaskVecEnv.

    An id of this package gives a batched environment, any other id registered with Gymnasium a DummyVecEnv. Wrappers
    around a MultiTaskVecEnv are kept.

    :param env: environment as the user passed it
    :param n_envs: number of members of an environment built from an id; limited to ``MAX_MEMBERS``, since more episodes
        than members run in waves
    :param tasks: training tasks of an environment that is no MultiTaskVecEnv yet; None for its own tasks
    :return: the environment
    :raises ValueError: if the id is unknown, or the environment has no tasks or an unknown horizon
    """
    venv = _as_vec_env(env, n_envs)
    found = find_multi_task(venv)
    if found is None:
        return MultiTaskVecEnv(venv, train_tasks=tasks)
    return found if found is venv else found.around(venv)


def as_single_task(env: GymEnv | str, n_envs: int) -> MultiTaskVecEnv:
    """Turn an environment into a MultiTaskVecEnv with one task; an environment without tasks counts as one task.

    :param env: environment as the user passed it: an id, a Gymnasium environment or a VecEnv
    :param n_envs: number of members of an environment built from an id
    :return: the environment
    :raises ValueError: if the environment has several tasks, or its horizon is unknown
    """
    venv = _as_vec_env(env, n_envs)
    found = find_multi_task(venv)
    if found is None and not has_tasks(venv):
        return MultiTaskVecEnv(venv, train_tasks=[None], task_adapter=_set_only_task)
    n_tasks = None if found is None else len(found.task_set("train"))
    if found is None or n_tasks != 1:
        raise ValueError(
            f"expected an environment with one task, got one with {n_tasks or 'many'}: choose with"
            " MultiTaskVecEnv(venv).only(task)"
        )
    return found if found is venv else found.around(venv)


def _set_only_task(venv: VecEnv, member: int, task: None) -> None:
    """Set the only task of an environment without tasks, which needs no action."""


def _as_vec_env(env: GymEnv | str, n_envs: int) -> VecEnv:
    if isinstance(env, str):
        return _make_members(env, min(max(n_envs, 1), MAX_MEMBERS))
    return BaseAlgorithm._wrap_env(env, monitor_wrapper=False)


def _make_members(env_id: str, n: int) -> VecEnv:
    # gymnasium.make imports the module of an id such as "module:Env-v0" by itself
    if env_id in FAMILIES or (":" not in env_id and env_id not in gym.registry):
        return make_vec(env_id, n)  # for an unknown id, its error names the known ones
    members = DummyVecEnv([partial(gym.make, env_id)] * min(n, MAX_SINGLE_MEMBERS))
    return BaseAlgorithm._wrap_env(members, monitor_wrapper=False)  # images become channel-first


def observation_normalizers(venv: VecEnv) -> list[VecNormalize]:
    """Find every VecNormalize among the wrappers of a VecEnv that normalises observations.

    :param venv: VecEnv, possibly wrapped
    :return: the wrappers, the outermost first
    """
    return [wrapper for wrapper in normalizers(venv) if wrapper.norm_obs]


def reward_normalizers(venv: VecEnv) -> list[VecNormalize]:
    """Find every VecNormalize among the wrappers of a VecEnv that normalises rewards.

    :param venv: VecEnv, possibly wrapped
    :return: the wrappers, the outermost first
    """
    return [wrapper for wrapper in normalizers(venv) if wrapper.norm_reward]


def check_same_normalization(training_env: VecEnv, env: VecEnv, rewards: bool = False) -> None:
    """Check that an environment normalises observations as often as the training environment does.

    :param training_env: environment that the policy was trained in
    :param env: environment that it is to act in
    :param rewards: whether to check rewards too, which matters to a policy that observes them
    :raises ValueError: if it does not
    """
    kinds = {"observations": observation_normalizers, **({"rewards": reward_normalizers} if rewards else {})}
    for kind, find in kinds.items():
        expected, got = len(find(training_env)), len(find(env))
        if expected != got:
            raise ValueError(
                f"expected an environment that normalises {kind} as the training environment does, got {expected}"
                f" VecNormalize wrappers around the training environment and {got} around the other one: pass one such"
                " as VecNormalize(MultiTaskVecEnv(make_vec(env_id, n_envs)), training=False) with the same statistics"
            )


@contextmanager
def borrowed_env(
    env: GymEnv | str, n_envs: int, tasks: Sequence[Any] | None, norm_reward: bool = False
) -> Iterator[MultiTaskVecEnv]:
    """Provide a MultiTaskVecEnv for the duration of a context, and close it if it was built from an id.

    Within the context, a VecNormalize among the wrappers keeps its statistics and leaves rewards unnormalised. After
    it, the members of a native VecEnv have the next tasks that they had before; others keep those set in the context.

    :param env: environment as the user passed it: an id, a Gymnasium environment or a VecEnv
    :param n_envs: number of members of an environment built from an id
    :param tasks: training tasks of an environment that is no MultiTaskVecEnv yet; None for its own tasks
    :param norm_reward: whether rewards may be normalised, as a policy that observes them needs it
    :return: context manager that gives the environment
    :raises ValueError: if the id is unknown, or the environment has no tasks or an unknown horizon
    """
    venv = as_multi_task(env, n_envs, tasks)
    rewards = reward_normalizers(venv)
    try:
        for wrapper in rewards:
            wrapper.norm_reward = norm_reward
        with frozen_statistics(venv), _kept_tasks(venv):
            yield venv
    finally:
        for wrapper in rewards:
            wrapper.norm_reward = True
        if isinstance(env, str):
            venv.close()


@contextmanager
def _kept_tasks(venv: VecEnv) -> Iterator[None]:
    """Give the members of a native VecEnv their next tasks back after the body; others do not tell theirs."""
    native = venv.unwrapped
    if not isinstance(native, BatchedTaskVecEnv):
        yield
        return
    before = native.simulator.next_tasks.copy()
    try:
        yield
    finally:
        native.simulator.next_tasks[:] = before
