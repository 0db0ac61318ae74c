"""The wrapper that gives the members of any VecEnv tasks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_maesn.envs.batched import BatchedTaskVecEnv
from sb3_maesn.envs.mujoco_physics import MujocoPhysics
from sb3_maesn.envs.relabel import can_relabel
from sb3_maesn.envs.task_family import SPLITS, TaskFamily
from sb3_maesn.envs.wrappers import find_horizon, frozen_statistics

TaskAdapter: TypeAlias = Callable[[VecEnv, int, Any], None]
"""Function (venv, member index, task) -> None that sets a member's next task, for members without ``set_task``."""


class MultiTaskVecEnv(VecEnvWrapper):
    """A VecEnv wrapper whose members solve different tasks of one family.

    - **Setting tasks.** ``set_tasks`` gives members their next tasks through ``task_adapter``, if there is one, else
      through the members' ``set_task(task)``. A task takes effect at the member's next reset, an automatic one
      included; members of third parties are expected to follow this too. If no task was set before the first reset,
      all members get the first training task; those of a native VecEnv draw tasks by themselves instead.
    - **Task sets.** The training, validation and test tasks are fixed when the wrapper is made: those that are passed,
      else the members' own ``task_set(split, n_tasks)``, else draws from the members' ``sample_tasks(n)``, which must
      work before the first reset too. Each set is drawn with a seed of its own, so if ``sample_tasks`` draws one task
      after another, a smaller set is the beginning of a larger one. If ``train_tasks`` is passed, a set that is not
      passed is empty.
    - **Steps.** Observations, rewards, dones and infos, and the automatic resets, are those of the wrapped VecEnv.
    - **Requirements.** If tasks and horizon are passed, the wrapped VecEnv needs no more than ``reset``, ``step`` and
      ``env_method("set_task", task, indices=[i])``.

    :param venv: VecEnv to wrap
    :param horizon: maximum number of steps of an episode; None to ask the members (attribute ``horizon`` or
        ``max_episode_steps`` of their Gymnasium spec, whichever is less)
    :param train_tasks: tasks for meta-training, of any type that the members' ``set_task`` takes
    :param validation_tasks: tasks for tuning and model selection
    :param test_tasks: tasks for reporting
    :param n_tasks: number of tasks in each set that the members provide
    :param task_adapter: function that sets a member's task in place of ``set_task``
    :param task_seed: seed from which the members' seeds are derived before ``sample_tasks`` is called
    :raises ValueError: if ``venv`` is no VecEnv, the members have no tasks, their horizon is unknown or less than 1,
        there is no training task, or a task is not finite
    """

    def __init__(
        self,
        venv: VecEnv,
        horizon: int | None = None,
        train_tasks: Sequence[Any] | None = None,
        validation_tasks: Sequence[Any] | None = None,
        test_tasks: Sequence[Any] | None = None,
        n_tasks: int = 100,
        task_adapter: TaskAdapter | None = None,
        task_seed: int = 0,
    ):
        if not isinstance(venv, VecEnv):
            raise ValueError(
                f"expected a VecEnv, got {venv!r}: make one with sb3_maesn.envs.make_vec(env_id, n_envs), or around"
                " Gymnasium environments with stable_baselines3.common.env_util.make_vec_env(make_env, n_envs)"
            )
        super().__init__(venv)
        self.task_adapter = task_adapter
        self.horizon = _horizon(venv) if horizon is None else int(horizon)
        if self.horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {self.horizon}")
        given = (train_tasks, validation_tasks, test_tasks)
        drawn = self._draw_task_sets(n_tasks, task_seed) if train_tasks is None else ((), (), ())
        chosen = [theirs if mine is None else mine for mine, theirs in zip(given, drawn, strict=True)]
        self._task_sets = dict(zip(SPLITS, map(list, chosen), strict=True))
        if not self._task_sets["train"]:
            raise ValueError("train_tasks is empty: expected at least one training task")
        for tasks in self._task_sets.values():
            for task in tasks:
                _check_finite(task)
        self._smaller: MultiTaskVecEnv | None = None
        self._is_task_set = False  # whether a task was ever set through this wrapper

    def _draw_task_sets(self, n_tasks: int, seed: int) -> tuple[Sequence[Any], ...]:
        """Get the training, validation and test tasks from the first member."""
        if self.venv.has_attr("task_set"):
            return tuple(self.venv.env_method("task_set", split, n_tasks, indices=[0])[0] for split in SPLITS)
        if not has_tasks(self.venv):
            raise ValueError(
                "this environment has no tasks: expected members with `sample_tasks(n)` and `set_task(task)`,"
                " or train_tasks (and task_adapter) passed to MultiTaskVecEnv"
            )
        with frozen_statistics(self.venv):  # the resets are not part of any training
            try:
                _seed_and_reset(self.venv, seed)
            except Exception:  # of whatever kind: some members need a task before their first reset
                _seed_generator(self.venv, seed)
                any_task = _call_sample_tasks(self.venv, 1)[0]
                for member in range(self.num_envs):
                    self._set_task(member, any_task)
            return tuple(_sample_tasks(self.venv, n_tasks, seed, i) for i in range(len(SPLITS)))

    def around(self, venv: VecEnv) -> "MultiTaskVecEnv":
        """Wrap another VecEnv with the same horizon, task sets and task adapter.

        :param venv: VecEnv with the same kind of members, e.g. this environment in further wrappers
        :return: the new wrapper
        """
        train, validation, test = (self._task_sets[split] for split in SPLITS)
        return MultiTaskVecEnv(venv, self.horizon, train, validation, test, task_adapter=self.task_adapter)

    def only(self, task: Any) -> "MultiTaskVecEnv":
        """Restrict the members to one task, from their next reset on and as the only task of every set.

        The new wrapper shares the members with this one.

        :param task: a task that ``set_task`` takes
        :return: the new wrapper
        :raises ValueError: if the members refuse the task
        """
        single = MultiTaskVecEnv(self.venv, self.horizon, [task], [task], [task], task_adapter=self.task_adapter)
        single.set_tasks([task] * self.num_envs)
        self._is_task_set = True
        return single

    def task_set(self, split: str) -> list[Any]:
        """Return the tasks of a set.

        :param split: name of the set: ``"train"``, ``"validation"`` or ``"test"``
        :return: the set's own list of tasks, not a copy
        :raises ValueError: for another name, or an empty set
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        tasks = self._task_sets[split]
        if not tasks:
            raise ValueError(f"this environment has no {split} tasks: pass {split}_tasks to MultiTaskVecEnv")
        return tasks

    def task(self, split: str, task_id: int) -> Any:
        """Return one task of a set.

        :param split: name of the set: ``"train"``, ``"validation"`` or ``"test"``
        :param task_id: position of the task in the set, counted from 0
        :return: the task
        :raises ValueError: for another name, or if there is no such task
        """
        tasks = self.task_set(split)
        if not 0 <= task_id < len(tasks):
            raise ValueError(f"expected a {split} task id from 0 to {len(tasks) - 1}, got {task_id}")
        return tasks[task_id]

    def set_tasks(self, tasks: Sequence[Any], indices: Sequence[int] | None = None) -> None:
        """Set the tasks of members, which take effect at their next reset.

        :param tasks: tasks, one for each member
        :param indices: indices of the members, all of them by default
        :raises ValueError: if the numbers of tasks and members differ, a task is not finite, the members refuse a task,
            or they have no ``set_task``
        """
        members = range(self.num_envs) if indices is None else indices
        if len(tasks) != len(members):
            raise ValueError(f"expected one task for each of {len(members)} members, got {len(tasks)}")
        native = self.venv.unwrapped
        if self.task_adapter is None and isinstance(native, BatchedTaskVecEnv):
            rows, shape = _rows(tasks), native.family.task_space.shape
            if rows.shape[1:] != shape:
                raise ValueError(f"a task of {native.family.name} must have shape {shape}, got {rows.shape[1:]}")
            native.set_tasks(rows, np.asarray(members))
            return
        for member, task in zip(members, tasks, strict=True):
            _check_finite(task)
            self._set_task(member, task)
        for wrapper in self._multi_task_wrappers():
            wrapper._is_task_set = True

    def _multi_task_wrappers(self) -> Iterator["MultiTaskVecEnv"]:
        """Yield this wrapper and all MultiTaskVecEnvs below it."""
        venv: VecEnv = self
        while isinstance(venv, VecEnvWrapper):
            if isinstance(venv, MultiTaskVecEnv):
                yield venv
            venv = venv.venv

    def _set_task(self, member: int, task: Any) -> None:
        if self.task_adapter is not None:
            self.task_adapter(self.venv, member, task)
            return
        try:
            self.venv.env_method("set_task", task, indices=[member])
        except AttributeError as error:
            raise ValueError(
                "expected members with `set_task(task)`, or a task_adapter passed to MultiTaskVecEnv; setting a task"
                f" gave: {error}"
            ) from error

    @property
    def has_family(self) -> bool:
        """Whether the wrapped VecEnv is a native one whose observations and rewards reach the learner unchanged."""
        return isinstance(self._members, BatchedTaskVecEnv)

    @property
    def _members(self) -> VecEnv:
        """The VecEnv below all wrappers that change neither observations nor rewards."""
        venv: VecEnv = self.venv
        while isinstance(venv, MultiTaskVecEnv | VecMonitor):
            venv = venv.venv
        return venv

    @property
    def shares_episodes(self) -> bool:
        """Whether an episode of one task tells what it would have returned in other tasks of the same dynamics.

        This holds in native environments (see ``has_family``) whose observations determine the reward.
        """
        return isinstance(self._members, BatchedTaskVecEnv) and can_relabel(self._members.family)

    @property
    def family(self) -> TaskFamily:
        """Task family of a native VecEnv whose observations and rewards reach the learner unchanged.

        :raises ValueError: for any other environment, see ``has_family``
        """
        venv = self._members
        if not isinstance(venv, BatchedTaskVecEnv):
            raise ValueError(
                "expected a batched environment of this package (sb3_maesn.envs.make_vec) without wrappers that change"
                f" observations or rewards, got {type(venv).__name__}"
            )
        return venv.family

    def with_room_for(self, n: int) -> "MultiTaskVecEnv":
        """Return an environment whose number of members suits ``n`` episodes.

        A native VecEnv with more members than episodes would step the idle ones too, so a smaller one takes its place.
        It is kept for further calls with the same ``n`` and closed at the next call that needs another size.

        :param n: number of episodes
        :return: an environment of exactly ``n`` members with the same task sets if this one is native and larger, else
            this environment
        """
        monitor = self.venv if isinstance(self.venv, VecMonitor) else None
        native = self.venv if monitor is None else monitor.venv
        if n >= self.num_envs or not isinstance(native, BatchedTaskVecEnv):
            return self
        if self._smaller is None or self._smaller.num_envs != n:
            self._close_smaller()
            physics = native.simulator.physics
            n_threads = physics.batch.nthread if isinstance(physics, MujocoPhysics) else 0
            smaller: VecEnv = BatchedTaskVecEnv(native.family, n, n_threads)
            self._smaller = self.around(smaller if monitor is None else _monitored_like(smaller, monitor))
        return self._smaller

    def _close_smaller(self) -> None:
        """Close the smaller environment of ``with_room_for``, if there is one."""
        if self._smaller is not None:
            self._smaller._members.close()  # not a monitor's file, which belongs to the larger environment
        self._smaller = None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the members at their next reset, if they can be seeded.

        :param seed: seed of the first member, to which SB3 adds the index of each other member
        :return: the members' seeds, None for those that cannot be seeded
        """
        try:
            return self.venv.seed(seed)
        except NotImplementedError:  # a third party's VecEnv need not support more than set_task, reset and step
            return [None] * self.num_envs

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of single members, see SB3's ``VecEnv.env_method``."""
        if method_name == "set_task":
            self._is_task_set = True
        return super().env_method(method_name, *method_args, indices=indices, **method_kwargs)

    def reset(self) -> VecEnvObs:
        """Start new episodes in all members, with the tasks last set, or the first training task if none was ever set.

        :return: first observations (n, ...)
        """
        if not self._has_task:
            self.set_tasks([self._task_sets["train"][0]] * self.num_envs)
        return self.venv.reset()

    @property
    def _has_task(self) -> bool:
        """Whether the members have a task for their next reset, because one was set or they draw it themselves."""
        if isinstance(self.venv.unwrapped, BatchedTaskVecEnv):
            return True
        return any(wrapper._is_task_set for wrapper in self._multi_task_wrappers())

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step that ``step_async`` began.

        :return: observations (n, ...), rewards (n,), dones (n,) and infos of the wrapped VecEnv
        """
        return self.venv.step_wait()

    def close(self) -> None:
        """Close the members."""
        self._close_smaller()
        super().close()


def _monitored_like(venv: VecEnv, monitor: VecMonitor) -> VecMonitor:
    """Wrap a VecEnv in a monitor that writes to the same file as another one."""
    own = VecMonitor(venv, info_keywords=monitor.info_keywords)
    own.results_writer, own.t_start = monitor.results_writer, monitor.t_start
    return own


def _rows(tasks: Sequence[Any]) -> np.ndarray:
    """Stack tasks that are vectors (n, G)."""
    try:
        return np.stack([np.asarray(task, dtype=np.float64) for task in tasks])
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected tasks that are vectors of one length, got {tasks[0]!r} first: {error}") from error


def _check_finite(task: Any) -> None:
    """Refuse a task with a number in it that is not finite."""
    for part in _numbers(task):
        if not np.isfinite(part).all():
            raise ValueError(f"expected a finite task, got {task}")


def _numbers(task: Any) -> Iterator[np.ndarray]:
    """Yield all numbers in a task, which may be nested in dicts, lists and tuples."""
    if isinstance(task, dict | list | tuple):
        for part in task.values() if isinstance(task, dict) else task:
            yield from _numbers(part)
    elif isinstance(task, np.ndarray | np.number | float | int) and np.issubdtype(np.asarray(task).dtype, np.number):
        yield np.asarray(task)


def _horizon(venv: VecEnv) -> int:
    """Return the horizon of the members, which must be known."""
    horizon = find_horizon(venv)
    if horizon is None:
        raise ValueError(
            "the episode's horizon is unknown: expected members with an attribute `horizon` or a Gymnasium spec with"
            " max_episode_steps, or MultiTaskVecEnv(venv, horizon=...)"
        )
    return horizon


def _sample_tasks(venv: VecEnv, n_tasks: int, task_seed: int, split: int) -> Sequence[Any]:
    """Sample the tasks of a set from the first member, with a generator that this set alone uses.

    :param venv: VecEnv whose members have ``sample_tasks``
    :param n_tasks: number of tasks
    :param task_seed: seed of all sets
    :param split: position of the set in ``SPLITS``
    :return: tasks
    """
    _seed_and_reset(venv, int(np.random.SeedSequence([task_seed, split]).generate_state(1)[0]) & 0x7FFFFFFF)
    return _call_sample_tasks(venv, n_tasks)


def _seed_and_reset(venv: VecEnv, seed: int) -> None:
    """Seed the members, to which SB3 passes a seed at the next reset, and reset them."""
    venv.seed(seed)
    venv.reset()


def _seed_generator(venv: VecEnv, seed: int) -> None:
    """Seed the generator of the first member without a reset, if it is Gymnasium's."""
    with suppress(Exception):  # of whatever kind: a third party's member need not have one, or not let it be set
        venv.set_attr("np_random", np.random.default_rng(seed), indices=[0])


def _call_sample_tasks(venv: VecEnv, n_tasks: int) -> Sequence[Any]:
    """Call ``sample_tasks`` of the first member and check that it returns a list or an array."""
    tasks: Any = venv.env_method("sample_tasks", n_tasks, indices=[0])[0]
    if not isinstance(tasks, Sequence | np.ndarray):
        raise ValueError(f"expected sample_tasks({n_tasks}) to return a list of tasks, got {tasks!r}")
    return tasks  # type: ignore[return-value]  # an array serves as well


def has_tasks(venv: VecEnv) -> bool:
    """Tell whether the members bring tasks of their own.

    :param venv: VecEnv to look at
    :return: whether they have ``task_set``, or both ``sample_tasks`` and ``set_task``
    """
    return venv.has_attr("task_set") or (venv.has_attr("sample_tasks") and venv.has_attr("set_task"))


def find_multi_task(env: VecEnv) -> MultiTaskVecEnv | None:
    """Find the outermost MultiTaskVecEnv among the wrappers of a VecEnv.

    :param env: VecEnv, possibly wrapped
    :return: the wrapper, None if there is none
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, MultiTaskVecEnv):
            return env
        env = env.venv
    return None
