"""WheeledGoal: a differential-drive cart that has to find a goal on a half circle."""

import numpy as np
from gymnasium import spaces

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, half_circle_goals, norm, unbounded_box

GOAL_RADIUS = 2.0
SPARSE_RADIUS = 0.8
CONTROL_COST = 0.05


class WheeledGoal(MujocoFamily):
    """Drive to a goal at distance 2 (Gupta et al. 2018, section 6; the goal is not observed).

    Observation (12): qpos (x, y, z, yaw, two wheels) and qvel. Action (2): the wheels' torques, in [-1, 1].
    Dense reward: -distance to the goal - 0.05 * sum(controls^2); sparse: the distance term is the distance from the
    origin to the goal wherever the cart is further than 0.8 from the goal. Solved: the episode ends within 0.8.

    :param sparse: use the reward of meta-testing
    """

    base_name = "WheeledGoal"
    horizon = 200
    asset = "wheeled.xml"

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(sparse)
        self.observation_space = unbounded_box(12)
        self.action_space = action_box(2)
        self.task_space = spaces.Box(-4.0, 4.0, (2,), np.float64)

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """See ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def controls(self, actions: Array) -> Array:
        """See ``TaskFamily.controls``."""
        return np.clip(2.0 * actions, -2.0, 2.0)

    def observation(self, state: State) -> Array:
        """See ``TaskFamily.observation``."""
        return np.concatenate([state["qpos"], state["qvel"]], axis=1)

    def state_of(self, observation: Array) -> State:
        """See ``TaskFamily.state_of``."""
        return {"qpos": observation[:, :6]}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """See ``TaskFamily.reward``."""
        to_goal = distance(state["qpos"][:, :2], tasks)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(tasks), to_goal)
        return -to_goal - CONTROL_COST * np.square(controls).sum(axis=1)

    def success(self, state: State, tasks: Array) -> Mask:
        """See ``TaskFamily.success``."""
        return distance(state["qpos"][:, :2], tasks) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """See ``MujocoFamily.marker``."""
        return Marker(np.array([task[0], task[1], 0.0]), SPARSE_RADIUS)
