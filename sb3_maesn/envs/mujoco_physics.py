"""MuJoCo simulations on a thread pool: loading of the package's models, and the only importer of ``mujoco.batch``."""

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

STAGES = {"none": 0, "pos": 1, "vel": 2, "acc": 3}  # mjtStage, written out because mujoco 3 lacks it


def load_model(asset: str) -> mujoco.MjModel:
    """Compile a model that ships with the package.

    :param asset: name of a file in ``sb3_maesn/envs/assets``
    :return: the compiled model
    """
    return load_spec(asset).compile()


def load_plain_model(asset: str) -> mujoco.MjModel:
    """Compile a model without its optimisations, with MuJoCo's own collision detection and constraint islands.

    It is the reference against which the optimised model is tested and timed.

    :param asset: name of a file in ``sb3_maesn/envs/assets``
    :return: the compiled model
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

    :param asset: name of a file in ``sb3_maesn/envs/assets``
    :return: the model's specification
    """
    xml = resources.files("sb3_maesn.envs").joinpath("assets", asset).read_text(encoding="utf-8")
    return mujoco.MjSpec.from_string(xml)


def require_batch() -> Any:
    """Import the batch API of mujoco 4.

    :return: the module ``mujoco.batch``
    :raises ImportError: if the installed mujoco is older than version 4
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
    """Keep MuJoCo from writing warnings to the console and to MUJOCO_LOG.TXT.

    Divergence is reported by ``MujocoPhysics.step`` instead.
    """
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

    :param model: compiled model
    :param n: number of simulations
    :param n_threads: number of threads that step them, 0 for one per CPU
    :param derived: names of the MjData fields besides qpos and qvel that the family reads
    :param stage: forward stage to which these fields must be computed after a step, a key of ``STAGES``
    :raises ValueError: if ``n_threads`` is negative
    :raises ImportError: if the installed mujoco is older than version 4
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
        """Start episodes in some simulations, see ``Physics.reset``."""
        with quiet_mujoco():
            # writing the default state resets a simulation as batch.reset(ids) does, but much faster, since the latter
            # clears all of MjData
            self.batch.state[ids] = self._default
            self.state["qpos"][ids] = qpos
            self.state["qvel"][ids] = qvel
            if self._stage:
                self.batch.forward(ids, stage=self._stage)

    def step(self, controls: Array) -> Mask:
        """Advance every simulation by one time step of the model, see ``Physics.step``."""
        self._ctrl[:] = controls
        diverged = np.zeros(len(controls), dtype=np.bool_)
        with quiet_mujoco():
            try:
                self.batch.step(stage=self._stage)
            except self._error as error:
                diverged[error.ids] = True
        if self._warnings.max() > 0:  # MuJoCo resets a diverged simulation by itself, which shows in its warnings only
            diverged |= self._warnings[:, self._bad, 1].any(axis=1)
        return diverged

    def restart(self, ids: NDArray[np.int32]) -> None:
        """Put simulations that diverged back into the default state, see ``Physics.restart``."""
        with quiet_mujoco():
            self.batch.reset(ids)

    def snapshot(self, index: int) -> mujoco.MjData:
        """Copy one simulation's MjData with all derived fields up to date, see ``Physics.snapshot``."""
        data = self.batch.get_data(index)
        with quiet_mujoco():
            mujoco.mj_forward(self.model, data)
        return data
