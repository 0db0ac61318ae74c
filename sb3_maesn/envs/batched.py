"""The native batched ``VecEnv``, which steps all members of a task family in one call."""

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, tile_images

from sb3_maesn.envs.member import TaskMember
from sb3_maesn.envs.simulator import TaskSimulator, Transition, check_render_mode
from sb3_maesn.envs.task_family import Array, Mask, TaskFamily

BatchedStep: TypeAlias = tuple[Array, NDArray[np.float32], Mask, list[dict[str, Any]]]


class BatchedTaskVecEnv(VecEnv):
    """A Stable-Baselines3 ``VecEnv`` whose members have tasks of one family, each its own.

    - **Tasks.** A task set by ``set_tasks``, by ``env_method("set_task", task, indices=[i])`` or by the reset option
      ``{"task": task}`` takes effect at the member's next reset, an automatic one included, and stays until another one
      is set. A member whose task was never set, or was set to None, draws a new one from the family's distribution at
      every reset.
    - **Resets.** As in every ``VecEnv``, ``step`` resets the members whose episode ended, and returns the first
      observation of their new episode. Seeds and options given to ``seed`` and ``set_options`` are used at the next
      ``reset``.
    - **Infos.** At an episode's end the info has ``is_success`` (bool, True only if the episode ran to the horizon and
      solved its task), ``terminal_observation`` (O,), ``TimeLimit.truncated`` (bool, True at the horizon, False where
      the episode terminated) and, only where the simulation diverged, ``diverged`` (True). All other infos are empty.
    - **Arrays.** Observations are float64 and rewards float32. All arrays that are returned are copies, which later
      steps do not change.

    :param family: task family
    :param n_envs: number of members
    :param n_threads: number of threads that step them, 0 for one per CPU
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :raises ValueError: for another render mode, or fewer than one member
    """

    actions: NDArray[Any]

    def __init__(self, family: TaskFamily, n_envs: int, n_threads: int = 0, render_mode: str | None = None) -> None:
        check_render_mode(render_mode)
        self.family = family
        self.simulator = TaskSimulator(family, n_envs, n_threads)
        self.members = [TaskMember(self.simulator, i, render_mode) for i in range(n_envs)]
        super().__init__(n_envs, family.observation_space, family.action_space)

    @property
    def horizon(self) -> int:
        """Number of steps of an episode that does not terminate."""
        return self.family.horizon

    @property
    def n_diverged(self) -> int:
        """Number of episodes so far that ended because their simulation diverged."""
        return int(self.simulator.n_diverged.sum())

    def set_tasks(self, tasks: ArrayLike, indices: ArrayLike | None = None) -> None:
        """Set the tasks of members, which take effect at their next reset.

        :param tasks: tasks (m, G)
        :param indices: indices of the members, all by default (m,)
        :raises ValueError: for a task that is not one of the family's, or if the numbers of tasks and members differ
        :raises IndexError: for a member that does not exist
        """
        self.simulator.set_tasks(tasks, indices)

    def reset(self) -> Array:
        """Start new episodes in all members, with the seeds and options given since the last reset.

        :return: first observations (n, O)
        """
        for index, (seed, options) in enumerate(zip(self._seeds, self._options, strict=True)):
            if seed is not None:
                self.simulator.seed(index, seed)
            self.members[index].apply_options(options)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.simulator.reset(np.arange(self.num_envs))

    def step(self, actions: NDArray[Any]) -> BatchedStep:
        """Step all members and reset those whose episode ended.

        :param actions: actions (n, A)
        :return: observations (n, O), rewards (n,), dones (n,) and n infos
        :raises ValueError: if the actions have another shape or are not finite
        :raises RuntimeError: before the first reset
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions that ``step_wait`` will take.

        :param actions: actions (n, A)
        """
        self.actions = actions

    def step_wait(self) -> BatchedStep:
        """Step all members with the stored actions and reset those whose episode ended.

        :return: the results of ``step``
        :raises ValueError: if the actions have another shape or are not finite
        :raises RuntimeError: before the first reset
        """
        transition = self.simulator.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        observations = transition.observations
        dones = transition.terminated | transition.truncated
        ended = np.flatnonzero(dones)
        if ended.size:
            self._describe_ends(infos, transition, ended)
            if ended.size == self.num_envs:
                observations = self.simulator.reset(ended)
            else:
                observations = observations.copy()
                observations[ended] = self.simulator.reset(ended)
        return observations, transition.rewards.astype(np.float32), dones, infos

    def _describe_ends(self, infos: list[dict[str, Any]], transition: Transition, ended: NDArray[np.intp]) -> None:
        """Fill in the infos of the members whose episode ended."""
        for i in ended:
            infos[i] = {
                "TimeLimit.truncated": bool(transition.truncated[i]),
                "terminal_observation": transition.observations[i].copy(),
                **transition.end_info(int(i)),
            }
            self.reset_infos[i] = {}

    def close(self) -> None:
        """Release the renderer and the window."""
        self.simulator.close()

    # Access to single members

    def _members(self, indices: VecEnvIndices) -> list[TaskMember]:
        picked = None if indices is None else [indices] if isinstance(indices, int) else list(indices)
        return [self.members[i] for i in self.simulator.check_indices(picked)]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Read an attribute of single members, see SB3's ``VecEnv.get_attr``."""
        return [getattr(member, attr_name) for member in self._members(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of single members, see SB3's ``VecEnv.set_attr``."""
        for member in self._members(indices):
            setattr(member, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of single members, see SB3's ``VecEnv.env_method``."""
        return [getattr(member, method_name)(*method_args, **method_kwargs) for member in self._members(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for every member, since none has wrappers, see SB3's ``VecEnv.env_is_wrapped``."""
        return [False for _ in self._members(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Draw every member, see SB3's ``VecEnv.get_images``."""
        if self.render_mode != "rgb_array":
            warnings.warn(f"render_mode is {self.render_mode!r}, but get_images needs 'rgb_array'", stacklevel=2)
            return [None for _ in self.members]
        return [member.render() for member in self.members]

    def render(self, mode: str | None = None) -> NDArray[np.uint8] | None:
        """Draw all members as tiles of one image, or show that image in a window.

        :param mode: ``"rgb_array"`` or ``"human"``, the environment's render mode by default
        :return: an RGB image (height, width, 3), or None for ``"human"``
        """
        if "human" not in (mode, self.render_mode) or self.render_mode is None:
            return super().render(mode)
        self.simulator.show(tile_images([self.simulator.render(i) for i in range(self.num_envs)]))
        return None
