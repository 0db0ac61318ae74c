"""WheeledGoal: a differential-drive cart that has to find a goal on a half circle."""

import numpy as np
from gymnasium import spaces

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, half_circle_goals, norm, unbounded_box

ACTION_SCALE = 2.0  # N m per unit of action
GOAL_RADIUS = 2.0  # m
SPARSE_RADIUS = 0.8  # m
CONTROL_COST = 0.05  # per (N m)^2 and step


class WheeledGoal(MujocoFamily):
    """A differential-drive cart that has to reach an unobserved goal 2 m away (Gupta et al. 2018, section 6).

    **Task (2)**: x and y of the goal in the world frame (m), each in [-4, 4]. Tasks are drawn from the half circle of
    radius 2 m around the origin, the angle uniform on (0, pi) rad.

    **Action (2)**: normalised torques of the right and the left wheel in [-1, 1]. Each motor receives ``ACTION_SCALE``
    times its action as its control (N m).

    **Observation (12)**: qpos and qvel.

    | index | quantity                                           | unit  |
    |-------|----------------------------------------------------|-------|
    | 0-2   | x, y, z of the cart, relative to its default place | m     |
    | 3     | yaw of the cart                                    | rad   |
    | 4-5   | angles of the right and the left wheel             | rad   |
    | 6-8   | velocities along x, y, z                           | m/s   |
    | 9-11  | velocities of the yaw and of the two wheels        | rad/s |

    **Reward**: minus the distance of the cart from the goal (m) in the plane, minus 0.05 times the sum of the squared
    controls. With ``sparse``, wherever the cart is farther than 0.8 m from the goal, the goal's distance from the
    origin takes the place of the cart's distance from the goal.

    **Episode**: 200 steps of 0.01 s, starting around the origin, see ``MujocoFamily``. It succeeds if the cart is less
    than 0.8 m from the goal at the end.

    :param sparse: whether to use the reward of meta-testing
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
        """Draw goals on the half circle, see ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def controls(self, actions: Array) -> Array:
        """Scale the actions to wheel torques in N m, see ``TaskFamily.controls``."""
        return np.clip(ACTION_SCALE * actions, -ACTION_SCALE, ACTION_SCALE)

    def observation(self, state: State) -> Array:
        """Concatenate qpos and qvel, see ``TaskFamily.observation``."""
        return np.concatenate([state["qpos"], state["qvel"]], axis=1)

    def state_of(self, observation: Array) -> State:
        """Return the qpos part of the observation, see ``TaskFamily.state_of``."""
        return {"qpos": observation[:, :6]}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Compute the dense or the sparse reward of the class, see ``TaskFamily.reward``."""
        to_goal = distance(state["qpos"][:, :2], tasks)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(tasks), to_goal)
        return -to_goal - CONTROL_COST * np.square(controls).sum(axis=1)

    def success(self, state: State, tasks: Array) -> Mask:
        """Compare the distance to the goal with the success radius, see ``TaskFamily.success``."""
        return distance(state["qpos"][:, :2], tasks) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """Mark the success radius around the goal on the floor, see ``MujocoFamily.marker``."""
        return Marker(np.array([task[0], task[1], 0.0]), SPARSE_RADIUS)
