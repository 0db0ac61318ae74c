"""What the scripts share: errors on one line, and names looked up with suggestions."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym

from sb3_maesn.config import ConfigError, did_you_mean
from sb3_maesn.envs import FAMILIES

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
