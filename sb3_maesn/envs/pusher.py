"""PusherBlock: a planar hand that has to push the right one of five blocks to a goal."""

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, norm, unbounded_box

N_BLOCKS = 5
ACTION_SCALE = 2.0  # N (x, y) or N m (yaw) per unit of action
SPARSE_RADIUS = 0.2  # m
REWARD_SCALE = 5.0  # per m and step
BLOCK_X = (0.35, 0.65)  # m
GOAL_X = (0.75, 0.95)  # m
BAND_WIDTH = 0.2  # m
LOWEST_BAND = -0.5  # m, lower edge
TABLE_BOUND = 2.0  # m
#: World x and y (m) of the blocks where their joints are at zero, as in pusher.xml: qpos = world - offset.
BLOCK_OFFSETS = np.array([[0.2 * (i + 1), 0.0] for i in range(N_BLOCKS)])


class PusherBlock(MujocoFamily):
    """A planar hand that has to push one of five blocks to an unobserved goal (Gupta et al. 2018, section 6).

    **Task (13)**: index of the block (0 to 4), x and y of its goal, then the layout: x and y of blocks 0 to 4 at the
    start; coordinates in the world frame (m), each in [-2, 2]. A layout puts the blocks in random order into five bands
    of y, 0.2 m wide from -0.5 m up, at x in (0.35, 0.65) m; the goal is in its block's band, at x in (0.75, 0.95) m.

    **Action (3)**: normalised forces along x and y and torque about z on the hand in [-1, 1]. Each motor receives
    ``ACTION_SCALE`` times its action (N, N m).

    **Observation (26)**: in the world frame.

    | index | quantity                                | unit       |
    |-------|-----------------------------------------|------------|
    | 0-2   | x, y and yaw of the hand                | m, rad     |
    | 3-12  | x and y of blocks 0 to 4                | m          |
    | 13-25 | velocities of the above, in their order | m/s, rad/s |

    **Reward**: -5 times the distance (m) of the block from the goal. With ``sparse``, wherever that is more than 0.2 m,
    the goal's distance from the origin takes its place.

    **Episode**: 100 steps of 0.01 s, starting at rest with exactly the task's layout and the hand at the origin. It
    succeeds if the block is less than 0.2 m from the goal at the end.

    :param sparse: whether to use the reward of meta-testing
    """

    base_name = "PusherBlock"
    horizon = 100
    asset = "pusher.xml"

    def __init__(self, sparse: bool = False) -> None:
        super().__init__(sparse)
        self.observation_space = unbounded_box(26)
        self.action_space = action_box(3)
        bound = np.full(2 + 2 * N_BLOCKS, TABLE_BOUND)
        self.task_space = spaces.Box(np.append(0.0, -bound), np.append(N_BLOCKS - 1.0, bound), dtype=np.float64)

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw tasks, each with a layout of its own, see ``TaskFamily.sample_tasks``."""
        layouts = _layout_tasks(n, rng)
        return layouts[np.arange(n), rng.integers(N_BLOCKS, size=n)]

    def _fixed_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw layouts with one task for each of their five blocks: 20 layouts make 100 tasks."""
        layouts = _layout_tasks(-(-n // N_BLOCKS), rng)
        return layouts.reshape(-1, layouts.shape[-1])[:n]  # (layouts, 5, 13) -> (n, 13)

    def check_tasks(self, tasks: ArrayLike) -> Array:
        """Check tasks, whose block index must be an integer, see ``TaskFamily.check_tasks``."""
        checked = super().check_tasks(tasks)
        fractional = np.flatnonzero(checked[:, 0] % 1.0)
        if fractional.size:
            row = int(fractional[0])
            raise ValueError(
                f"{self.name} tasks begin with a block index, one of 0..{N_BLOCKS - 1}, "
                f"got {checked[row, 0]:g} in task {row}"
            )
        return checked

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Place the blocks as the task says, see ``TaskFamily.initial_state``."""
        qpos, qvel = self.initial_states(task[None], [0], lambda _: rng)
        return qpos[0], qvel[0]

    def initial_states(
        self, tasks: Array, ids: Sequence[int] | NDArray[np.int64], generator: Callable[[int], np.random.Generator]
    ) -> tuple[Array, Array]:
        """Place the blocks as the tasks say, without random draws, see ``TaskFamily.initial_states``."""
        qpos = np.zeros((len(tasks), self.model.nq))
        qpos[:, 3:] = tasks[:, 3:] - BLOCK_OFFSETS.ravel()
        return qpos, np.zeros((len(tasks), self.model.nv))

    def controls(self, actions: Array) -> Array:
        """Scale the actions to forces in N and a torque in N m, see ``TaskFamily.controls``."""
        return np.clip(ACTION_SCALE * actions, -ACTION_SCALE, ACTION_SCALE)

    def observation(self, state: State) -> Array:
        """Concatenate qpos, with the blocks in world coordinates, and qvel, see ``TaskFamily.observation``."""
        qpos = state["qpos"]
        observation = np.concatenate([qpos, state["qvel"]], axis=1)
        observation[:, 3:13] += BLOCK_OFFSETS.ravel()
        return observation

    def state_of(self, observation: Array) -> State:
        """Recover qpos from the observation, see ``TaskFamily.state_of``."""
        qpos = observation[:, :13].copy()
        qpos[:, 3:] -= BLOCK_OFFSETS.ravel()
        return {"qpos": qpos}

    def dynamics_groups(self, tasks: Array) -> NDArray[np.int_]:
        """Group the tasks of one layout, see ``TaskFamily.dynamics_groups``."""
        return np.unique(tasks[:, 3:], axis=0, return_inverse=True)[1].reshape(-1)

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Compute the dense or the sparse reward of the class, see ``TaskFamily.reward``."""
        goals = tasks[:, 1:3]
        to_goal = distance(_task_block(state, tasks), goals)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(goals), to_goal)
        return -REWARD_SCALE * to_goal

    def success(self, state: State, tasks: Array) -> Mask:
        """Compare the block's distance to its goal with the success radius, see ``TaskFamily.success``."""
        return distance(_task_block(state, tasks), tasks[:, 1:3]) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """Mark the goal on the table in the colour of its block, see ``MujocoFamily.marker``."""
        red, green, blue, _ = self.model.geom(f"block_{int(task[0]) + 1}").rgba
        return Marker(np.array([task[1], task[2], -0.325]), SPARSE_RADIUS, (red, green, blue))


def _layout_tasks(n: int, rng: np.random.Generator) -> Array:
    """Draw layouts and a goal for each block; tasks (n, 5, 13), those of a layout in the order of its bands."""
    # all numbers of a layout lie in one row, so that a smaller set is the beginning of a larger one
    order, block_x, block_y, goal_x, goal_y = rng.random((n, 5, N_BLOCKS)).transpose(1, 0, 2)
    blocks = np.argsort(order, axis=1)  # random order of the blocks (n, band)
    lows = LOWEST_BAND + BAND_WIDTH * np.arange(N_BLOCKS)
    block_x, goal_x = (low + (high - low) * u for (low, high), u in ((BLOCK_X, block_x), (GOAL_X, goal_x)))
    in_bands = np.stack([block_x, lows + BAND_WIDTH * block_y], axis=2)  # (n, band, 2)
    layout = np.empty_like(in_bands)  # (n, block, 2)
    layout[np.arange(n)[:, None], blocks] = in_bands
    goals = np.stack([goal_x, lows + BAND_WIDTH * goal_y], axis=2)  # (n, band, 2)
    layouts = np.repeat(layout.reshape(n, 1, 2 * N_BLOCKS), N_BLOCKS, axis=1)
    return np.concatenate([blocks[:, :, None], goals, layouts], axis=2)


def _task_block(state: State, tasks: Array) -> Array:
    """Look up x and y in the world frame of the block that each task is about (n, 2)."""
    blocks = tasks[:, 0].astype(np.intp)
    rows = np.arange(len(tasks))
    joints = state["qpos"][:, 3:].reshape(len(tasks), N_BLOCKS, 2)
    return joints[rows, blocks] + BLOCK_OFFSETS[blocks]
