"""A member of a task family as a ``gymnasium.Env``."""

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.member import TaskMember
from sb3_maesn.envs.simulator import TaskSimulator, check_render_mode
from sb3_maesn.envs.task_family import Array, TaskFamily


class TaskEnv(TaskMember, gym.Env[Array, NDArray[np.float32]]):
    """A single ``gymnasium.Env`` of a task family, equal to a member of ``BatchedTaskVecEnv`` bit for bit.

    - **Tasks.** A task set by ``set_task``, by assigning ``task`` or by the reset option ``{"task": task}`` takes
      effect at the next reset (with the option, at that reset) and stays until another one is set. Without one, every
      reset draws a new task from the family's distribution.
    - **Ends.** The environment truncates at the family's horizon by itself, so it needs no ``TimeLimit`` wrapper. At an
      episode's end the info has ``is_success`` (bool, True only if the episode ran to the horizon and solved its task)
      and, only where the simulation diverged, ``diverged`` (True). All other infos are empty.

    :param family: task family
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :param width: frame width in pixels
    :param height: frame height in pixels
    :raises ValueError: for another render mode
    """

    def __init__(self, family: TaskFamily, render_mode: str | None = None, width: int = 480, height: int = 360) -> None:
        check_render_mode(render_mode)
        super().__init__(TaskSimulator(family, 1, 1, (width, height)), 0, render_mode)
        self.metadata = {"render_modes": ["human", "rgb_array"], "render_fps": family.render_fps}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start a new episode.

        :param seed: seed of the environment's generator; None continues with the generator it has
        :param options: ``{"task": task}`` to set a task from this episode on
        :return: first observation (O,) and an empty info
        :raises ValueError: for an option other than ``"task"``, or a task that is not one of the family's
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

        :param action: action (A,)
        :return: observation (O,), reward, terminated, truncated and info, see the class
        :raises ValueError: if the action has another shape or is not finite
        :raises RuntimeError: before the first reset
        """
        transition = self._simulator.step(np.asarray(action)[None])
        terminated, truncated = bool(transition.terminated[0]), bool(transition.truncated[0])
        if self.render_mode == "human":
            self.render()
        info = transition.end_info(0) if terminated or truncated else {}
        return transition.observations[0], float(transition.rewards[0]), terminated, truncated, info

    def close(self) -> None:
        """Release the renderer and the window."""
        self._simulator.close()
