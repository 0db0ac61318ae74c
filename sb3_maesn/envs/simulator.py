"""The rules of an episode, which the batched ``VecEnv`` and the single ``gymnasium.Env`` share."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import ArrayLike, NDArray

from sb3_maesn.envs.rendering import Frame, Window
from sb3_maesn.envs.task_family import Array, Mask, Renderer, TaskFamily

#: An observation beyond this counts as diverged: MuJoCo's own limit (mjMAXVAL), where its next step would reset it.
MAX_VALUE = 1e10


class Transition(NamedTuple):
    """The result of one step of all n members, in new arrays.

    :param observations: observations after the step, before any reset (n, O)
    :param rewards: rewards (n,)
    :param terminated: mask of episodes that the family's rule or divergence ended (n,)
    :param truncated: mask of episodes that reached the horizon without being terminated (n,)
    :param success: mask of truncated episodes whose task is solved (n,)
    :param diverged: mask of episodes whose simulation diverged; their observation and reward are those of the model's
        default state, to which the simulation was restarted (n,)
    """

    observations: Array
    rewards: Array
    terminated: Mask
    truncated: Mask
    success: Mask
    diverged: Mask

    def end_info(self, index: int) -> dict[str, Any]:
        """Build the info of a member whose episode ended.

        :param index: index of the member
        :return: ``is_success``, a bool; and ``diverged``, True, only if the simulation diverged
        """
        info: dict[str, Any] = {"is_success": bool(self.success[index])}
        if self.diverged[index]:
            info["diverged"] = True
        return info


def check_render_mode(render_mode: str | None) -> None:
    """Check a render mode.

    :param render_mode: render mode of the environment
    :raises ValueError: if it is not None, ``"rgb_array"`` or ``"human"``
    """
    if render_mode not in (None, "rgb_array", "human"):
        raise ValueError(f"render_mode must be None, 'rgb_array' or 'human', got {render_mode!r}")


class TaskSimulator:
    """``n`` members of a task family, each with its own task, random generator and episode.

    - **Tasks.** A task that is set takes effect at the member's next reset and stays until another one is set or it is
      cleared. A member without one draws a task from the family's distribution at every reset, with its own generator.
    - **Ends.** ``step`` reports terminations and truncations but never resets a member; the caller does.
    - **Divergence.** An episode whose simulation diverged, or whose observation is not finite or exceeds ``MAX_VALUE``,
      is terminated and its simulation restarted in the model's default state, so that no NaN leaves the simulator.
    - **Copies.** All arrays that are returned are new and never change afterwards.

    :param family: task family
    :param n: number of members
    :param n_threads: number of threads that step them, 0 for one per CPU
    :param frame_size: width and height of rendered frames in pixels
    :raises ValueError: if ``n`` is less than 1
    """

    def __init__(
        self, family: TaskFamily, n: int, n_threads: int = 0, frame_size: tuple[int, int] = (480, 360)
    ) -> None:
        if n < 1:
            raise ValueError(f"the number of members must be at least 1, got {n}")
        self.family = family
        self.n = n
        self.physics = family.make_physics(n, n_threads)
        (size,) = family.task_space.shape
        self.tasks: Array = np.full((n, size), np.nan)  # tasks of the running episodes
        self.next_tasks: Array = np.full((n, size), np.nan)  # NaN where every episode draws its own
        self.elapsed_steps = np.zeros(n, dtype=np.int64)
        self.started = np.zeros(n, dtype=np.bool_)
        self.n_diverged = np.zeros(n, dtype=np.int64)
        self._generators: list[np.random.Generator | None] = [None] * n
        self._seeds: list[int | None] = [None] * n  # seeds of generators that do not exist yet
        self._frame_size = frame_size
        self._renderer: Renderer | None = None
        self._window: Window | None = None

    def generator(self, index: int) -> np.random.Generator:
        """Return one member's source of randomness, seeded as in Gymnasium, or unpredictably without a seed.

        :param index: index of the member
        :return: the member's generator
        """
        generator = self._generators[index]
        if generator is None:
            generator, _ = seeding.np_random(self._seeds[index])
            self._generators[index] = generator
        return generator

    def set_generator(self, index: int, generator: np.random.Generator) -> None:
        """Replace one member's source of randomness.

        :param index: index of the member
        :param generator: new generator
        """
        self._generators[index] = generator

    def seed(self, index: int, seed: int) -> None:
        """Seed one member as ``gymnasium.Env.reset(seed=seed)`` does.

        :param index: index of the member
        :param seed: seed
        :raises ValueError: for a negative seed
        """
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        # the generator is created on first use: some families never draw, and creating one takes longer than a step
        self._seeds[index], self._generators[index] = seed, None

    def set_tasks(self, tasks: ArrayLike, indices: ArrayLike | None = None) -> None:
        """Set the tasks of members, which take effect at their next reset.

        :param tasks: tasks (m, G)
        :param indices: indices of the members, all by default (m,)
        :raises ValueError: for a task that is not one of the family's, or if the numbers of tasks and members differ
        :raises IndexError: for a member that does not exist
        """
        checked = self.family.check_tasks(tasks)
        members = self.check_indices(indices)
        if len(checked) != len(members):
            raise ValueError(f"expected one task for each of {len(members)} members, got {len(checked)} tasks")
        self.next_tasks[members] = checked

    def clear_task(self, index: int) -> None:
        """Remove a member's task, so that it draws one from the family's distribution at every reset.

        :param index: index of the member
        """
        self.next_tasks[index] = np.nan

    def check_indices(self, indices: ArrayLike | None) -> NDArray[np.int64]:
        """Check and normalise member indices that come from a caller.

        :param indices: an index, several indices or None for all; negative ones count from the end
        :return: the indices, all in [0, n) (m,)
        :raises IndexError: if one is not an integer in [-n, n)
        """
        if indices is None:
            return np.arange(self.n)
        members = np.atleast_1d(np.asarray(indices))
        if members.size == 0:
            return np.zeros(0, dtype=np.int64)
        if members.ndim != 1 or not np.issubdtype(members.dtype, np.integer):
            raise IndexError(f"indices must be integers, got {indices!r}")
        outside = members[(members < -self.n) | (members >= self.n)]
        if outside.size:
            raise IndexError(f"index {outside[0]} is out of range for {self.n} members")
        return members.astype(np.int64) % self.n

    def reset(self, ids: NDArray[np.int64]) -> Array:
        """Start new episodes.

        :param ids: sorted, unique indices of the members (m,)
        :return: first observations, a new array (m, O)
        """
        self._begin_tasks(ids)
        qpos, qvel = self.family.initial_states(self.tasks[ids], ids, self.generator)
        self.physics.reset(ids.astype(np.int32), qpos, qvel)
        self.elapsed_steps[ids] = 0
        self.started[ids] = True
        if len(ids) == self.n:
            return self.family.observation(self.physics.state)
        # a family's functions take any number of simulations: compute only the rows that were reset
        return self.family.observation({name: values[ids] for name, values in self.physics.state.items()})

    def _begin_tasks(self, ids: NDArray[np.int64]) -> None:
        """Fix the tasks of the episodes that begin: the one that was set, or one that the member draws."""
        self.tasks[ids] = self.next_tasks[ids]
        for i in ids[np.isnan(self.next_tasks[ids, 0])]:
            self.tasks[i] = self.family.sample_tasks(1, self.generator(int(i)))[0]

    def step(self, actions: ArrayLike) -> Transition:
        """Take one step in every member, without resetting any.

        :param actions: actions (n, A)
        :return: the transition
        :raises ValueError: if the actions have another shape or are not finite
        :raises RuntimeError: if a member has never been reset
        """
        checked = self._check_actions(actions)
        if not self.started.all():
            raise RuntimeError(f"{self.family.env_id}: reset() must be called before step()")
        family, state = self.family, self.physics.state
        controls = family.controls(checked)
        observations, diverged = self._advance(controls)
        self.elapsed_steps += 1
        terminated = family.terminated(state) | diverged
        truncated = (self.elapsed_steps >= family.horizon) & ~terminated
        success = truncated & family.success(state, self.tasks) if truncated.any() else truncated
        self.n_diverged += diverged
        rewards = family.reward(state, controls, self.tasks)
        return Transition(observations, rewards, terminated, truncated, success, diverged)

    def _advance(self, controls: Array) -> tuple[Array, Mask]:
        """Step the simulations and restart those that diverged; return observations and the mask of divergence."""
        diverged = self.physics.step(controls)
        observations = self.family.observation(self.physics.state)
        # a NaN makes both comparisons False, and so counts as too large
        if not (observations.max() < MAX_VALUE and observations.min() > -MAX_VALUE):
            diverged |= ~(np.abs(observations) < MAX_VALUE).all(axis=1)
        if diverged.any():
            self.physics.restart(np.flatnonzero(diverged).astype(np.int32))
            observations = self.family.observation(self.physics.state)
        return observations, diverged

    def _check_actions(self, actions: ArrayLike) -> Array:
        """Check actions and convert them to float64 (n, A)."""
        checked = np.asarray(actions, dtype=np.float64)
        expected = (self.n, *(self.family.action_space.shape or ()))
        if checked.shape != expected:
            raise ValueError(f"{self.family.env_id}: actions must have shape {expected}, got {checked.shape}")
        if not np.isfinite(checked).all():
            member = int(np.flatnonzero(~np.isfinite(checked).all(axis=1))[0])
            raise ValueError(
                f"{self.family.env_id}: actions must be finite, got {checked[member].tolist()} for member {member}"
            )
        return checked

    def render(self, index: int) -> Frame:
        """Draw a member.

        :param index: index of the member
        :return: an RGB image (height, width, 3)
        :raises RuntimeError: if the member has never been reset
        """
        if not self.started[index]:
            raise RuntimeError(f"{self.family.env_id}: reset() must be called before render()")
        if self._renderer is None:
            self._renderer = self.family.make_renderer(*self._frame_size)
        return self._renderer.render(self.physics.snapshot(index), self.tasks[index])

    def show(self, frame: Frame) -> None:
        """Show a frame in the simulator's window, which opens at the first call.

        :param frame: an RGB image (height, width, 3)
        """
        if self._window is None:
            self._window = Window(self.family.env_id, self.family.render_fps)
        self._window.show(frame)

    def close(self) -> None:
        """Release the renderer and the window; the simulations are freed with the object."""
        if self._renderer is not None:
            self._renderer.close()
        if self._window is not None:
            self._window.close()
        self._renderer = self._window = None
