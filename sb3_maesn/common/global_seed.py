"""Seeds of a run, and of the global random generators of NumPy and torch, from which SB3 draws."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th


def entropy_of(seed: int | None) -> int:
    """Choose the entropy of a run; each iteration's generator is seeded with it and the iteration's number.

    :param seed: seed of the run, None for a random one
    :return: the seed, or a random 32-bit number
    """
    return int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed


def generator_of(seed: int) -> np.random.Generator:
    """Make a generator from a user's seed.

    :param seed: seed, at least 0
    :return: the generator
    :raises ValueError: if the seed is negative
    """
    try:
        return np.random.default_rng(seed)
    except ValueError:  # NumPy's message does not mention the seed
        raise ValueError(f"seed must be at least 0, got {seed}") from None


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators of NumPy and torch for the duration of a context, then restore their states.

    SB3's policies draw actions with torch's generator, its buffers shuffle mini-batches with NumPy's.

    :param seed: seed, from 0 to 2**32 - 1
    """
    before = np.random.get_state()  # noqa: NPY002  # SB3's buffers use the legacy global generator
    with th.random.fork_rng():
        th.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # SB3's buffers use the legacy global generator
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002  # SB3's buffers use the legacy global generator
