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
    """``n`` points that move by their control.

    :param n: number of points
    """

    def __init__(self, n: int) -> None:
        self.state = {"qpos": np.zeros((n, 2)), "qvel": np.zeros((n, 2))}

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """See ``Physics.reset``."""
        self.state["qpos"][ids] = qpos
        self.state["qvel"][ids] = qvel

    def step(self, controls: Array) -> Mask:
        """See ``Physics.step``."""
        self.state["qpos"] += STEP_SIZE * controls
        return np.zeros(len(controls), dtype=np.bool_)

    def restart(self, ids: NDArray[np.int32]) -> None:
        """See ``Physics.restart``."""
        self.state["qpos"][ids] = 0.0

    def snapshot(self, index: int) -> Array:
        """See ``Physics.snapshot``."""
        return self.state["qpos"][index].copy()


class PointGoal(TaskFamily):
    """Move a point to a goal at distance 1 that is not observed.

    Observation (2): the position. Action (2): the movement, in tenths. Dense reward: -distance to the goal; sparse: the
    distance from the origin to the goal instead, wherever the point is further than 0.3 from it. Solved: the episode
    ends within 0.3.

    :param sparse: use the reward of meta-testing
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
        """See ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def make_physics(self, n: int, n_threads: int = 0) -> PointPhysics:
        """See ``TaskFamily.make_physics``."""
        return PointPhysics(n)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """See ``TaskFamily.initial_state``."""
        return 0.01 * rng.standard_normal(2), np.zeros(2)

    def observation(self, state: State) -> Array:
        """See ``TaskFamily.observation``."""
        return state["qpos"].copy()

    def state_of(self, observation: Array) -> State:
        """See ``TaskFamily.state_of``."""
        return {"qpos": observation}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """See ``TaskFamily.reward``."""
        to_goal = distance(state["qpos"], tasks)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(tasks), to_goal)
        return -to_goal

    def success(self, state: State, tasks: Array) -> Mask:
        """See ``TaskFamily.success``."""
        return distance(state["qpos"], tasks) < SPARSE_RADIUS

    def make_renderer(self, width: int, height: int) -> Renderer:
        """See ``TaskFamily.make_renderer``."""
        return PlaneRenderer(width, height, SPARSE_RADIUS)


def best_controls(positions: Array, goals: Array) -> Array:
    """What a player that knows the goal does, with either reward.

    The coordinates move independently, and the reward never falls as one of them comes nearer to the goal's: so nothing
    beats approaching in both as fast as possible.

    :param positions: of the points (n, 2)
    :param goals: (n, 2)
    :return: controls (n, 2)
    """
    return np.clip((goals - positions) / STEP_SIZE, -1.0, 1.0)
