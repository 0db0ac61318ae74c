"""The task families, each as a batched ``VecEnv`` and as a single ``gymnasium.Env``."""

from collections.abc import Callable
from functools import partial

import gymnasium as gym

from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.envs.ant import AntGoal
from sb3_maesn.envs.bandit import Bandit
from sb3_maesn.envs.batched import BatchedTaskVecEnv
from sb3_maesn.envs.point import PointGoal
from sb3_maesn.envs.pusher import PusherBlock
from sb3_maesn.envs.single import TaskEnv
from sb3_maesn.envs.task_family import TaskFamily
from sb3_maesn.envs.wheeled import WheeledGoal

__all__ = [
    "FAMILIES",
    "AntGoal",
    "Bandit",
    "BatchedTaskVecEnv",
    "PointGoal",
    "PusherBlock",
    "TaskEnv",
    "TaskFamily",
    "WheeledGoal",
    "make_env",
    "make_family",
    "make_vec",
]

#: Constructors of the task families by environment id. The sparse variants have the reward of meta-testing.
FAMILIES: dict[str, Callable[[], TaskFamily]] = {
    "WheeledGoal-v0": WheeledGoal,
    "WheeledGoalSparse-v0": partial(WheeledGoal, sparse=True),
    "AntGoal-v0": AntGoal,
    "AntGoalSparse-v0": partial(AntGoal, sparse=True),
    "PusherBlock-v0": PusherBlock,
    "PusherBlockSparse-v0": partial(PusherBlock, sparse=True),
    "PointGoal-v0": PointGoal,
    "PointGoalSparse-v0": partial(PointGoal, sparse=True),
    "Bandit-v0": Bandit,
}


def make_family(env_id: str) -> TaskFamily:
    """Create one of the built-in task families.

    :param env_id: environment id, a key of ``FAMILIES``
    :return: the family
    :raises ValueError: for an unknown id; the message names similar ones
    """
    if env_id not in FAMILIES:
        hint = did_you_mean(env_id, FAMILIES)
        raise ValueError(f"unknown task family {env_id!r}{hint or '.'} Known: {', '.join(FAMILIES)}")
    return FAMILIES[env_id]()


def make_vec(env_id: str, n_envs: int, n_threads: int = 0, render_mode: str | None = None) -> BatchedTaskVecEnv:
    """Create a batched ``VecEnv`` of one of the built-in task families.

    :param env_id: environment id, a key of ``FAMILIES``, e.g. ``"WheeledGoal-v0"``
    :param n_envs: number of members
    :param n_threads: number of threads that step them, 0 for one per CPU
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :return: the environment
    :raises ValueError: for an unknown id; the message names similar ones
    :raises ImportError: for a MuJoCo family if the installed mujoco is older than version 4
    """
    return BatchedTaskVecEnv(make_family(env_id), n_envs, n_threads, render_mode)


def make_env(env_id: str, render_mode: str | None = None, width: int = 480, height: int = 360) -> TaskEnv:
    """Create a single environment of one of the built-in task families, as ``gymnasium.make(env_id)`` does.

    :param env_id: environment id, a key of ``FAMILIES``
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :param width: frame width in pixels
    :param height: frame height in pixels
    :return: the environment
    :raises ValueError: for an unknown id; the message names similar ones
    :raises ImportError: for a MuJoCo family if the installed mujoco is older than version 4
    """
    return TaskEnv(make_family(env_id), render_mode, width, height)


for _env_id in FAMILIES:
    # no max_episode_steps, because the environment truncates by itself
    gym.register(_env_id, entry_point="sb3_maesn.envs:make_env", kwargs={"env_id": _env_id})

_car = "sb3_maesn.envs.mountain_car:SparseMountainCar"
gym.register("SparseMountainCar-v0", entry_point=_car)
gym.register("SparseMountainCarWeak-v0", entry_point=_car, kwargs={"power": 0.0008})
