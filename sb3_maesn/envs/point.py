"""PointGoal: a point in the plane, in plain NumPy, for tests, examples and documentation."""

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_maesn.envs.rendering import PlaneRenderer
from sb3_maesn.envs.task_family import (
    Array,
    Mask,
    Renderer,
    State,
    TaskFamily,
    action_box,
    distance,
    half_circle_goals,
    norm,
    unbounded_box,
)

GOAL_RADIUS = 1.0
SPARSE_RADIUS = 0.3
STEP_SIZE = 0.1


class PointPhysics:
    """``n`` points that move by ``STEP_SIZE`` times their control at every step.

    :param n: number of points
    """

    def __init__(self, n: int) -> None:
        self.state = {"qpos": np.zeros((n, 2)), "qvel": np.zeros((n, 2))}

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """Put points at given positions, see ``Physics.reset``."""
        self.state["qpos"][ids] = qpos
        self.state["qvel"][ids] = qvel

    def step(self, controls: Array) -> Mask:
        """Move every point, which cannot diverge, see ``Physics.step``."""
        self.state["qpos"] += STEP_SIZE * controls
        return np.zeros(len(controls), dtype=np.bool_)

    def restart(self, ids: NDArray[np.int32]) -> None:
        """Put points back to the origin, see ``Physics.restart``."""
        self.state["qpos"][ids] = 0.0

    def snapshot(self, index: int) -> Array:
        """Copy the position of one point, see ``Physics.snapshot``."""
        return self.state["qpos"][index].copy()


class PointGoal(TaskFamily):
    """A point in the plane that has to move to an unobserved goal at distance 1.

    Lengths have no physical unit here.

    **Task (2)**: x and y of the goal, each in [-2, 2]. Tasks are drawn from the half circle of radius 1 around the
    origin, the angle uniform on (0, pi) rad.

    **Action (2)**: displacement along x and y in [-1, 1], in multiples of ``STEP_SIZE``.

    **Observation (2)**: x and y of the point.

    **Reward**: minus the distance of the point from the goal. With ``sparse``, wherever that is more than 0.3, the
    goal's distance from the origin takes its place.

    **Episode**: 20 steps from the origin plus Gaussian noise of standard deviation 0.01. It succeeds if the point is
    less than 0.3 from the goal at the end.

    :param sparse: whether to use the reward of meta-testing
    """

    base_name = "PointGoal"
    horizon = 20
    render_fps = 10

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(sparse)
        self.observation_space = unbounded_box(2)
        self.action_space = action_box(2)
        self.task_space = spaces.Box(-2.0, 2.0, (2,), np.float64)

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw goals on the half circle, see ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def make_physics(self, n: int, n_threads: int = 0) -> PointPhysics:
        """Create the points, see ``TaskFamily.make_physics``; threads would not pay."""
        return PointPhysics(n)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw a position close to the origin, see ``TaskFamily.initial_state``."""
        return 0.01 * rng.standard_normal(2), np.zeros(2)

    def observation(self, state: State) -> Array:
        """Copy the positions, see ``TaskFamily.observation``."""
        return state["qpos"].copy()

    def state_of(self, observation: Array) -> State:
        """Return the positions, see ``TaskFamily.state_of``."""
        return {"qpos": observation}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Compute the dense or the sparse reward of the class, see ``TaskFamily.reward``."""
        to_goal = distance(state["qpos"], tasks)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(tasks), to_goal)
        return -to_goal

    def success(self, state: State, tasks: Array) -> Mask:
        """Compare the distance to the goal with the success radius, see ``TaskFamily.success``."""
        return distance(state["qpos"], tasks) < SPARSE_RADIUS

    def make_renderer(self, width: int, height: int) -> Renderer:
        """Create the renderer of the plane, see ``TaskFamily.make_renderer``."""
        return PlaneRenderer(width, height, SPARSE_RADIUS)


def best_controls(positions: Array, goals: Array) -> Array:
    """Compute the optimal controls of a player that knows the goal, for the dense and the sparse reward.

    The coordinates move independently, and the reward never falls when one of them comes nearer to the goal's. Nothing
    therefore beats approaching the goal in both coordinates as fast as possible.

    :param positions: positions of the points (n, 2)
    :param goals: goals (n, 2)
    :return: controls (n, 2)
    """
    return np.clip((goals - positions) / STEP_SIZE, -1.0, 1.0)
