"""Gymnasium's continuous mountain car with a reward at the goal only, on which VIME's paper tests exploration."""

from typing import Any

import gymnasium as gym
import numpy as np

HORIZON = 500


class SparseMountainCar(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """``MountainCarContinuous-v0`` with a reward of 1 where the goal is reached, which ends the episode, and else 0
    (Houthooft et al. 2016, section 3). Actions cost nothing. Position and velocity are scaled to [-1, 1]: a policy
    network would hardly see velocities of 0.07.

    :param power: of the engine; with Gymnasium's own 0.0015 a policy that changes at random soon gets there, with half
        of it one has to explore
    :param render_mode: as in Gymnasium
    """

    def __init__(self, power: float = 0.0015, render_mode: str | None = None) -> None:
        car = gym.make("MountainCarContinuous-v0", render_mode=render_mode, max_episode_steps=HORIZON)
        car.unwrapped.power = power  # type: ignore[attr-defined]  # an attribute of Gymnasium's mountain car
        super().__init__(gym.wrappers.RescaleObservation(car, np.float32(-1.0), np.float32(1.0)))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step.

        :param action: the force (1,)
        :return: scaled position and velocity (2,), reward, terminated, truncated and info, which has ``is_success``
            where the episode ended
        """
        observation, _, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info = {**info, "is_success": terminated}
        return observation, float(terminated), terminated, truncated, info
