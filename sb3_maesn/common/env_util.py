"""From whatever a user passes as an environment to a MultiTaskVecEnv."""

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, find_multi_task

MAX_MEMBERS = 1000


def as_multi_task(env: GymEnv | str, n_envs: int, tasks: Sequence[Any] | None = None) -> MultiTaskVecEnv:
    """A MultiTaskVecEnv around an id of this package, a Gymnasium environment or a VecEnv.

    :param env: what the user passed
    :param n_envs: members of the batched environment built for an id (at most ``MAX_MEMBERS``; episodes run in waves beyond)
    :param tasks: tasks that will be set, for an environment that has none of its own
    :raises ValueError: if the environment has no tasks or its horizon is unknown
    """
    if isinstance(env, str):
        return MultiTaskVecEnv(make_vec(env, min(n_envs, MAX_MEMBERS)))
    venv: VecEnv = BaseAlgorithm._wrap_env(env, monitor_wrapper=False)
    found = find_multi_task(venv)
    if found is None:
        return MultiTaskVecEnv(venv, train_tasks=tasks)
    if found is not venv:
        raise ValueError("expected MultiTaskVecEnv to be the outermost wrapper: wrap the VecEnv first, then give it tasks")
    return found
