"""What SB3's on-policy algorithm lacks for environments with tasks, apart from any learning."""

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
from sb3_maesn.common.env_util import MAX_MEMBERS, as_multi_task
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.progress import StepsProgressBar
from sb3_maesn.common.rollouts import StepHook
from sb3_maesn.common.type_aliases import RolloutSummary
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

SelfTaskAlgorithm = TypeVar("SelfTaskAlgorithm", bound="TaskAlgorithm")

REFERENCE_ITERATIONS = 300


class TaskAlgorithm(CheckpointMixin, OnPolicyAlgorithm):
    """An SB3 algorithm whose environment is a MultiTaskVecEnv and whose training consists of whole iterations.

    It wraps and checks environments, saves atomically, and counts steps so that a run stopped within an iteration does
    that iteration again. Its parameters are those of OnPolicyAlgorithm.
    """

    env: MultiTaskVecEnv | None
    n_train_tasks: int
    _whole_timesteps: int | None  # num_timesteps after the last whole iteration
    _modules_of_its_own: ClassVar[tuple[str, ...]] = ("policy",)  # which no two models share

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            known = ", ".join(self.policy_aliases)
            raise ValueError(f"Policy {policy_name} unknown: {type(self).__name__} has {known}")
        return super()._get_policy_from_name(policy_name)

    # Environments

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """Give any environment tasks: SB3's wrapping, then a MultiTaskVecEnv unless there is one already."""
        wrapped = env if isinstance(env, str) else BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        return as_multi_task(wrapped, MAX_MEMBERS)

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Replace the environment; the number of its members may differ.

        :param env: an environment with the same spaces and number of training tasks
        :param force_reset: as in SB3
        :raises ValueError: if spaces or the number of training tasks differ
        """
        wrapped = self._wrap_env(env, self.verbose)
        assert isinstance(wrapped, MultiTaskVecEnv)
        self.check_spaces(wrapped)
        self._take_env_facts(wrapped)
        self.n_envs = wrapped.num_envs
        super().set_env(wrapped, force_reset)

    def _look_at_env(self) -> None:
        """Note the facts of the environment that the model is built with.

        :raises ValueError: if there is none
        """
        if self.env is not None:
            self._take_env_facts(self.env)
        elif not hasattr(self, "observation_space"):  # which SB3 takes from the environment, or from a file
            raise ValueError("expected an environment, got None")

    def _take_env_facts(self, env: MultiTaskVecEnv) -> None:
        """Note what has to be known where there is no environment."""
        n_tasks = len(env.task_set("train"))
        if n_tasks != self.__dict__.setdefault("n_train_tasks", n_tasks):
            raise ValueError(f"expected an environment with {self.n_train_tasks} training tasks, got {n_tasks}")
        self.n_steps = env.horizon
        self.env_id = env.family.env_id if env.has_family else None

    def check_spaces(self, env: VecEnv) -> None:
        """Refuse an environment whose spaces differ from those the policy was built for.

        :param env: the environment
        :raises ValueError: naming both spaces
        """
        check_for_correct_spaces(env, self.observation_space, self.action_space)

    # Files

    def _excluded_save_params(self) -> list[str]:
        # every iteration starts from a reset, so no observation has to be kept
        return [*super()._excluded_save_params(), "_last_obs", "_last_episode_starts", "_last_original_obs"]

    def save(
        self,
        path: str | Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """Save as SB3 does, but atomically: an interrupted save leaves the old file whole.

        :param path: file, or something to write to
        :param exclude: as in SB3
        :param include: as in SB3
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
        """Environment steps of one iteration whose episodes are all as long as the horizon."""
        raise NotImplementedError

    def _step_hook(self, callback: BaseCallback) -> StepHook:
        def on_step(variables: dict[str, Any]) -> bool:
            self.num_timesteps += variables["n_episodes"]
            callback.update_locals({"self": self, **variables})
            return callback.on_step()

        return on_step

    def _note_episodes(self, summary: RolloutSummary) -> None:
        """Episodes go where SB3 keeps its episode statistics."""
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        now = round(time.time() - self.start_time / 1e9, 6)
        for episode_return, length in zip(summary.returns.tolist(), summary.lengths.tolist(), strict=True):
            self.ep_info_buffer.append({"r": episode_return, "l": length, "t": now})
        self.ep_success_buffer.extend(summary.success.tolist())
        self._episode_num += summary.n_episodes

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if not progress_bar:
            return super()._init_callback(callback)
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
        """Train.

        :param total_timesteps: environment steps, rounded up to whole iterations; the paper's 300 iterations where None
        :param callback: as in SB3
        :param log_interval: iterations between logs
        :param tb_log_name: name of the TensorBoard run; that of the algorithm where None
        :param reset_num_timesteps: False continues a run
        :param progress_bar: show one
        :return: the trained model
        :raises ValueError: if there is no environment
        """
        if self.env is None:
            raise ValueError("expected an environment to learn from, got none: call set_env first")
        if total_timesteps is None:
            total_timesteps = REFERENCE_ITERATIONS * self.timesteps_per_iteration
        if reset_num_timesteps:
            self._whole_timesteps = None
        elif self._whole_timesteps is not None:  # an iteration that was cut short is done again
            self.num_timesteps = self._whole_timesteps
        tb_log_name = type(self).__name__ if tb_log_name is None else tb_log_name
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    # Adaptation

    def _adaptation_source(self, env: GymEnv | str | None, task: Any) -> GymEnv | str:
        """Where to adapt to a task: the environment passed, or this model's own."""
        if task is None:
            raise ValueError("expected a task (whatever the environment's set_task takes), got None")
        source = self.env if env is None else env
        if source is None:
            raise ValueError("expected an environment, got none: pass env")
        return source

    def _copy(self: SelfTaskAlgorithm) -> SelfTaskAlgorithm:
        """A model with networks of its own that shares this one's environment and logger."""
        other = copy.copy(self)
        # in one copy, so that an optimiser goes on with the copies of all that it changes
        for name, module in copy.deepcopy({name: getattr(self, name) for name in self._modules_of_its_own}).items():
            setattr(other, name, module)
        for name in ("ep_info_buffer", "ep_success_buffer"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other
