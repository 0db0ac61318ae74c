"""Questions to the wrappers and the members of any VecEnv."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize


def normalizers(venv: VecEnv) -> list[VecNormalize]:
    """Find every VecNormalize among the wrappers of a VecEnv.

    :param venv: VecEnv, possibly wrapped
    :return: the wrappers, the outermost first
    """
    found = []
    while isinstance(venv, VecEnvWrapper):
        if isinstance(venv, VecNormalize):
            found.append(venv)
        venv = venv.venv
    return found


@contextmanager
def frozen_statistics(venv: VecEnv) -> Iterator[None]:
    """Keep the statistics of every VecNormalize among the wrappers as they are while the body runs.

    :param venv: VecEnv, possibly wrapped
    """
    modes = [(wrapper, wrapper.training) for wrapper in normalizers(venv)]
    try:
        for wrapper, _ in modes:
            wrapper.training = False
        yield
    finally:
        for wrapper, training in modes:
            wrapper.training = training


def find_horizon(venv: VecEnv) -> int | None:
    """Find the maximum number of steps of an episode: the least of all limits that the first member tells.

    :param venv: VecEnv whose first member is asked
    :return: the horizon, None if the member does not tell
    """
    spec = _attribute(venv, "spec")
    limits = [_attribute(venv, "horizon"), _attribute(venv, "_max_episode_steps")]
    known = [limit for limit in (*limits, getattr(spec, "max_episode_steps", None)) if limit is not None]
    return min((int(limit) for limit in known), default=None)


def _attribute(venv: VecEnv, name: str) -> Any:
    """Read an attribute of the first member, None if it has none, or the VecEnv gives no access to its members."""
    try:
        return venv.get_attr(name, indices=[0])[0] if venv.has_attr(name) else None
    except NotImplementedError:
        return None
