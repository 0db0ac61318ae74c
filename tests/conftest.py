"""Settings of all tests."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Rendering without a display; where the library is missing, the rendering tests skip themselves.
os.environ.setdefault("MUJOCO_GL", "egl")

# No test speaks to the real Hugging Face Hub, whose address and cache are read when its client is first imported.
with socket.socket() as _free:
    _free.bind(("127.0.0.1", 0))
    HUB_ADDRESS = f"http://127.0.0.1:{_free.getsockname()[1]}"
HUB_CACHE = tempfile.TemporaryDirectory(prefix="hub-", ignore_cleanup_errors=True)
os.environ.update(HF_ENDPOINT=HUB_ADDRESS, HF_HOME=HUB_CACHE.name, HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.pop("HF_TOKEN", None)

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
