"""Seeds: of a run, and of the global random generators of NumPy and torch, for code of others that draws from them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


def entropy_of(seed: int | None) -> int:
    """What the generators of all iterations are seeded with, each with this and the iteration's number.

    :param seed: the user's; None for a new number
    """
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed


def generator_of(seed: int) -> np.random.Generator:
    """A generator of one's own.

    :param seed: the user's
    :raises ValueError: for a negative one
    """
    try:
        return np.random.default_rng(seed)
    except ValueError:  # NumPy's does not say what it is about
        raise ValueError(f"seed must be at least 0, got {seed}") from None


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators for a while; afterwards they are what they were.

    SB3's policies draw actions with torch's, its buffers draw mini-batches with NumPy's.

    :param seed: from 0 to 2**32 - 1
    """
    before = np.random.get_state()  # noqa: NPY002  # the legacy generator is the one that SB3's buffers use
    with th.random.fork_rng():
        th.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # others draw from NumPy's global generator
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002  # others draw from NumPy's global generator
