"""AntGoal: a four-legged robot that has to walk to a goal on a half circle."""

import numpy as np
from gymnasium import spaces

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, half_circle_goals, unbounded_box

GOAL_RADIUS = 2.0  # m
SPARSE_RADIUS = 0.8  # m
SURVIVAL_REWARD = 4.05  # per step
CONTROL_COST = 0.005
CONTACT_COST = 0.0005
HEALTHY_Z = (0.2, 1.0)  # m
#: Position around which episodes start, in the order and the units of observations 0-14.
INITIAL_QPOS = np.array([0.0, 0.0, 0.55, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])
TORSO = 1  # index of the body in ant.xml


class AntGoal(MujocoFamily):
    """A four-legged robot that has to walk to an unobserved goal 2 m away (Gupta et al. 2018, section 6).

    **Task (2)**: x and y of the goal in the world frame (m), each in [-4, 4]. Tasks are drawn from the half circle of
    radius 2 m around the origin, the angle uniform on (0, pi) rad.

    **Action (8)**: normalised joint torques in [-1, 1] of hip 4, ankle 4, hip 1, ankle 1, hip 2, ankle 2, hip 3 and
    ankle 3. The gear of the motors turns an action into a torque of 30 times its value (N m).

    **Observation (125)**: in the world frame, except for the torso's angular velocity, which is in its own. Bodies are
    in the order of ``ant.xml``, the world first.

    | index   | quantity                                                                   | unit       |
    |---------|----------------------------------------------------------------------------|------------|
    | 0-2     | position of the torso                                                      | m          |
    | 3-6     | orientation of the torso, as a quaternion (w, x, y, z)                     | -          |
    | 7-14    | angles of hip 1, ankle 1, ..., hip 4, ankle 4                              | rad        |
    | 15-20   | linear and angular velocity of the torso                                   | m/s, rad/s |
    | 21-28   | velocities of hip 1, ankle 1, ..., hip 4, ankle 4                          | rad/s      |
    | 29-112  | external torque (3) and force (3) on each of 14 bodies, clipped to [-1, 1] | N m, N     |
    | 113-121 | rotation matrix of the torso, row by row                                   | -          |
    | 122-124 | centre of mass of the whole ant                                            | m          |

    **Reward**: 4.05 for surviving, minus the L1 distance (m) of the centre of mass from the goal in the plane, minus
    0.005 times the sum of the squared actions, minus 0.0005 times the sum of the squares of observations 29-112. With
    ``sparse``, wherever the centre of mass is farther than 0.8 m from the goal, the goal's L1 distance from the origin
    takes the place of that distance.

    **Episode**: 200 steps of 0.01 s, starting around the origin, see ``MujocoFamily``. It terminates where the torso's
    height leaves [0.2, 1.0] m, and succeeds if it runs to its end, with the centre of mass less than 0.8 m from the
    goal.

    :param sparse: whether to use the reward of meta-testing
    """

    base_name = "AntGoal"
    horizon = 200
    asset = "ant.xml"
    derived = ("cfrc_ext", "xmat", "subtree_com")
    stage = "acc"  # the stage that computes contact forces

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(sparse)
        self.observation_space = unbounded_box(125)
        self.action_space = action_box(8)
        self.task_space = spaces.Box(-4.0, 4.0, (2,), np.float64)

    @property
    def initial_qpos(self) -> Array:
        """Standing position with bent legs, see ``MujocoFamily.initial_qpos``."""
        return INITIAL_QPOS

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw goals on the half circle, see ``TaskFamily.sample_tasks``."""
        return half_circle_goals(n, GOAL_RADIUS, rng)

    def observation(self, state: State) -> Array:
        """Assemble the table of the class, see ``TaskFamily.observation``."""
        qpos = state["qpos"]
        observation = np.empty((len(qpos), 125))
        observation[:, :15] = qpos
        observation[:, 15:29] = state["qvel"]
        np.clip(state["cfrc_ext"], -1.0, 1.0, out=observation[:, 29:113].reshape(-1, 14, 6))  # a view of (n, 84)
        observation[:, 113:122] = state["xmat"][:, TORSO]
        observation[:, 122:] = state["subtree_com"][:, TORSO]
        return observation

    def state_of(self, observation: Array) -> State:
        """Return the contact forces and the centre of mass, see ``TaskFamily.state_of``."""
        n = len(observation)
        centre_of_mass = np.zeros((n, TORSO + 1, 3))
        centre_of_mass[:, TORSO] = observation[:, -3:]
        return {"cfrc_ext": observation[:, 29:113].reshape(n, 14, 6), "subtree_com": centre_of_mass}

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Compute the dense or the sparse reward of the class, see ``TaskFamily.reward``."""
        position = state["subtree_com"][:, TORSO, :2]
        to_goal = np.abs(position - tasks).sum(axis=1)
        if self.sparse:
            to_goal = np.where(distance(position, tasks) > SPARSE_RADIUS, np.abs(tasks).sum(axis=1), to_goal)
        control_cost = CONTROL_COST * np.square(controls).sum(axis=1)
        # forces clipped to [-1, 1]: (n, 14, 6) -> (n, 84)
        squares = np.square(state["cfrc_ext"]).reshape(len(tasks), -1)
        contact_cost = CONTACT_COST * np.minimum(squares, 1.0, out=squares).sum(axis=1)
        return SURVIVAL_REWARD - to_goal - control_cost - contact_cost

    def terminated(self, state: State) -> Mask:
        """Tell which torsos are too low or too high, see ``TaskFamily.terminated``."""
        height = state["qpos"][:, 2]
        return ~((height >= HEALTHY_Z[0]) & (height <= HEALTHY_Z[1]))

    def success(self, state: State, tasks: Array) -> Mask:
        """Compare the distance to the goal with the success radius, see ``TaskFamily.success``."""
        return distance(state["subtree_com"][:, TORSO, :2], tasks) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """Mark the success radius around the goal on the floor, see ``MujocoFamily.marker``."""
        return Marker(np.array([task[0], task[1], 0.0]), SPARSE_RADIUS)
