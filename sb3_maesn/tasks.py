"""Environments and tasks as the user names them: environment ids, and the words of the flag ``--task``."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from numbers import Real
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_maesn.common.env_util import as_multi_task
from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.config import ConfigError
from sb3_maesn.envs import FAMILIES
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, has_tasks


def check_env_id(env_id: str) -> None:
    """Check that this package or Gymnasium knows an environment id.

    :param env_id: environment id; ``module:id`` is accepted unseen, since ``gymnasium.make`` imports the module first
    :raises ConfigError: if the id is unknown; the message suggests similar ids
    """
    known = [*FAMILIES, *gym.registry]
    if ":" not in env_id and env_id not in known:
        raise ConfigError(f"unknown environment {env_id!r}{did_you_mean(env_id, known)}")


def sparse_variant(env_id: str) -> str:
    """Find the environment with sparse reward that adaptation is tested on.

    :param env_id: environment id
    :return: id of the sparse variant of a built-in family; the id itself if there is none
    """
    sparse = env_id.replace("-v", "Sparse-v")
    return sparse if sparse in FAMILIES and "Sparse" not in env_id else env_id


def brings_tasks(env_id: str) -> bool:
    """Tell whether an environment has tasks to choose from.

    :param env_id: environment id
    :return: whether it has tasks of its own
    """
    with closing(DummyVecEnv([partial(gym.make, env_id)])) as env:
        return has_tasks(env)


def parse_task(words: Sequence[str], env: MultiTaskVecEnv, split: str = "train") -> Any:
    """Turn the words of ``--task`` into a task.

    :param words: one integer (an index into a set of tasks), ``validation:3`` (an index into the set of that name), or
        the task's own values, such as ``2.0`` where a task is a number
    :param env: environment with tasks
    :param split: set of tasks that an index without the name of a set refers to
    :return: task, as ``set_task`` takes it
    :raises ValueError: if the words are of none of these forms, or there is no such task
    """
    name, _, index = words[0].rpartition(":")
    if len(words) == 1 and index.lstrip("-").isdecimal():
        return env.task(name or split, int(index))
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"--task takes an index or a task's values, got {' '.join(words)!r}") from error
    if not isinstance(env.task("train", 0), Real):
        return values
    if len(values) > 1:
        raise ConfigError(f"a task of this environment is a single number, got {' '.join(words)!r}")
    return values[0]


def find_task(words: Sequence[str], env_id: str, split: str) -> Any:
    """Turn the words of ``--task`` into a task of an environment that is given by its id.

    :param words: words of ``--task``, see :func:`parse_task`
    :param env_id: environment id
    :param split: set of tasks that an index without the name of a set refers to
    :return: task, as ``set_task`` takes it
    :raises ValueError: if the words do not name a task of the environment
    """
    with closing(as_multi_task(env_id, 1)) as env:
        return parse_task(words, env, split)


def tasks_of(env_id: str, split: str, n_tasks: int) -> list[Any]:
    """List the first tasks of a set of tasks, drawing a larger set than usual if that many are needed.

    :param env_id: environment id
    :param split: name of the set: ``"train"``, ``"validation"`` or ``"test"``
    :param n_tasks: number of tasks
    :return: tasks (n_tasks)
    :raises ConfigError: if ``n_tasks`` is less than 1, or the environment has fewer tasks
    """
    if n_tasks < 1:
        raise ConfigError(f"the number of tasks must be at least 1, got {n_tasks}")
    with closing(as_multi_task(env_id, 1)) as env:
        tasks = env.task_set(split)
        if len(tasks) < n_tasks:
            tasks = MultiTaskVecEnv(env.venv, n_tasks=n_tasks).task_set(split)
    if len(tasks) < n_tasks:
        raise ConfigError(f"{env_id} has only {len(tasks)} {split} tasks, expected {n_tasks}")
    return tasks[:n_tasks]
