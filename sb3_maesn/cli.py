"""Error reporting of the scripts: bad input is reported on one line, without a traceback."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym

from sb3_maesn.config import ConfigError

#: Exceptions that bad input raises. Any other exception is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, IndexError, gym.error.Error)


@contextmanager
def one_line_errors(verbose: int) -> Iterator[None]:
    """Report an exception caused by bad input on one line of stderr and exit with code 2.

    :param verbose: verbosity level; from 2 on the exception is raised with its traceback instead
    """
    try:
        yield
    except USER_ERRORS as error:
        if verbose >= 2:
            raise
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        raise SystemExit(2) from None


def check_flag(args: argparse.Namespace, name: str, least: int, default: int | None = None) -> None:
    """Check that the value of a flag is not below its minimum.

    :param args: parsed arguments
    :param name: name of the flag's value in ``args``
    :param least: smallest permitted value
    :param default: smaller value that is permitted too because it stands for the default; None if there is none
    :raises ConfigError: if the value is too small
    """
    value = getattr(args, name)
    if value < least and value != default:
        unless = "" if default is None else f", or {default} for the default"
        raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}{unless}, got {value}")
