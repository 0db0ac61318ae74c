"""The definition of a task family: its tasks, and reset, observation, reward and success as functions of arrays."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Live arrays over n simulations by field name: ``qpos`` (n, nq), ``qvel`` (n, nv) and the other fields a family reads.
State = Mapping[str, Array]

SPLITS = ("train", "validation", "test")


class Physics(Protocol):
    """``n`` simulations of one model that advance together."""

    @property
    def state(self) -> State:
        """Live arrays over the simulations, changed in place by ``reset``, ``step`` and ``restart``."""

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """Start episodes in some simulations from given positions and velocities.

        :param ids: sorted simulation indices (m,)
        :param qpos: initial positions (m, nq)
        :param qvel: initial velocities (m, nv)
        """

    def step(self, controls: Array) -> Mask:
        """Advance every simulation by one control step, after which ``state`` describes the new state.

        :param controls: motor controls, see ``TaskFamily.controls`` (n, nu)
        :return: mask of the simulations known to have diverged (n,)
        """

    def restart(self, ids: NDArray[np.int32]) -> None:
        """Put simulations that diverged back into the model's default state.

        :param ids: sorted simulation indices (m,)
        """

    def snapshot(self, index: int) -> Any:
        """Copy the data that the family's renderer needs to draw one simulation.

        :param index: index of the simulation
        :return: an object that ``Renderer.render`` of the same family accepts
        """


class TaskFamily(ABC):
    """A distribution over tasks that share one simulated body, one observation space and one action space.

    A family's functions take and return arrays over n simulations, so that one definition serves both the batched
    ``VecEnv`` and the single ``gymnasium.Env``. A task is a vector of G numbers; what they mean, and the units of
    observations and actions, stand in the docstring of each family. The observation never contains the task.

    :param sparse: whether to use the reward of meta-testing, which is uninformative outside a radius around the goal
    """

    base_name: ClassVar[str]  # name of the dense variant, without version
    horizon: ClassVar[int]  # number of steps of an episode that does not terminate
    render_fps: ClassVar[int] = 100  # frames per second: real time at the MuJoCo families' 0.01 s a step
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    task_space: spaces.Box  # bounds of the tasks that a caller may set

    def __init__(self, sparse: bool = False) -> None:
        self.sparse = sparse

    @property
    def name(self) -> str:
        """Name of the environment without its version, e.g. ``"WheeledGoalSparse"``."""
        return self.base_name + ("Sparse" if self.sparse else "")

    @property
    def env_id(self) -> str:
        """Gymnasium id of the environment, e.g. ``"WheeledGoalSparse-v0"``."""
        return f"{self.name}-v0"

    # Tasks

    @abstractmethod
    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw tasks from the family's distribution.

        :param n: number of tasks
        :param rng: source of randomness
        :return: tasks (n, G)
        """

    def task_set(self, split: str, n_tasks: int = 100) -> Array:
        """Draw one of the family's three task sets, with a fixed seed for each.

        A smaller set is the beginning of a larger one.

        :param split: name of the set: ``"train"``, ``"validation"`` or ``"test"``
        :param n_tasks: number of tasks
        :return: tasks, the same at every call (n_tasks, G)
        :raises ValueError: for another split or a negative number of tasks
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if n_tasks < 0:
            raise ValueError(f"n_tasks must not be negative, got {n_tasks}")
        return self._fixed_tasks(n_tasks, np.random.default_rng([2018, SPLITS.index(split)]))

    def _fixed_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw the tasks of a fixed set; families whose sets are structured override it."""
        return self.sample_tasks(n, rng)

    def check_tasks(self, tasks: ArrayLike) -> Array:
        """Check and copy tasks that come from a caller.

        :param tasks: tasks (n, G)
        :return: the tasks as a new float64 array (n, G)
        :raises ValueError: if the shape is wrong, or a number is not finite or outside the bounds of ``task_space``
        """
        checked = np.array(tasks, dtype=np.float64)
        (size,) = self.task_space.shape
        if checked.ndim != 2 or checked.shape[1] != size:
            raise ValueError(f"{self.name} tasks must have shape (n, {size}), got {checked.shape}")
        if not np.isfinite(checked).all():
            row = int(np.flatnonzero(~np.isfinite(checked).all(axis=1))[0])
            raise ValueError(f"{self.name} tasks must be finite, got task {row} = {checked[row].tolist()}")
        low, high = self.task_space.low, self.task_space.high
        outside = (checked < low) | (checked > high)
        if outside.any():
            row, column = (int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"{self.name} tasks must lie in [{low[column]:g}, {high[column]:g}] in component {column}, "
                f"got task {row} = {checked[row].tolist()}"
            )
        return checked

    # Episodes

    @abstractmethod
    def make_physics(self, n: int, n_threads: int = 0) -> Physics:
        """Create the simulations.

        :param n: number of simulations
        :param n_threads: number of threads that step them, 0 for one per CPU
        :return: ``n`` simulations in the model's default state
        """

    @abstractmethod
    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw the state from which one episode starts.

        :param task: task of the episode (G,)
        :param rng: source of randomness of the episode
        :return: qpos (nq,) and qvel (nv,)
        """

    def initial_states(
        self, tasks: Array, ids: Sequence[int] | NDArray[np.int64], generator: Callable[[int], np.random.Generator]
    ) -> tuple[Array, Array]:
        """Draw the states from which several episodes start.

        Families that can draw all of them at once faster than one by one override it.

        :param tasks: tasks of the episodes (m, G)
        :param ids: indices of the members that run the episodes (m,)
        :param generator: function from a member's index to its source of randomness
        :return: qpos (m, nq) and qvel (m, nv)
        """
        starts = [self.initial_state(task, generator(int(i))) for task, i in zip(tasks, ids, strict=True)]
        qpos, qvel = (np.array(part) for part in zip(*starts, strict=True))
        return qpos, qvel

    def controls(self, actions: Array) -> Array:
        """Convert actions to what the motors receive, by default the actions clipped to [-1, 1].

        :param actions: actions of the policy (n, nu)
        :return: controls (n, nu)
        """
        return np.clip(actions, -1.0, 1.0)

    @abstractmethod
    def observation(self, state: State) -> Array:
        """Compute what the policy sees, which never includes the task.

        :param state: state of the simulations
        :return: observations, a new array (n, O)
        """

    def state_of(self, observation: Array) -> State:
        """Recover from observations the part of the state that ``reward`` reads.

        Families that implement it let episodes of one task be evaluated under another task, see
        ``sb3_maesn.envs.relabel``.

        :param observation: observations (n, O)
        :return: fields of the state (n, ...), enough for ``reward``
        :raises NotImplementedError: if the observation does not determine the reward
        """
        raise NotImplementedError(f"the observation of {self.name} does not tell its reward")

    def dynamics_groups(self, tasks: Array) -> NDArray[np.int_]:
        """Group the tasks that differ only in their reward.

        An episode of one task then tells what it would have returned in any other task of its group.

        :param tasks: tasks (n, G)
        :return: group numbers, counted from 0 (n,)
        """
        return np.zeros(len(tasks), dtype=np.int_)

    @abstractmethod
    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Compute the reward for arriving in a state.

        :param state: state after the step
        :param controls: controls of the step, as returned by ``controls`` (n, nu)
        :param tasks: tasks (n, G)
        :return: rewards (n,)
        """

    def terminated(self, state: State) -> Mask:
        """Tell which episodes end before the horizon, by default none.

        :param state: state after the step
        :return: mask (n,)
        """
        return np.zeros(len(state["qpos"]), dtype=np.bool_)

    @abstractmethod
    def success(self, state: State, tasks: Array) -> Mask:
        """Tell which episodes solved their task, given the state in which they reached the horizon.

        :param state: state at the horizon
        :param tasks: tasks (n, G)
        :return: mask (n,)
        """

    # Rendering

    @abstractmethod
    def make_renderer(self, width: int, height: int) -> "Renderer":
        """Create the renderer that draws single members.

        :param width: frame width in pixels
        :param height: frame height in pixels
        :return: the renderer
        """


class Renderer(Protocol):
    """A renderer that draws one simulation of a family."""

    def render(self, snapshot: Any, task: Array) -> NDArray[np.uint8]:
        """Draw one frame.

        :param snapshot: data from ``Physics.snapshot``
        :param task: task of the member, whose goal is marked (G,)
        :return: an RGB image (height, width, 3)
        """

    def close(self) -> None:
        """Release the renderer's resources."""


def unbounded_box(size: int) -> spaces.Box:
    """Build an observation space without bounds.

    :param size: number of components
    :return: unbounded float64 Box (size,)
    """
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)


def action_box(size: int) -> spaces.Box:
    """Build the action space of several motors.

    :param size: number of motors
    :return: float32 Box with bounds -1 and 1 (size,)
    """
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def half_circle_goals(n: int, radius: float, rng: np.random.Generator) -> Array:
    """Draw goals on the upper half circle around the origin, the angle uniform on (0, pi) rad.

    :param n: number of goals
    :param radius: radius of the circle in metres
    :param rng: source of randomness
    :return: x and y of the goals in the world frame in metres (n, 2)
    """
    angle = np.pi * rng.random(n)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def distance(a: Array, b: Array) -> Array:
    """Compute Euclidean distances between pairs of points in the plane.

    :param a: first points (n, 2)
    :param b: second points (n, 2)
    :return: distances (n,)
    """
    offset = a - b
    return np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2)


def norm(a: Array) -> Array:
    """Compute the lengths of vectors in the plane.

    :param a: vectors (n, 2)
    :return: lengths (n,)
    """
    return np.sqrt(a[:, 0] ** 2 + a[:, 1] ** 2)
