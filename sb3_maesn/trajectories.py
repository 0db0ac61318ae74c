"""Paths of episodes in the plane, for figures and for measuring the coverage of the prior."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_maesn.envs import BatchedTaskVecEnv, make_vec


@dataclass(frozen=True)
class Plane:
    """Functions that map observations and tasks of a family to points in the plane.

    :param position: function from observations (n, O) and tasks (n, G) to positions of what must reach the goal (n, 2)
    :param goal: function from tasks (n, G) to goals (n, 2)
    :param radius: distance from the goal within which an episode has to end in order to succeed
    """

    position: Callable[[np.ndarray, np.ndarray], np.ndarray]
    goal: Callable[[np.ndarray], np.ndarray]
    radius: float


@dataclass(frozen=True)
class Paths:
    """Paths of one episode of each of n tasks.

    :param positions: positions at each step, NaN after the end of an episode (T + 1, n, 2)
    :param success: whether each episode succeeded (n,)
    """

    positions: np.ndarray
    success: np.ndarray

    @property
    def end_points(self) -> np.ndarray:
        """Last position of every episode (n, 2)."""
        lengths = np.isfinite(self.positions[:, :, 0]).sum(axis=0)  # (n,)
        return self.positions[lengths - 1, np.arange(len(lengths))]


def _pushed_block(observations: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    blocks = observations[:, 3:13].reshape(-1, 5, 2)  # (n, block, xy)
    return blocks[np.arange(len(tasks)), tasks[:, 0].astype(int)]


def _first_two(values: np.ndarray) -> np.ndarray:
    return values[:, :2]


PLANES: dict[str, Plane] = {
    "WheeledGoal": Plane(lambda obs, tasks: obs[:, :2], _first_two, 0.8),
    "AntGoal": Plane(lambda obs, tasks: obs[:, -3:-1], _first_two, 0.8),
    "PusherBlock": Plane(_pushed_block, lambda tasks: tasks[:, 1:3], 0.2),
    "PointGoal": Plane(lambda obs, tasks: obs[:, :2], _first_two, 0.3),
}


def plane_of(env_id: str) -> Plane:
    """Look up the plane of a family.

    :param env_id: environment id of a built-in family, dense or sparse
    :return: functions that map observations and tasks to points in the plane
    :raises ValueError: if the environment has no plane
    """
    name = env_id.split("-v")[0].removesuffix("Sparse")
    if name not in PLANES:
        raise ValueError(f"paths are known for {', '.join(PLANES)}, got {env_id!r}")
    return PLANES[name]


def record_paths(
    model: BaseAlgorithm, env_id: str, tasks: np.ndarray, seed: int = 0, deterministic: bool = False
) -> Paths:
    """Run one episode of every task with a model and record its path.

    :param model: SB3 model with the spaces of the family
    :param env_id: environment id of a built-in family
    :param tasks: tasks (n, G)
    :param seed: seed of the environment and of the model's random draws
    :param deterministic: whether to take the most likely actions instead of sampling them
    :return: paths
    :raises ValueError: if the environment has no plane
    """
    plane, venv = plane_of(env_id), make_vec(env_id, len(tasks))
    try:
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)  # predict draws latents and actions from torch's generator
            return _follow(model, venv, plane, tasks, seed, deterministic)
    finally:
        venv.close()


def _follow(
    model: BaseAlgorithm, venv: BatchedTaskVecEnv, plane: Plane, tasks: np.ndarray, seed: int, deterministic: bool
) -> Paths:
    venv.set_tasks(tasks)
    venv.seed(seed)
    n = len(tasks)
    positions = np.full((venv.horizon + 1, n, 2), np.nan)
    success, live, starts = np.zeros(n, dtype=bool), np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    observations, state = np.asarray(venv.reset()), None
    positions[0] = plane.position(observations, tasks)
    for t in range(venv.horizon):
        actions, state = model.predict(observations, state, starts, deterministic)
        stepped, _, starts, infos = venv.step(actions)
        observations = np.asarray(stepped)
        seen = observations.copy()
        for i in np.flatnonzero(starts & live):
            seen[i] = infos[i]["terminal_observation"]
            success[i] = infos[i]["is_success"]
        positions[t + 1, live] = plane.position(seen, tasks)[live]
        live &= ~starts
    return Paths(positions, success)
