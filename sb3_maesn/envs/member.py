"""One member of a simulator, with what a ``gymnasium.Env`` of the family offers besides ``reset`` and ``step``."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from sb3_maesn.envs.rendering import Frame
from sb3_maesn.envs.simulator import TaskSimulator
from sb3_maesn.envs.task_family import Array


class TaskMember:
    """One member of a simulator, with the attributes and methods a ``gymnasium.Env`` of the family has.

    :param simulator: the simulator
    :param index: the member
    :param render_mode: as in Gymnasium
    """

    def __init__(self, simulator: TaskSimulator, index: int, render_mode: str | None = None) -> None:
        self._simulator = simulator
        self._index = index
        self.render_mode = render_mode
        self.family = simulator.family
        self.horizon = self.family.horizon
        self.observation_space: spaces.Space[Any] = self.family.observation_space
        self.action_space: spaces.Space[Any] = self.family.action_space

    @property
    def task(self) -> Array | None:
        """The running episode's task (G,), None before the first reset; a task that is set counts from the next."""
        if not self._simulator.started[self._index]:
            return None
        return self._simulator.tasks[self._index].copy()

    @task.setter
    def task(self, task: ArrayLike | None) -> None:
        self.set_task(task)

    @property
    def np_random(self) -> np.random.Generator:
        """The member's source of randomness."""
        return self._simulator.generator(self._index)

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self._simulator.set_generator(self._index, generator)

    @property
    def elapsed_steps(self) -> int:
        """Steps taken in the running episode."""
        return int(self._simulator.elapsed_steps[self._index])

    @property
    def n_diverged(self) -> int:
        """How many episodes ended because the simulation diverged."""
        return int(self._simulator.n_diverged[self._index])

    def set_task(self, task: ArrayLike | None) -> None:
        """Give the member a task, which counts from its next reset on.

        :param task: the task (G,), or None to draw one at every reset
        :raises ValueError: if it is not one of the family's
        """
        if task is None:
            self._simulator.clear_task(self._index)
        else:
            self._simulator.set_tasks(np.asarray(task, dtype=np.float64)[None], [self._index])

    def apply_options(self, options: dict[str, Any] | None) -> None:
        """Apply the options of a reset.

        :param options: ``{"task": task}`` gives the member a task as ``set_task`` does; None or empty for none
        :raises ValueError: for another option
        """
        if not options:
            return
        unknown = sorted(set(options) - {"task"})
        if unknown:
            raise ValueError(f"the only reset option is 'task', got {', '.join(map(repr, unknown))}")
        self.set_task(options["task"])

    def sample_tasks(self, n: int) -> Array:
        """Draw tasks from the family's distribution, with the member's generator.

        :param n: number of tasks
        :return: tasks (n, G)
        """
        return self.family.sample_tasks(n, self.np_random)

    def task_set(self, split: str, n_tasks: int = 100) -> Array:
        """One of the family's fixed task sets.

        :param split: ``"train"``, ``"validation"`` or ``"test"``
        :param n_tasks: number of tasks
        :return: tasks (n_tasks, G)
        """
        return self.family.task_set(split, n_tasks)

    def render(self) -> Frame | None:
        """Draw the member as its render mode says.

        :return: an RGB image (height, width, 3) for ``"rgb_array"``, else None
        """
        if self.render_mode is None:
            warnings.warn("render() needs a render_mode, 'rgb_array' or 'human', given at construction", stacklevel=2)
            return None
        frame = self._simulator.render(self._index)
        if self.render_mode == "human":
            self._simulator.show(frame)
            return None
        return frame
