"""What the scripts share: errors on one line, and names looked up with suggestions."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_maesn.common.env_util import as_multi_task
from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.config import ConfigError, did_you_mean
from sb3_maesn.envs import FAMILIES
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.maesn import MAESN

#: What bad input raises; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, IndexError, gym.error.Error)


@contextmanager
def one_line_errors(verbose: int) -> Iterator[None]:
    """
    Report bad input on one line of stderr and exit with code 2.

    :param verbose: 2 to keep the traceback
    """
    try:
        yield
    except USER_ERRORS as error:
        if verbose >= 2:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from None


def check_env_id(env_id: str) -> None:
    """
    Refuse an environment id that neither this package nor Gymnasium knows.

    :param env_id: environment id; ``module:id`` imports the module first, as ``gymnasium.make`` does
    :raises ConfigError: naming the nearest ids
    """
    known = [*FAMILIES, *gym.registry]
    if ":" not in env_id and env_id not in known:
        raise ConfigError(f"unknown environment {env_id!r}{did_you_mean(env_id, known)}")


def sparse_variant(env_id: str) -> str:
    """
    Find the environment that adaptation is tested on.

    :param env_id: environment id
    :return: the sparse variant of a built-in family, else the id itself
    """
    sparse = env_id.replace("-v", "Sparse-v")
    return sparse if sparse in FAMILIES and "Sparse" not in env_id else env_id


def parse_task(words: Sequence[str], env: MultiTaskVecEnv, split: str = "train") -> Any:
    """
    Turn the argument ``--task`` into a task.

    :param words: one integer is an index into a set of tasks, ``validation:3`` one into another set, anything else the
        task's own values
    :param env: environment with tasks
    :param split: set of tasks that an index counts in
    :return: the task
    :raises ValueError: if it is neither, or there is no such task
    """
    name, _, index = words[0].rpartition(":")
    if len(words) == 1 and index.lstrip("-").isdecimal():
        return env.task(name or split, int(index))
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"--task takes an index or a task's values, got {' '.join(words)!r}") from error


def check_file(path: str | Path) -> Path:
    """
    Find a model file, with or without its ``.zip``.

    :param path: path as given
    :return: the file
    :raises ConfigError: if there is none
    """
    for candidate in (Path(path), Path(f"{path}.zip")):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"there is no model file {path}")


def guess_test_env(model: str | Path) -> str:
    """
    Tell from a model's name which environment it is to be tested on.

    :param model: model file or name of a pretrained model
    :return: the sparse variant of the family that the name, or else the nearest folder, speaks of
    :raises ConfigError: if none is named
    """
    for part in reversed(Path(model).parts):
        named = [env_id for env_id in FAMILIES if env_id in part]
        if named:
            return sparse_variant(max(named, key=len))
    raise ConfigError(f"{model} does not tell its environment: say it with --env")


def load_model(name: str | Path) -> MetaOnPolicyAlgorithm:
    """
    Load a model file or a pretrained model.

    :param name: path, with or without ``.zip``, or name of a pretrained model
    :return: the model, on the CPU; one of a file acts and adapts as the meta-learner that it was saved from
    :raises ValueError: if there is neither
    """
    if Path(name).is_file() or Path(f"{name}.zip").is_file():
        return MetaOnPolicyAlgorithm.load(check_file(name), device="cpu")
    if Path(name).suffix == ".zip" or len(Path(name).parts) > 1:
        raise ConfigError(f"there is no model file {name}")
    return MAESN.from_pretrained(str(name))


def find_task(words: Sequence[str], env_id: str, split: str) -> Any:
    """
    Turn the argument ``--task`` into a task of an environment that is not made yet.

    :param words: as in ``parse_task``
    :param env_id: environment id
    :param split: set of tasks that an index counts in
    :return: the task
    """
    with closing(as_multi_task(env_id, 1)) as env:
        return parse_task(words, env, split)


def tasks_of(env_id: str, split: str, n_tasks: int) -> list[Any]:
    """
    Look up the first tasks of a set.

    :param env_id: environment id
    :param split: ``train``, ``validation`` or ``test``
    :param n_tasks: how many
    :return: tasks
    """
    with closing(as_multi_task(env_id, 1)) as env:
        return list(env.task_set(split)[:n_tasks])
