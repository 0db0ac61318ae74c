"""What the scripts share: errors on one line, and names looked up with suggestions."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym

from sb3_maesn.config import ConfigError, did_you_mean
from sb3_maesn.envs import FAMILIES
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


def load_model(name: str | Path) -> MAESN:
    """
    Load a model file or a pretrained model.

    :param name: path, with or without ``.zip``, or name of a pretrained model
    :return: the model, on the CPU
    :raises ValueError: if there is neither
    """
    if Path(name).is_file() or Path(f"{name}.zip").is_file():
        return MAESN.load(check_file(name), device="cpu")
    if Path(name).suffix == ".zip" or len(Path(name).parts) > 1:
        raise ConfigError(f"there is no model file {name}")
    return MAESN.from_pretrained(str(name))
