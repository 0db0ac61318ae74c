"""One member of a simulator, with the interface that ``gymnasium.Env`` and ``VecEnv.env_method`` expect of it."""

import warnings
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from sb3_maesn.envs.rendering import Frame
from sb3_maesn.envs.simulator import TaskSimulator
from sb3_maesn.envs.task_family import Array


class TaskMember:
    """One member of a simulator, with what a ``gymnasium.Env`` of the family offers besides ``reset`` and ``step``.

    SB3's ``get_attr``, ``set_attr`` and ``env_method`` act on these objects. The member follows the task protocol of
    the field, ``sample_tasks(n)`` and ``set_task(task)``; a task takes effect at the next reset and stays until another
    one, or None, is set. Tasks that are returned are copies.

    :param simulator: simulator that runs the member
    :param index: index of the member in the simulator
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
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
        """Task of the running episode (G,), None before the first reset.

        Assigning a task is the same as ``set_task``: it takes effect at the next reset, and until then this property
        keeps its value.
        """
        if not self._simulator.started[self._index]:
            return None
        return self._simulator.tasks[self._index].copy()

    @task.setter
    def task(self, task: ArrayLike | None) -> None:
        self.set_task(task)

    @property
    def np_random(self) -> np.random.Generator:
        """Source of randomness of the member."""
        return self._simulator.generator(self._index)

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self._simulator.set_generator(self._index, generator)

    @property
    def elapsed_steps(self) -> int:
        """Number of steps taken in the running episode."""
        return int(self._simulator.elapsed_steps[self._index])

    @property
    def n_diverged(self) -> int:
        """Number of episodes so far that ended because the simulation diverged."""
        return int(self._simulator.n_diverged[self._index])

    def set_task(self, task: ArrayLike | None) -> None:
        """Set the member's task, which takes effect at its next reset.

        :param task: task (G,), or None to draw one at every reset
        :raises ValueError: if it is not one of the family's
        """
        if task is None:
            self._simulator.clear_task(self._index)
        else:
            self._simulator.set_tasks(np.asarray(task, dtype=np.float64)[None], [self._index])

    def apply_options(self, options: dict[str, Any] | None) -> None:
        """Apply the options of a reset.

        :param options: ``{"task": task}`` to set a task as ``set_task`` does; None or empty for no options
        :raises ValueError: for an option other than ``"task"``, or a task that is not one of the family's
        """
        if not options:
            return
        unknown = sorted(set(options) - {"task"})
        if unknown:
            raise ValueError(f"the only reset option is 'task', got {', '.join(map(repr, unknown))}")
        self.set_task(options["task"])

    def sample_tasks(self, n: int) -> Array:
        """Draw tasks from the family's distribution with the member's own generator.

        :param n: number of tasks
        :return: tasks (n, G)
        """
        return self.family.sample_tasks(n, self.np_random)

    def task_set(self, split: str, n_tasks: int = 100) -> Array:
        """Draw one of the family's three fixed task sets.

        :param split: name of the set: ``"train"``, ``"validation"`` or ``"test"``
        :param n_tasks: number of tasks
        :return: tasks, the same at every call (n_tasks, G)
        :raises ValueError: for another split or a negative number of tasks
        """
        return self.family.task_set(split, n_tasks)

    def render(self) -> Frame | None:
        """Draw the member in its render mode.

        :return: an RGB image (height, width, 3) for ``"rgb_array"``, else None
        :raises RuntimeError: before the first reset
        """
        if self.render_mode is None:
            warnings.warn("render() needs a render_mode, 'rgb_array' or 'human', given at construction", stacklevel=2)
            return None
        frame = self._simulator.render(self._index)
        if self.render_mode == "human":
            self._simulator.show(frame)
            return None
        return frame
