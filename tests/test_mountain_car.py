"""The mountain car with a reward at the goal only."""

import gymnasium as gym
import numpy as np

import sb3_maesn.envs  # noqa: F401  # registers it


def test_sparse_mountain_car_pays_at_the_goal_only() -> None:
    env = gym.make("SparseMountainCar-v0")
    observation, _ = env.reset(seed=0)
    rewards, done = [], False
    while not done:  # pushing where it rolls builds up speed
        push = np.array([1.0 if observation[1] > 0 else -1.0], np.float32)
        observation, reward, terminated, truncated, info = env.step(push)
        rewards.append(float(reward))
        assert np.abs(observation).max() <= 1.0
        done = terminated or truncated
    assert terminated
    assert info["is_success"]
    assert rewards[-1] == 1.0
    assert sum(rewards) == 1.0
    weak = gym.make("SparseMountainCarWeak-v0")
    assert weak.unwrapped.power < env.unwrapped.power  # type: ignore[attr-defined]  # Gymnasium types it as Env
