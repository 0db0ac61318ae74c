"""Settings of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Rendering without a display; where the library is missing, the rendering tests skip themselves.
os.environ.setdefault("MUJOCO_GL", "egl")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Networks of this size run fastest on one thread, and results do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """Folder of the project."""
    return ROOT
