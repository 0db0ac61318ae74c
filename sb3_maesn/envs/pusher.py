"""PusherBlock: a planar hand that has to push the right one of five blocks to a goal."""

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_maesn.envs.mujoco_family import MujocoFamily
from sb3_maesn.envs.rendering import Marker
from sb3_maesn.envs.task_family import Array, Mask, State, action_box, distance, norm, unbounded_box

N_BLOCKS = 5
SPARSE_RADIUS = 0.2
REWARD_SCALE = 5.0
BLOCK_X = (0.35, 0.65)
GOAL_X = (0.75, 0.95)
BAND_WIDTH = 0.2
LOWEST_BAND = -0.5
TABLE_BOUND = 2.0
#: World x and y of the block bodies where their joints are at zero, as in pusher.xml: qpos = world - offset.
BLOCK_OFFSETS = np.array([[0.2 * (i + 1), 0.0] for i in range(N_BLOCKS)])


class PusherBlock(MujocoFamily):
    """Push one of five blocks to a goal; neither which one nor where to is observed (Gupta et al. 2018, section 6).

    Task (13): the block's index, the goal's x and y, and the layout, x and y of block 0, ..., 4 at the start.
    Observation (26): the hand's qpos (x, y, yaw), x and y of the five blocks, and qvel. Action (3): forces on the
    hand's joints, in [-1, 1]. Dense reward: -5 * distance from the block to the goal; sparse: the distance from the
    origin to the goal instead, wherever the block is further than 0.2 from it. Solved: the episode ends with the block
    within 0.2 of the goal.

    :param sparse: use the reward of meta-testing
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
        """See ``TaskFamily.sample_tasks``; every task has a layout of its own."""
        layouts = _layout_tasks(n, rng)
        return layouts[np.arange(n), rng.integers(N_BLOCKS, size=n)]

    def _fixed_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """All five blocks of each layout in turn: 20 layouts make 100 tasks."""
        layouts = _layout_tasks(-(-n // N_BLOCKS), rng)
        return layouts.reshape(-1, layouts.shape[-1])[:n]  # (layouts, 5, 13) -> (n, 13)

    def check_tasks(self, tasks: ArrayLike) -> Array:
        """See ``TaskFamily.check_tasks``; the block's index must be an integer."""
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
        """See ``TaskFamily.initial_state``; exactly the task's layout, the hand at the origin."""
        qpos, qvel = self.initial_states(task[None], [0], lambda _: rng)
        return qpos[0], qvel[0]

    def initial_states(
        self, tasks: Array, ids: Sequence[int] | NDArray[np.int64], generator: Callable[[int], np.random.Generator]
    ) -> tuple[Array, Array]:
        """See ``TaskFamily.initial_states``; nothing is drawn."""
        qpos = np.zeros((len(tasks), self.model.nq))
        qpos[:, 3:] = tasks[:, 3:] - BLOCK_OFFSETS.ravel()
        return qpos, np.zeros((len(tasks), self.model.nv))

    def controls(self, actions: Array) -> Array:
        """See ``TaskFamily.controls``."""
        return np.clip(2.0 * actions, -2.0, 2.0)

    def observation(self, state: State) -> Array:
        """See ``TaskFamily.observation``."""
        qpos = state["qpos"]
        observation = np.concatenate([qpos, state["qvel"]], axis=1)
        observation[:, 3:13] += BLOCK_OFFSETS.ravel()
        return observation

    def state_of(self, observation: Array) -> State:
        """See ``TaskFamily.state_of``."""
        qpos = observation[:, :13].copy()
        qpos[:, 3:] -= BLOCK_OFFSETS.ravel()
        return {"qpos": qpos}

    def dynamics_groups(self, tasks: Array) -> NDArray[np.int_]:
        """See ``TaskFamily.dynamics_groups``: tasks of one layout."""
        return np.unique(tasks[:, 3:], axis=0, return_inverse=True)[1].reshape(-1)

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """See ``TaskFamily.reward``."""
        goals = tasks[:, 1:3]
        to_goal = distance(_task_block(state, tasks), goals)
        if self.sparse:
            to_goal = np.where(to_goal > SPARSE_RADIUS, norm(goals), to_goal)
        return -REWARD_SCALE * to_goal

    def success(self, state: State, tasks: Array) -> Mask:
        """See ``TaskFamily.success``."""
        return distance(_task_block(state, tasks), tasks[:, 1:3]) < SPARSE_RADIUS

    def marker(self, task: Array) -> Marker:
        """See ``MujocoFamily.marker``; the goal has the colour of the block."""
        red, green, blue, _ = self.model.geom(f"block_{int(task[0]) + 1}").rgba
        return Marker(np.array([task[1], task[2], -0.325]), SPARSE_RADIUS, (red, green, blue))


def _layout_tasks(n: int, rng: np.random.Generator) -> Array:
    """Draw layouts, and a goal for each block: tasks (n, 5, 13), a layout's in the order of the bands."""
    # one row of numbers per layout, so that fewer layouts are the first of more
    order, block_x, block_y, goal_x, goal_y = rng.random((n, 5, N_BLOCKS)).transpose(1, 0, 2)
    blocks = np.argsort(order, axis=1)  # (n, band): a random order
    lows = LOWEST_BAND + BAND_WIDTH * np.arange(N_BLOCKS)
    in_bands = np.stack([_uniform(BLOCK_X, block_x), lows + BAND_WIDTH * block_y], axis=2)  # (n, band, 2)
    layout = np.empty_like(in_bands)  # (n, block, 2)
    layout[np.arange(n)[:, None], blocks] = in_bands
    goals = np.stack([_uniform(GOAL_X, goal_x), lows + BAND_WIDTH * goal_y], axis=2)
    layouts = np.repeat(layout.reshape(n, 1, 2 * N_BLOCKS), N_BLOCKS, axis=1)
    return np.concatenate([blocks[:, :, None], goals, layouts], axis=2)


def _uniform(bounds: tuple[float, float], u: Array) -> Array:
    """Map numbers uniform on (0, 1) to numbers uniform between the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def _task_block(state: State, tasks: Array) -> Array:
    """World x and y of each task's block (n, 2)."""
    blocks = tasks[:, 0].astype(np.intp)
    rows = np.arange(len(tasks))
    joints = state["qpos"][:, 3:].reshape(len(tasks), N_BLOCKS, 2)
    return joints[rows, blocks] + BLOCK_OFFSETS[blocks]
