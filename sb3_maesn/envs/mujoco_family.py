"""What the MuJoCo task families share."""

import functools
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sb3_maesn.envs.mujoco_physics import MujocoPhysics, load_model
from sb3_maesn.envs.rendering import Marker, MujocoSceneRenderer
from sb3_maesn.envs.task_family import Array, Renderer, TaskFamily

if TYPE_CHECKING:
    import mujoco

QPOS_NOISE = 0.01
QVEL_NOISE = 0.1


class MujocoFamily(TaskFamily):
    """A task family simulated by MuJoCo, from a model in ``assets``.

    :param sparse: use the reward of meta-testing
    """

    asset: ClassVar[str]
    #: MjData fields besides qpos and qvel that the observation or the reward reads.
    derived: ClassVar[tuple[str, ...]] = ()
    #: The forward stage that brings these up to date after a step.
    stage: ClassVar[str] = "none"

    @functools.cached_property
    def model(self) -> "mujoco.MjModel":
        """The compiled model."""
        return load_model(self.asset)

    @property
    def initial_qpos(self) -> Array:
        """The position episodes start around (nq,)."""
        return self.model.qpos0

    def make_physics(self, n: int, n_threads: int = 0) -> MujocoPhysics:
        """See ``TaskFamily.make_physics``."""
        return MujocoPhysics(self.model, n, n_threads, self.derived, self.stage)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """See ``TaskFamily.initial_state``."""
        qpos = self.initial_qpos + QPOS_NOISE * rng.standard_normal(self.model.nq)
        return qpos, QVEL_NOISE * rng.standard_normal(self.model.nv)

    def make_renderer(self, width: int, height: int) -> Renderer:
        """See ``TaskFamily.make_renderer``."""
        return MujocoSceneRenderer(self.model, self.marker, width, height)

    @abstractmethod
    def marker(self, task: Array) -> Marker:
        """How the goal is drawn.

        :param task: the task (G,)
        :return: the marker
        """
