"""AntGoal: a four-legged robot that has to walk to a goal on a half circle."""

import numpy as np
from gymnasium import spaces

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, half_circle_goals, unbounded_box

GOAL_RADIUS = 2.0
SPARSE_RADIUS = 0.8
SURVIVAL_REWARD = 4.05
CONTROL_COST = 0.005
CONTACT_COST = 0.0005
HEALTHY_Z = (0.2, 1.0)
INITIAL_QPOS = np.array([0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])
TORSO = 1  # body index in ant.xml


class AntGoal(MujocoFamily):
    """Walk to a goal at distance 2 that is not observed (Gupta et al. 2018, section 6).

    Observation (125): qpos 15, qvel 14, contact forces of the 14 bodies clipped to [-1, 1] (84), the torso's rotation
    matrix 9 and the centre of mass 3. Action (8): torques in [-1, 1]. Dense reward: 4.05 - |com - goal|_1
    - 0.005 * sum(action^2) - 0.0005 * sum(contact forces^2); sparse: |goal|_1 instead of the distance, wherever the
    centre of mass is further than 0.8 from the goal. The episode terminates unless the torso's height is in
    [0.2, 1.0]. Solved: the episode runs to its end, within 0.8.

    :param sparse: use the reward of meta-testing
    """

    base_name = "AntGoal"
    horizon = 200
    asset = "ant.xml"
    derived = ("cfrc_ext", "xmat", "subtree_com")
    stage = "acc"  # contact forces need it

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(sparse)
        self.observation_space = unbounded_box(125)
        self.action_space = action_box(8)
        self.task_space = spaces.Box(-4.0, 4.0, (2,), np.float64)

    @property
    def initial_qpos(self) -> Array:
        """See ``MujocoFamily.initial_qpos``."""
        return INITIAL_QPOS

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """See ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def observation(self, state: State) -> Array:
        """See ``TaskFamily.observation``."""
        qpos = state["qpos"]
        observation = np.empty((len(qpos), 125))
        observation[:, :15] = qpos
        observation[:, 15:29] = state["qvel"]
        np.clip(state["cfrc_ext"], -1.0, 1.0, out=observation[:, 29:113].reshape(-1, 14, 6))  # of (n, 84), a view
        observation[:, 113:122] = state["xmat"][:, TORSO]
        observation[:, 122:] = state["subtree_com"][:, TORSO]
        return observation

    def state_of(self, observation: Array) -> State:
        """See ``TaskFamily.state_of``."""
        n = len(observation)
        centre_of_mass = np.zeros((n, TORSO + 1, 3))
        centre_of_mass[:, TORSO] = observation[:, -3:]
        return {"cfrc_ext": observation[:, 29:113].reshape(n, 14, 6), "subtree_com": centre_of_mass}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """See ``TaskFamily.reward``."""
        position = state["subtree_com"][:, TORSO, :2]
        to_goal = np.abs(position - tasks).sum(axis=1)
        if self.sparse:
            to_goal = np.where(distance(position, tasks) > SPARSE_RADIUS, np.abs(tasks).sum(axis=1), to_goal)
        control_cost = CONTROL_COST * np.square(controls).sum(axis=1)
        # the forces are clipped to [-1, 1]: (n, 14, 6) -> (n, 84)
        squares = np.square(state["cfrc_ext"]).reshape(len(tasks), -1)
        contact_cost = CONTACT_COST * np.minimum(squares, 1.0, out=squares).sum(axis=1)
        return SURVIVAL_REWARD - to_goal - control_cost - contact_cost

    def terminated(self, state: State) -> Mask:
        """See ``TaskFamily.terminated``."""
        height = state["qpos"][:, 2]
        return ~((height >= HEALTHY_Z[0]) & (height <= HEALTHY_Z[1]))

    def success(self, state: State, tasks: Array) -> Mask:
        """See ``TaskFamily.success``."""
        return distance(state["subtree_com"][:, TORSO, :2], tasks) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """See ``MujocoFamily.marker``."""
        return Marker(np.array([task[0], task[1], 0.0]), SPARSE_RADIUS)
