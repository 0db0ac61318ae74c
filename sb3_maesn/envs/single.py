"""One member of a task family as a ``gymnasium.Env``."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.member import TaskMember
from sb3_maesn.envs.simulator import TaskSimulator, check_render_mode
from sb3_maesn.envs.task_family import Array, TaskFamily


class TaskEnv(TaskMember, gym.Env[Array, NDArray[np.float32]]):
    """One member of a task family as a ``gymnasium.Env``; it behaves as a member of ``BatchedTaskVecEnv`` bit for bit.

    The task counts from the next reset on; until one is set, every episode draws its own. The reset option
    ``{"task": task}`` sets one too. The environment truncates at the family's horizon by itself.

    :param family: the task family
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :param width: frame width in pixels
    :param height: frame height in pixels
    """

    def __init__(self, family: TaskFamily, render_mode: str | None = None, width: int = 480, height: int = 360) -> None:
        check_render_mode(render_mode)
        super().__init__(TaskSimulator(family, 1, 1, (width, height)), 0, render_mode)
        self.metadata = {"render_modes": ["human", "rgb_array"], "render_fps": family.render_fps}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start a new episode.

        :param seed: seeds the environment's generator; None goes on with it
        :param options: ``{"task": task}`` sets a task
        :return: the first observation (O,) and an empty info
        :raises ValueError: for another option, or a task that is not one of the family's
        """
        if seed is not None:
            self._simulator.seed(self._index, seed)
            self._np_random_seed = seed
        elif self._np_random_seed is None:
            self._np_random_seed = -1  # Gymnasium's word for unknown
        self.apply_options(options)
        observation = self._simulator.reset(np.zeros(1, dtype=np.int64))[0]
        # Gymnasium reads the attributes behind np_random and np_random_seed too
        self._np_random = self.np_random
        if self.render_mode == "human":
            self.render()
        return observation, {}

    def step(self, action: NDArray[np.float32]) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Take one step.

        :param action: the action (A,)
        :return: observation (O,), reward, terminated, truncated and info, which has ``is_success`` where the episode
            ended, and ``diverged`` where the simulation did
        :raises ValueError: for an action of another shape or with a NaN or an infinity in it
        """
        transition = self._simulator.step(np.asarray(action)[None])
        terminated, truncated = bool(transition.terminated[0]), bool(transition.truncated[0])
        if self.render_mode == "human":
            self.render()
        info = transition.end_info(0) if terminated or truncated else {}
        return transition.observations[0], float(transition.rewards[0]), terminated, truncated, info

    def close(self) -> None:
        """Release the simulation and the renderer."""
        self._simulator.close()
