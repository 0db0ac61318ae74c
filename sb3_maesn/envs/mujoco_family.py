"""The part that all MuJoCo task families share: model, physics, noisy initial states and rendering."""

import functools
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from sb3_maesn.envs.mujoco_physics import MujocoPhysics, load_model
from sb3_maesn.envs.rendering import Marker, MujocoSceneRenderer
from sb3_maesn.envs.task_family import Array, Renderer, TaskFamily

if TYPE_CHECKING:
    import mujoco

QPOS_NOISE = 0.01  # standard deviation, m or rad
QVEL_NOISE = 0.1  # standard deviation, m/s or rad/s


class MujocoFamily(TaskFamily):
    """A task family simulated by MuJoCo from a model in ``assets``, at 0.01 s a step.

    Unless a family overrides ``initial_state``, an episode starts from ``initial_qpos`` at rest, plus independent
    Gaussian noise of standard deviation ``QPOS_NOISE`` on every position and ``QVEL_NOISE`` on every velocity.

    :param sparse: whether to use the reward of meta-testing
    """

    asset: ClassVar[str]
    #: Names of the MjData fields besides qpos and qvel that the observation or the reward reads.
    derived: ClassVar[tuple[str, ...]] = ()
    #: Forward stage that brings these fields up to date after a step, a key of ``STAGES``.
    stage: ClassVar[str] = "none"

    @functools.cached_property
    def model(self) -> "mujoco.MjModel":
        """The compiled model."""
        return load_model(self.asset)

    @property
    def initial_qpos(self) -> Array:
        """Position around which episodes start, by default the model's own (nq,)."""
        return self.model.qpos0

    def make_physics(self, n: int, n_threads: int = 0) -> MujocoPhysics:
        """Create the MuJoCo simulations, see ``TaskFamily.make_physics``."""
        return MujocoPhysics(self.model, n, n_threads, self.derived, self.stage)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw a noisy initial state, see the class.

        :param task: task of the episode, which does not matter (G,)
        :param rng: source of randomness of the episode
        :return: qpos (nq,) and qvel (nv,)
        """
        qpos = self.initial_qpos + QPOS_NOISE * rng.standard_normal(self.model.nq)
        return qpos, QVEL_NOISE * rng.standard_normal(self.model.nv)

    def make_renderer(self, width: int, height: int) -> Renderer:
        """Create the renderer of the model, see ``TaskFamily.make_renderer``."""
        return MujocoSceneRenderer(self.model, self.marker, width, height)

    @abstractmethod
    def marker(self, task: Array) -> Marker:
        """Build the disc that marks a task's goal in rendered frames.

        :param task: task (G,)
        :return: the marker
        """
