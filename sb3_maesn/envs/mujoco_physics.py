"""The only importer of ``mujoco.batch``: many simulations of one MuJoCo model on a thread pool."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

# MuJoCo chooses its OpenGL backend when it is imported, and by default one that needs a display.
if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import mujoco
import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.task_family import Array, Mask

STAGES = {"none": 0, "pos": 1, "vel": 2, "acc": 3}  # mjtStage, spelled out because mujoco 3 has no such argument


def load_model(asset: str) -> mujoco.MjModel:
    """Compile a model that ships with the package.

    :param asset: file name in ``sb3_maesn/envs/assets``
    :return: the model
    """
    return load_spec(asset).compile()


def load_plain_model(asset: str) -> mujoco.MjModel:
    """Compile a model without what only makes it faster: MuJoCo finds all contacts by itself, and constraint islands.

    :param asset: file name in ``sb3_maesn/envs/assets``
    :return: the model
    """
    spec = load_spec(asset)
    for pair in list(spec.pairs):
        spec.geom(pair.geomname1).conaffinity = 1
        spec.geom(pair.geomname2).contype = 1
        spec.delete(pair)
    for exclude in list(spec.excludes):
        spec.delete(exclude)
    spec.option.disableflags = 0
    return spec.compile()


def load_spec(asset: str) -> mujoco.MjSpec:
    """Read a model that ships with the package, to be changed before it is compiled.

    :param asset: file name in ``sb3_maesn/envs/assets``
    :return: its specification
    """
    xml = resources.files("sb3_maesn.envs").joinpath("assets", asset).read_text(encoding="utf-8")
    return mujoco.MjSpec.from_string(xml)


def require_batch() -> Any:
    """The batch API of mujoco 4.

    :return: the module ``mujoco.batch``
    :raises ImportError: if the installed mujoco is older
    """
    if int(mujoco.__version__.split(".")[0]) < 4:
        raise ImportError(
            "The built-in MuJoCo task families need mujoco>=4 (its batch API, mujoco.batch.Batch), found mujoco "
            f"{mujoco.__version__}. Install it with `pip install 'mujoco>=4'`. With mujoco 3, PointGoal-v0 and any "
            "environment of your own in a MultiTaskVecEnv still work."
        )
    from mujoco import batch

    return batch


@contextlib.contextmanager
def quiet_mujoco() -> Iterator[None]:
    """Keep MuJoCo from writing warnings to the console and MUJOCO_LOG.TXT; divergence is reported otherwise."""
    before = mujoco.MjLogConfig.get()
    _quiet_config().set()
    try:
        yield
    finally:
        before.set()


@functools.cache
def _quiet_config() -> Any:
    config = mujoco.MjLogConfig.get()
    config.logto_console = config.logto_file = False
    return config


class MujocoPhysics:
    """``n`` simulations of one model in a ``mujoco.batch.Batch``.

    :param model: the model
    :param n: number of simulations
    :param n_threads: threads that step them, 0 for one per CPU
    :param derived: names of MjData fields besides qpos and qvel that the family reads
    :param stage: the forward stage those need after a step, a key of ``STAGES``
    """

    def __init__(
        self, model: mujoco.MjModel, n: int, n_threads: int = 0, derived: Sequence[str] = (), stage: str = "none"
    ) -> None:
        batch = require_batch()
        if n_threads < 0:
            raise ValueError(f"n_threads must be 0 (one per CPU) or more, got {n_threads}")
        self._error = batch.SimulationError
        self._stage = STAGES[stage]
        self.model = model
        self.batch = batch.Batch(model, n, min(n_threads, n) if n_threads else 0)
        self.state = {name: self.batch.bind(name) for name in ("qpos", "qvel", *derived)}
        self._default: Array = self.batch.state[0].copy()
        self._ctrl: Array = self.batch.bind("ctrl")
        self._warnings: NDArray[np.int32] = self.batch.warning  # (n, kind of warning, [last info, count])
        self._bad = slice(int(mujoco.mjtWarning.mjWARN_BADQPOS), int(mujoco.mjtWarning.mjWARN_BADQACC) + 1)

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """See ``Physics.reset``."""
        with quiet_mujoco():
            # a simulation is its state row; as batch.reset(ids), which clears the whole MjData, but much faster
            self.batch.state[ids] = self._default
            self.state["qpos"][ids] = qpos
            self.state["qvel"][ids] = qvel
            if self._stage:
                self.batch.forward(ids, stage=self._stage)

    def step(self, controls: Array) -> Mask:
        """See ``Physics.step``."""
        self._ctrl[:] = controls
        diverged = np.zeros(len(controls), dtype=np.bool_)
        with quiet_mujoco():
            try:
                self.batch.step(stage=self._stage)
            except self._error as error:
                diverged[error.ids] = True
        if self._warnings.max() > 0:  # MuJoCo resets by itself what exceeds its limits, and counts that as a warning
            diverged |= self._warnings[:, self._bad, 1].any(axis=1)
        return diverged

    def restart(self, ids: NDArray[np.int32]) -> None:
        """See ``Physics.restart``."""
        with quiet_mujoco():
            self.batch.reset(ids)

    def snapshot(self, index: int) -> mujoco.MjData:
        """See ``Physics.snapshot``."""
        data = self.batch.get_data(index)
        with quiet_mujoco():
            mujoco.mj_forward(self.model, data)
        return data
