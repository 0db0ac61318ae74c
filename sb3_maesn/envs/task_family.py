"""What a task family is: its tasks, and reset, observation, reward and success on arrays."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Live arrays over n simulations by field name: ``qpos`` (n, nq), ``qvel`` (n, nv) and what a family asks for besides.
State = Mapping[str, Array]

SPLITS = ("train", "validation", "test")


class Physics(Protocol):
    """``n`` simulations of one model that advance together."""

    @property
    def state(self) -> State:
        """Live arrays over the simulations."""

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """Start the simulations ``ids`` afresh from the given positions and velocities.

        :param ids: sorted simulation indices (m,)
        :param qpos: positions (m, nq)
        :param qvel: velocities (m, nv)
        """

    def step(self, controls: Array) -> Mask:
        """Advance every simulation by one control step; ``state`` then describes the state after it.

        :param controls: controls (n, nu)
        :return: the simulations that are known to have diverged (n,)
        """

    def restart(self, ids: NDArray[np.int32]) -> None:
        """Put simulations that diverged back to the model's default state.

        :param ids: sorted simulation indices (m,)
        """

    def snapshot(self, index: int) -> Any:
        """One simulation's data, for the renderer.

        :param index: the simulation
        :return: whatever the family's renderer draws
        """


class TaskFamily(ABC):
    """A distribution over tasks that share one simulated body, observation and action.

    Everything a family defines takes and returns arrays over n simulations, so that the same definition serves the
    batched ``VecEnv`` and the single ``gymnasium.Env``.

    :param sparse: use the reward of meta-testing, which says nothing outside a radius around the goal
    """

    base_name: ClassVar[str]
    horizon: ClassVar[int]
    render_fps: ClassVar[int] = 100  # real time at the MuJoCo families' 0.01 s a step
    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    task_space: spaces.Box

    def __init__(self, sparse: bool = False) -> None:
        self.sparse = sparse

    @property
    def name(self) -> str:
        """The environment id without its version, e.g. ``"WheeledGoalSparse"``."""
        return self.base_name + ("Sparse" if self.sparse else "")

    @property
    def env_id(self) -> str:
        """The environment id, e.g. ``"WheeledGoalSparse-v0"``."""
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
        """Tasks drawn once with a fixed seed; a smaller set is the beginning of a larger one.

        :param split: ``"train"``, ``"validation"`` or ``"test"``
        :param n_tasks: number of tasks
        :return: tasks (n_tasks, G), the same at every call
        :raises ValueError: for another split or a negative number of tasks
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if n_tasks < 0:
            raise ValueError(f"n_tasks must not be negative, got {n_tasks}")
        return self._fixed_tasks(n_tasks, np.random.default_rng([2018, SPLITS.index(split)]))

    def _fixed_tasks(self, n: int, rng: np.random.Generator) -> Array:
        return self.sample_tasks(n, rng)

    def check_tasks(self, tasks: ArrayLike) -> Array:
        """Check tasks a caller gives.

        :param tasks: tasks (n, G)
        :return: the tasks as a new float64 array (n, G)
        :raises ValueError: if the shape is wrong, or a number is not finite or out of ``task_space``'s bounds
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
        """The simulations.

        :param n: how many
        :param n_threads: threads that step them, 0 for one per CPU
        :return: ``n`` simulations at the model's default state
        """

    @abstractmethod
    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw the state one episode starts from.

        :param task: the episode's task (G,)
        :param rng: the episode's source of randomness
        :return: qpos (nq,) and qvel (nv,)
        """

    def initial_states(
        self, tasks: Array, ids: Sequence[int] | NDArray[np.int64], generator: Callable[[int], np.random.Generator]
    ) -> tuple[Array, Array]:
        """Draw the states that several episodes start from; for families that can do so faster than one by one.

        :param tasks: the episodes' tasks (m, G)
        :param ids: numbers of the episodes (m,)
        :param generator: gives the source of randomness of the episode with a number
        :return: qpos (m, nq) and qvel (m, nv)
        """
        starts = [self.initial_state(task, generator(int(i))) for task, i in zip(tasks, ids, strict=True)]
        qpos, qvel = (np.array(part) for part in zip(*starts, strict=True))
        return qpos, qvel

    def controls(self, actions: Array) -> Array:
        """What the motors receive.

        :param actions: actions (n, nu)
        :return: controls (n, nu)
        """
        return np.clip(actions, -1.0, 1.0)

    @abstractmethod
    def observation(self, state: State) -> Array:
        """What the policy sees; never the task.

        :param state: the simulations' state
        :return: a new array (n, O)
        """

    def state_of(self, observation: Array) -> State:
        """What the reward needs of a state, read from its observation.

        :param observation: observations (n, O)
        :return: fields (n, ...), enough for ``reward``
        :raises NotImplementedError: where the observation does not tell
        """
        raise NotImplementedError(f"the observation of {self.name} does not tell its reward")

    def dynamics_groups(self, tasks: Array) -> NDArray[np.int_]:
        """Which tasks differ in their reward only, so that an episode of one says what it would return in another.

        :param tasks: tasks (n, G)
        :return: group numbers from 0 (n,)
        """
        return np.zeros(len(tasks), dtype=np.int_)

    @abstractmethod
    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """The reward of arriving in ``state``.

        :param state: the state after the step
        :param controls: the controls of the step (n, nu)
        :param tasks: tasks (n, G)
        :return: rewards (n,)
        """

    def terminated(self, state: State) -> Mask:
        """Whether an episode ends before the horizon.

        :param state: the state after the step
        :return: mask (n,)
        """
        return np.zeros(len(state["qpos"]), dtype=np.bool_)

    @abstractmethod
    def success(self, state: State, tasks: Array) -> Mask:
        """Whether an episode that reached the horizon in ``state`` solved its task.

        :param state: the state at the horizon
        :param tasks: tasks (n, G)
        :return: mask (n,)
        """

    # Rendering

    @abstractmethod
    def make_renderer(self, width: int, height: int) -> "Renderer":
        """What draws one member.

        :param width: frame width in pixels
        :param height: frame height in pixels
        :return: the renderer
        """


class Renderer(Protocol):
    """Draws one simulation of a family."""

    def render(self, snapshot: Any, task: Array) -> NDArray[np.uint8]:
        """Draw one frame.

        :param snapshot: what ``Physics.snapshot`` returned
        :param task: the member's task (G,), whose goal is marked
        :return: an RGB image (height, width, 3)
        """

    def close(self) -> None:
        """Release the renderer."""


def unbounded_box(size: int) -> spaces.Box:
    """The observation space of ``size`` numbers without bounds.

    :param size: number of components
    :return: Box (size,) float64
    """
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)


def action_box(size: int) -> spaces.Box:
    """The action space of ``size`` motors.

    :param size: number of motors
    :return: Box(-1, 1) (size,) float32
    """
    return spaces.Box(-1.0, 1.0, (size,), np.float32)


def half_circle_goals(n: int, radius: float, rng: np.random.Generator) -> Array:
    """Draw goals on the upper half circle, the angle uniform on (0, pi).

    :param n: number of goals
    :param radius: radius of the circle
    :param rng: source of randomness
    :return: goals (n, 2)
    """
    angle = np.pi * rng.random(n)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def distance(a: Array, b: Array) -> Array:
    """Euclidean distances in the plane.

    :param a: points (n, 2)
    :param b: points (n, 2)
    :return: distances (n,)
    """
    offset = a - b
    return np.sqrt(offset[:, 0] ** 2 + offset[:, 1] ** 2)


def norm(a: Array) -> Array:
    """Lengths of vectors in the plane.

    :param a: vectors (n, 2)
    :return: lengths (n,)
    """
    return np.sqrt(a[:, 0] ** 2 + a[:, 1] ** 2)
