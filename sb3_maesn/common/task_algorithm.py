"""Base class of the algorithms on environments with tasks: wrapping, saving and training in whole iterations."""

import copy
import io
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.env_util import MAX_MEMBERS, as_multi_task, check_same_normalization
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.progress import StepsProgressBar
from sb3_maesn.common.rollouts import StepHook
from sb3_maesn.common.type_aliases import RolloutSummary
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.wrappers import frozen_statistics

SelfTaskAlgorithm = TypeVar("SelfTaskAlgorithm", bound="TaskAlgorithm")

REFERENCE_ITERATIONS = 300


class TaskAlgorithm(CheckpointMixin, OnPolicyAlgorithm):
    """SB3 on-policy algorithm whose environment is a MultiTaskVecEnv and whose training consists of whole iterations.

    The class wraps and checks environments and saves atomically. It counts the steps of whole iterations, so that a run
    that was stopped within an iteration repeats that iteration when it continues. The parameters are those of SB3's
    OnPolicyAlgorithm.
    """

    env: MultiTaskVecEnv | None
    n_train_tasks: int
    observes_rewards: ClassVar[bool] = False  # whether the policy does, so that their normalisation matters to it
    _whole_timesteps: int | None  # num_timesteps after the last whole iteration, where None (in older files) means 0
    _copied_modules: ClassVar[tuple[str, ...]] = ("policy",)  # attributes of which a copy of the model gets its own

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            known = ", ".join(self.policy_aliases)
            raise ValueError(f"Policy {policy_name} unknown: {type(self).__name__} has {known}")
        return super()._get_policy_from_name(policy_name)

    # Environments

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Wrap an environment as SB3 does, then in a MultiTaskVecEnv unless it contains one."""
        wrapped = env if isinstance(env, str) else BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        return as_multi_task(wrapped, MAX_MEMBERS)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Replace the environment by one that may have another number of members.

        :param env: environment with the same spaces and the same number of training tasks
        :param force_reset: whether the next call of ``learn`` resets the environment
        :raises ValueError: if the spaces or the number of training tasks differ
        """
        wrapped = self._wrap_env(env, self.verbose)
        assert isinstance(wrapped, MultiTaskVecEnv)
        self.check_spaces(wrapped)
        self._note_env_facts(wrapped)
        self.n_envs = wrapped.num_envs
        super().set_env(wrapped, force_reset)

    def _check_env(self) -> None:
        """Check that the model can be built: with an environment, or from spaces and facts read from a file.

        :raises ValueError: if there is neither
        """
        if self.env is not None:
            self._note_env_facts(self.env)
        elif not hasattr(self, "observation_space"):  # set from the environment, or by loading a file
            raise ValueError("expected an environment, got None")

    def _note_env_facts(self, env: MultiTaskVecEnv) -> None:
        """Keep the facts about the environment that a model needs when it is loaded without one.

        :param env: training environment
        :raises ValueError: if the number of its training tasks differs from that of an earlier environment
        """
        n_tasks = len(env.task_set("train"))
        if not hasattr(self, "n_train_tasks"):
            self.n_train_tasks = n_tasks
        elif n_tasks != self.n_train_tasks:
            raise ValueError(f"expected an environment with {self.n_train_tasks} training tasks, got {n_tasks}")
        self.n_steps = env.horizon
        self.env_id = env.family.env_id if env.has_family else None

    def check_spaces(self, env: VecEnv) -> None:
        """Check that an environment has the spaces for which the policy was built, and normalises as its own does.

        :param env: environment to check
        :raises ValueError: if the observation or the action space differs, or one of the environments normalises
            observations and the other does not
        """
        check_for_correct_spaces(env, self.observation_space, self.action_space)
        if self.env is not None:
            check_same_normalization(self.env, env, rewards=self.observes_rewards)

    # Files

    def _excluded_save_params(self) -> list[str]:
        # every iteration starts with a reset, so the last observation need not be saved
        return [*super()._excluded_save_params(), "_last_obs", "_last_episode_starts", "_last_original_obs"]

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save in SB3's format, atomically: an interrupted save leaves the old file intact.

        :param path: path of the file (``.zip`` is added if it has no suffix), or an open binary file
        :param exclude: names of further attributes to leave out
        :param include: names of attributes to save although they are left out by default
        """
        if isinstance(path, io.BufferedIOBase):
            super().save(path, exclude, include)
            return
        target = Path(path)
        target = target.with_suffix(".zip") if target.suffix == "" else target
        sb3_save = super().save
        write_atomically(target, lambda file: sb3_save(file, exclude, include))  # type: ignore[arg-type]  # a BufferedWriter

    # Training

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one iteration in which every episode lasts for the whole horizon."""
        raise NotImplementedError

    def _step_hook(self, callback: BaseCallback) -> StepHook:
        """Make the function that a collection calls after every step: it counts steps and runs the callback."""

        def on_step(variables: dict[str, Any]) -> bool:
            self.num_timesteps += variables["n_episodes"]
            callback.update_locals({"self": self, **variables})
            return callback.on_step()

        return on_step

    def _note_episodes(self, summary: RolloutSummary) -> None:
        """Add episodes to SB3's episode statistics.

        :param summary: returns, lengths and success of the episodes
        """
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        now = round(time.time() - self.start_time / 1e9, 6)
        for episode_return, length in zip(summary.returns.tolist(), summary.lengths.tolist(), strict=True):
            self.ep_info_buffer.append({"r": episode_return, "l": length, "t": now})
        self.ep_success_buffer.extend(summary.success.tolist())
        self._episode_num += summary.n_episodes

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        assert self.env is not None
        with frozen_statistics(self.env):  # SB3's reset at the start, which a resumed training has once more
            return super()._setup_learn(*args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not progress_bar:
            return super()._init_callback(callback)
        # SB3's own progress bar counts the members' steps, idle ones included
        own = callback if isinstance(callback, list) else [callback]
        converted = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in own]
        return super()._init_callback([*converted, StepsProgressBar()])

    def learn(
        self: SelfTaskAlgorithm,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTaskAlgorithm:
        """Train for whole iterations.

        :param total_timesteps: number of environment steps, rounded up to whole iterations; None for the paper's 300
            iterations
        :param callback: callback or callbacks, as SB3 accepts them
        :param log_interval: number of iterations between logs
        :param tb_log_name: name of the TensorBoard run, None for the algorithm's name
        :param reset_num_timesteps: whether to count steps from 0; False continues a run
        :param progress_bar: whether to show a progress bar
        :return: the trained model
        :raises ValueError: if the model has no environment
        """
        if self.env is None:
            raise ValueError("expected an environment to learn from, got none: call set_env first")
        if total_timesteps is None:
            total_timesteps = REFERENCE_ITERATIONS * self.timesteps_per_iteration
        self._whole_timesteps = 0 if reset_num_timesteps else self._whole_timesteps or 0
        self.num_timesteps = self._whole_timesteps  # repeats an iteration that was cut short
        tb_log_name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    # Adaptation

    def _adaptation_source(self, env: GymEnv | str | None, task: Any) -> GymEnv | str:
        """Choose the environment to adapt in: the given one, or the model's own.

        :param env: environment, None for the model's own
        :param task: task to adapt to
        :raises ValueError: if the task is None, or there is no environment
        """
        if task is None:
            raise ValueError("expected a task (whatever the environment's set_task takes), got None")
        source = self.env if env is None else env
        if source is None:
            raise ValueError("expected an environment, got none: pass env")
        return source

    def _copy(self: SelfTaskAlgorithm) -> SelfTaskAlgorithm:
        """Copy the model: networks and episode statistics are copied, environment and logger shared."""
        other = copy.copy(self)
        # a single deepcopy, so that an optimiser refers to the copied parameters
        for name, module in copy.deepcopy({name: getattr(self, name) for name in self._copied_modules}).items():
            setattr(other, name, module)
        for name in ("ep_info_buffer", "ep_success_buffer"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other
