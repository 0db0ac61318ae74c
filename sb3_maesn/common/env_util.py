"""From whatever a user passes as an environment to a MultiTaskVecEnv."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_maesn.envs import FAMILIES, make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, find_multi_task, has_tasks

MAX_MEMBERS = 1000
MAX_SINGLE_MEMBERS = 8  # of a DummyVecEnv, which gains nothing from more


def as_multi_task(env: GymEnv | str, n_envs: int, tasks: Sequence[Any] | None = None) -> MultiTaskVecEnv:
    """A MultiTaskVecEnv around an id, a Gymnasium environment or a VecEnv.

    :param env: what the user passed: an id of this package gives a batched environment, another id registered with
        Gymnasium a DummyVecEnv; wrappers around a MultiTaskVecEnv stay
    :param n_envs: members of the environment built for an id (at most ``MAX_MEMBERS``; episodes run in waves beyond)
    :param tasks: tasks that will be set, for an environment that has none of its own
    :raises ValueError: for an unknown id, or if the environment has no tasks or its horizon is unknown
    """
    venv = _as_vec_env(env, n_envs)
    found = find_multi_task(venv)
    if found is None:
        return MultiTaskVecEnv(venv, train_tasks=tasks)
    return found if found is venv else found.around(venv)


def as_single_task(env: GymEnv | str, n_envs: int) -> MultiTaskVecEnv:
    """A MultiTaskVecEnv with one task: an environment without tasks is a task in itself.

    :param env: what the user passed, as in :func:`as_multi_task`
    :param n_envs: members of the environment built for an id
    :raises ValueError: if the environment has several tasks, or its horizon is unknown
    """
    venv = _as_vec_env(env, n_envs)
    found = find_multi_task(venv)
    if found is None and not has_tasks(venv):
        return MultiTaskVecEnv(venv, train_tasks=[None], task_adapter=_leave_as_it_is)
    n_tasks = None if found is None else len(found.task_set("train"))
    if found is None or n_tasks != 1:
        raise ValueError(
            f"expected an environment with one task, got one with {n_tasks or 'many'}: choose with"
            " MultiTaskVecEnv(venv).only(task)"
        )
    return found if found is venv else found.around(venv)


def _leave_as_it_is(venv: VecEnv, member: int, task: None) -> None:
    """Sets the only task of an environment without tasks."""


def _as_vec_env(env: GymEnv | str, n_envs: int) -> VecEnv:
    if isinstance(env, str):
        return _make_members(env, min(max(n_envs, 1), MAX_MEMBERS))
    return BaseAlgorithm._wrap_env(env, monitor_wrapper=False)


def _make_members(env_id: str, n: int) -> VecEnv:
    if env_id in FAMILIES or env_id not in gym.registry:
        return make_vec(env_id, n)  # which names the known ids where it does not know this one
    return DummyVecEnv([partial(gym.make, env_id)] * min(n, MAX_SINGLE_MEMBERS))


@contextmanager
def borrowed_env(env: GymEnv | str, n_envs: int, tasks: Sequence[Any] | None) -> Iterator[MultiTaskVecEnv]:
    """As :func:`as_multi_task`; what was built for an id is closed in the end.

    :param env: what the user passed
    :param n_envs: members of the environment built for an id
    :param tasks: tasks that will be set, None for the environment's own
    """
    venv = as_multi_task(env, n_envs, tasks)
    try:
        yield venv
    finally:
        if isinstance(env, str):
            venv.close()
