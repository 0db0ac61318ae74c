"""Gymnasium's continuous mountain car with a reward only at the goal, VIME's benchmark of exploration."""

from typing import Any

import gymnasium as gym
import numpy as np

HORIZON = 500  # steps


class SparseMountainCar(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """``MountainCarContinuous-v0`` with a reward of 1 at the goal, which ends the episode, and 0 elsewhere.

    The task of Houthooft et al. 2016 (arXiv:1605.09674), section 3. Actions cost nothing, and an episode is truncated
    after ``HORIZON`` steps. Position and velocity are scaled to [-1, 1], because a policy network would hardly see
    velocities of at most 0.07.

    :param power: velocity gained in one step at full force. With Gymnasium's own 0.0015, a policy that acts at random
        soon reaches the goal; with half of it, the goal takes deliberate exploration
    :param render_mode: render mode of Gymnasium
    """

    def __init__(self, power: float = 0.0015, render_mode: str | None = None) -> None:
        car = gym.make("MountainCarContinuous-v0", render_mode=render_mode, max_episode_steps=HORIZON)
        car.unwrapped.power = power  # type: ignore[attr-defined]  # an attribute of Gymnasium's mountain car
        super().__init__(gym.wrappers.RescaleObservation(car, np.float32(-1.0), np.float32(1.0)))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step.

        :param action: force in [-1, 1] (1,)
        :return: scaled position and velocity (2,), reward, terminated, truncated and info, which has ``is_success``
            where the episode ended
        """
        observation, _, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info = {**info, "is_success": terminated}
        return observation, float(terminated), terminated, truncated, info
