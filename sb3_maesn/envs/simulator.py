"""The rules of an episode, once: what the batched ``VecEnv`` and the single ``gymnasium.Env`` both run."""

from typing import Any, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import ArrayLike, NDArray

from sb3_maesn.envs.rendering import Frame, Window
from sb3_maesn.envs.task_family import Array, Mask, Renderer, TaskFamily

#: A state beyond this counts as diverged: MuJoCo's own limit (mjMAXVAL), where its next step would reset it.
MAX_VALUE = 1e10


class Transition(NamedTuple):
    """What one step of all members gave; new arrays.

    :param observations: the observations after the step (n, O)
    :param rewards: rewards (n,)
    :param terminated: episodes that ended by themselves, diverged ones among them (n,)
    :param truncated: episodes that reached the horizon, and only did that (n,)
    :param success: episodes that ended with their task solved (n,)
    :param diverged: episodes whose simulation diverged (n,)
    """

    observations: Array
    rewards: Array
    terminated: Mask
    truncated: Mask
    success: Mask
    diverged: Mask

    def end_info(self, index: int) -> dict[str, Any]:
        """What the info says about a member whose episode ended.

        :param index: the member
        :return: ``is_success``, and ``diverged`` where that is so
        """
        info: dict[str, Any] = {"is_success": bool(self.success[index])}
        if self.diverged[index]:
            info["diverged"] = True
        return info


def check_render_mode(render_mode: str | None) -> None:
    """Check a render mode.

    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :raises ValueError: if it is another
    """
    if render_mode not in (None, "rgb_array", "human"):
        raise ValueError(f"render_mode must be None, 'rgb_array' or 'human', got {render_mode!r}")


class TaskSimulator:
    """``n`` members of a task family, each with its own task, random generator and episode.

    :param family: the task family
    :param n: number of members
    :param n_threads: threads that step them, 0 for one per CPU
    :param frame_size: width and height of rendered frames in pixels
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
        self.tasks: Array = np.full((n, size), np.nan)  # of the running episodes
        self.next_tasks: Array = np.full((n, size), np.nan)  # NaN: drawn anew for every episode
        self.elapsed_steps = np.zeros(n, dtype=np.int64)
        self.started = np.zeros(n, dtype=np.bool_)
        self.n_diverged = np.zeros(n, dtype=np.int64)
        self._generators: list[np.random.Generator | None] = [None] * n
        self._seeds: list[int | None] = [None] * n  # of generators that are not made yet
        self._frame_size = frame_size
        self._renderer: Renderer | None = None
        self._window: Window | None = None

    def generator(self, index: int) -> np.random.Generator:
        """One member's source of randomness, as Gymnasium seeds it; without a seed, an unpredictable one.

        :param index: the member
        :return: its generator
        """
        generator = self._generators[index]
        if generator is None:
            generator, _ = seeding.np_random(self._seeds[index])
            self._generators[index] = generator
        return generator

    def set_generator(self, index: int, generator: np.random.Generator) -> None:
        """Replace one member's source of randomness.

        :param index: the member
        :param generator: its new generator
        """
        self._generators[index] = generator

    def seed(self, index: int, seed: int) -> None:
        """Seed one member as ``gymnasium.Env.reset(seed=seed)`` does.

        :param index: the member
        :param seed: the seed
        :raises ValueError: for a negative seed
        """
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        # made when the family first draws from it: not all do, and making one takes longer than a simulation step
        self._seeds[index], self._generators[index] = seed, None

    def set_tasks(self, tasks: ArrayLike, indices: ArrayLike | None = None) -> None:
        """Give members tasks, which count from their next reset on.

        :param tasks: tasks (m, G)
        :param indices: the members (m,), all by default
        :raises ValueError: for a task that is not one of the family's, or another number of tasks than of members
        :raises IndexError: for a member that does not exist
        """
        checked = self.family.check_tasks(tasks)
        members = self.check_indices(indices)
        if len(checked) != len(members):
            raise ValueError(f"expected one task for each of {len(members)} members, got {len(checked)} tasks")
        self.next_tasks[members] = checked

    def clear_task(self, index: int) -> None:
        """Let a member draw a task from the family's distribution at every reset, as it does before its first task.

        :param index: the member
        """
        self.next_tasks[index] = np.nan

    def check_indices(self, indices: ArrayLike | None) -> NDArray[np.int64]:
        """Check member indices a caller gives.

        :param indices: an index, indices or None for all; negative ones count from the end
        :return: the indices (m,), all in [0, n)
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

        :param ids: sorted, unique members (m,)
        :return: their first observations, a new array (m, O)
        """
        self._begin_tasks(ids)
        qpos, qvel = self.family.initial_states(self.tasks[ids], ids, self.generator)
        self.physics.reset(ids.astype(np.int32), qpos, qvel)
        self.elapsed_steps[ids] = 0
        self.started[ids] = True
        if len(ids) == self.n:
            return self.family.observation(self.physics.state)
        # only the rows that were reset: a family's functions take any number of simulations
        return self.family.observation({name: values[ids] for name, values in self.physics.state.items()})

    def _begin_tasks(self, ids: NDArray[np.int64]) -> None:
        """Fix the tasks of the episodes that begin: those set, or one that the member draws."""
        self.tasks[ids] = self.next_tasks[ids]
        for i in ids[np.isnan(self.next_tasks[ids, 0])]:
            self.tasks[i] = self.family.sample_tasks(1, self.generator(int(i)))[0]

    def step(self, actions: ArrayLike) -> Transition:
        """Take one step in every member.

        :param actions: actions (n, A)
        :return: the transition, without any reset
        :raises ValueError: for actions of another shape or with a NaN or an infinity in them
        :raises RuntimeError: before the first reset
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
        """Step the simulations, and put those that diverged back to a state that can be observed."""
        diverged = self.physics.step(controls)
        observations = self.family.observation(self.physics.state)
        # written so that a NaN, which is both maximum and minimum, counts as too large
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

        :param index: the member
        :return: an RGB image (height, width, 3)
        :raises RuntimeError: before the first reset
        """
        if not self.started[index]:
            raise RuntimeError(f"{self.family.env_id}: reset() must be called before render()")
        if self._renderer is None:
            self._renderer = self.family.make_renderer(*self._frame_size)
        return self._renderer.render(self.physics.snapshot(index), self.tasks[index])

    def show(self, frame: Frame) -> None:
        """Show a frame in the simulator's window.

        :param frame: an RGB image (height, width, 3)
        """
        if self._window is None:
            self._window = Window(self.family.env_id, self.family.render_fps)
        self._window.show(frame)

    def close(self) -> None:
        """Release the renderer and the window; the simulations go with the object."""
        if self._renderer is not None:
            self._renderer.close()
        if self._window is not None:
            self._window.close()
        self._renderer = self._window = None
