"""What the scripts share: errors on one line, and names looked up with suggestions."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_maesn.common.checkpoint.archive import is_checkpoint
from sb3_maesn.common.checkpoint.pretrained import pretrained_folders
from sb3_maesn.common.env_util import as_multi_task
from sb3_maesn.config import ConfigError, did_you_mean
from sb3_maesn.envs import FAMILIES
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

#: What bad input raises; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, IndexError, gym.error.Error)


@contextmanager
def one_line_errors(verbose: int) -> Iterator[None]:
    """Report bad input on one line of stderr and exit with code 2.

    :param verbose: 2 to keep the traceback
    """
    try:
        yield
    except USER_ERRORS as error:
        if verbose >= 2:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from None


def check_flag(args: argparse.Namespace, name: str, least: int, default: int | None = None) -> None:
    """Refuse a flag below its least value.

    :param args: parsed arguments
    :param name: its name among them
    :param least: the least value
    :param default: a smaller value that is the default and stands for something else, None if there is none
    :raises ConfigError: naming the flag, what was expected and what came
    """
    value = getattr(args, name)
    if value < least and value != default:
        unless = "" if default is None else f", or {default} for the default"
        raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}{unless}, got {value}")


def check_env_id(env_id: str) -> None:
    """Refuse an environment id that neither this package nor Gymnasium knows.

    :param env_id: environment id; ``module:id`` imports the module first, as ``gymnasium.make`` does
    :raises ConfigError: naming the nearest ids
    """
    known = [*FAMILIES, *gym.registry]
    if ":" not in env_id and env_id not in known:
        raise ConfigError(f"unknown environment {env_id!r}{did_you_mean(env_id, known)}")


def sparse_variant(env_id: str) -> str:
    """Find the environment that adaptation is tested on.

    :param env_id: environment id
    :return: the sparse variant of a built-in family, else the id itself
    """
    sparse = env_id.replace("-v", "Sparse-v")
    return sparse if sparse in FAMILIES and "Sparse" not in env_id else env_id


def parse_task(words: Sequence[str], env: MultiTaskVecEnv, split: str = "train") -> Any:
    """Turn the argument ``--task`` into a task.

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


def find_model_file(name: str | Path) -> Path:
    """Find a model: a file of SB3's ``save`` or a checkpoint, or one that comes with the package.

    :param name: path, with or without ``.zip``, or name of a pretrained model
    :return: a file, or the folder of a checkpoint
    :raises ConfigError: if there is none, naming the nearest pretrained model
    """
    for candidate in (Path(name), Path(f"{name}.zip")):
        if candidate.is_file() or is_checkpoint(candidate):
            return candidate
    shipped = pretrained_folders()
    if str(name) in shipped:
        return shipped[str(name)]
    raise ConfigError(f"there is no model file {name}, nor a pretrained model{did_you_mean(str(name), shipped)}")


def guess_test_env(model: str | Path) -> str:
    """Tell from a model's name which environment it is to be tested on.

    :param model: model file or name of a pretrained model
    :return: the sparse variant of the family that the name, or else the nearest folder, speaks of
    :raises ConfigError: if none is named
    """
    for part in reversed(Path(model).parts):
        named = [env_id for env_id in FAMILIES if env_id in part]
        if named:
            return sparse_variant(max(named, key=len))
    raise ConfigError(f"{model} does not tell its environment: say it with --env")


def find_task(words: Sequence[str], env_id: str, split: str) -> Any:
    """Turn the argument ``--task`` into a task of an environment that is not made yet.

    :param words: as in ``parse_task``
    :param env_id: environment id
    :param split: set of tasks that an index counts in
    :return: the task
    """
    with closing(as_multi_task(env_id, 1)) as env:
        return parse_task(words, env, split)


def tasks_of(env_id: str, split: str, n_tasks: int) -> list[Any]:
    """Look up the first tasks of a set.

    :param env_id: environment id
    :param split: ``train``, ``validation`` or ``test``
    :param n_tasks: how many
    :return: tasks
    """
    with closing(as_multi_task(env_id, 1)) as env:
        return list(env.task_set(split)[:n_tasks])
