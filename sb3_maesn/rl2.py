"""RL2: a recurrent policy that learns within its hidden state (Duan et al. 2016, arXiv:1611.02779; Wang et al. 2016,
arXiv:1611.05763).
"""

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.adaptation.rounds import AdaptationResult
from sb3_maesn.common.adaptation.trials import run_trials
from sb3_maesn.common.env_util import as_multi_task, borrowed_env
from sb3_maesn.common.global_seed import entropy_of, generator_of, global_seed
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.common.task_algorithm import TaskAlgorithm
from sb3_maesn.common.trial_policy import Memory, TrialLstmPolicy
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.trials import Trial, TrialVecEnv, single_episodes

SelfRL2 = TypeVar("SelfRL2", bound="RL2")


class RL2(TaskAlgorithm, RecurrentPPO):
    """Meta-RL by a recurrent policy.

    Its input is the observation and the previous action, reward and done; its hidden state is kept across the episodes
    of a trial, all of one task, and reset between trials. sb3-contrib's recurrent PPO maximises the discounted sum of a
    trial's rewards on a :class:`~sb3_maesn.envs.trials.TrialVecEnv`, whose episodes are trials: so the policy learns to
    explore in a trial's first episodes as far as it pays in the later ones. Adapting to a new task is running a trial.

    An iteration runs ``meta_batch_size`` trials, each of a training task drawn anew. All its randomness comes from the
    seed and its number, so that a run that is saved, loaded and continued equals one that was never stopped.

    :param policy: ``"MlpLstmPolicy"`` or a subclass of TrialLstmPolicy
    :param env: an id of this package, a Gymnasium environment with tasks, or a VecEnv of such
    :param learning_rate: of Adam
    :param meta_batch_size: trials of an iteration, divided among the environment's members and rounded up to as many
        from each; where episodes end early there are more, the last ones cut short
    :param n_episodes: K, episodes of a trial
    :param batch_size: steps of a mini-batch; all of an iteration's where None
    :param stats_window_size: trials over which ``rollout/*`` averages
    :param seed: of everything random
    :param device: torch device
    :param kwargs: further arguments of RecurrentPPO
    :raises ValueError: for trials without episodes, and for an environment or a policy that does not fit
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpLstmPolicy": TrialLstmPolicy}

    policy: TrialLstmPolicy  # narrower than SB3's
    rollout_buffer: RecurrentRolloutBuffer  # likewise
    adaptation: AdaptationResult | None

    def __init__(
        self,
        policy: str | type[TrialLstmPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 3e-4,
        meta_batch_size: int = 40,
        n_episodes: int = 4,
        batch_size: int | None = None,
        stats_window_size: int = 400,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        if "n_steps" in kwargs:
            raise ValueError(
                "n_steps follows from meta_batch_size, n_episodes and the environment's horizon: leave it out, got"
                f" n_steps={kwargs['n_steps']}"
            )
        self.meta_batch_size = meta_batch_size
        self.n_episodes = n_episodes
        self.entropy = entropy_of(seed)
        self.adaptation = None
        self._whole_timesteps = None
        self._trials: list[Trial] = []  # of the current iteration
        super().__init__(
            policy,
            None if env is None else self._with_trials(env, kwargs.get("verbose", 0)),  # type: ignore[arg-type]  # None is how SB3 loads a model without an environment
            learning_rate,
            batch_size=batch_size,
            stats_window_size=stats_window_size,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    # Set-up

    def _with_trials(self, env: GymEnv | str, verbose: int) -> TrialVecEnv:
        """Whatever a user passes, in trials."""
        if isinstance(env, TrialVecEnv):
            if env.n_episodes != self.n_episodes:
                raise ValueError(f"expected trials of {self.n_episodes} episodes, got trials of {env.n_episodes}")
            return env
        multi = as_multi_task(env if isinstance(env, str) else self._wrap_env(env, verbose), self.meta_batch_size)
        return TrialVecEnv(multi, self.n_episodes)

    def _setup_model(self) -> None:
        check_at_least(vars(self), {"meta_batch_size": 1, "n_epochs": 1})
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, or None for all steps, got {self.batch_size}")
        if not issubclass(self.policy_class, TrialLstmPolicy):
            raise ValueError(f"expected a subclass of TrialLstmPolicy, got {self.policy_class.__name__}")
        self._look_at_env()
        super()._setup_model()

    def _take_env_facts(self, env: MultiTaskVecEnv) -> None:
        super()._take_env_facts(env)
        self.n_steps = env.horizon * -(-self.meta_batch_size // env.num_envs)  # whole trials of each member

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Replace the environment; the number of its members may differ.

        :param env: an environment with the same spaces and number of training tasks
        :param force_reset: as in SB3
        :raises ValueError: if spaces or the number of training tasks differ
        """
        super().set_env(self._with_trials(env, self.verbose), force_reset)
        lstm = self.policy.lstm_actor
        self.rollout_buffer.buffer_size, self.rollout_buffer.n_envs = self.n_steps, self.n_envs
        # its arrays are made anew at the start of every collection
        self.rollout_buffer.hidden_state_shape = (self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size)

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one iteration."""
        return self.n_steps * self.n_envs

    # Files

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "adaptation", "_trials"]

    @classmethod
    def load(
        cls: type[SelfRL2],
        path: str | Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfRL2:
        """Load as SB3 does.

        :param path: file, or something to read from
        :param env: environment to go on training with, with or without trials
        :param device: torch device
        :param custom_objects: as in SB3
        :param print_system_info: as in SB3
        :param force_reset: as in SB3
        :param kwargs: arguments to change
        """
        model = super().load(path, None, device, custom_objects, print_system_info, force_reset, **kwargs)
        if env is not None:  # only now is the number of episodes known that its trials have
            model.set_env(env, force_reset)
        return model

    # One iteration

    def _rng(self, part: int) -> np.random.Generator:
        """A generator of the current iteration: its collection (0) and its update (1) depend on nothing else."""
        return np.random.default_rng([self.entropy, self._n_updates, part])

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect the trials of one iteration.

        :param env: the TrialVecEnv
        :param callback: called at every environment step
        :param rollout_buffer: to fill
        :param n_rollout_steps: steps of each member
        :return: False if the callback ended the training
        """
        started, rng = time.perf_counter(), self._rng(0)
        env.seed(int(rng.integers(2**31 - env.num_envs)))
        self._last_obs = env.reset()  # type: ignore[assignment]  # a TrialVecEnv's observations are arrays
        self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self._last_lstm_states = self._empty_states()  # type: ignore[assignment]  # sb3-contrib's annotation is None
        self._trials = []
        with global_seed(int(rng.integers(2**32))):
            going_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if going_on:  # else the iteration is done again, and its trials count then
            self._note_trials()
            self.logger.record("time/collect_seconds", time.perf_counter() - started)
        return going_on

    def _empty_states(self) -> RNNStates:
        lstm = self.policy.lstm_actor
        zeros = th.zeros(lstm.num_layers, self.n_envs, lstm.hidden_size, device=self.device)
        return RNNStates((zeros, zeros), (zeros, zeros))

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """Keep the trials that ended."""
        self._trials += [info["trial"] for info in infos if "trial" in info]

    def _note_trials(self) -> None:
        """Trials' last episodes, those after adaptation, go where SB3 keeps its episode statistics; first episodes are
        logged under the names that the other meta-learners give to those before adaptation.
        """
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        now = round(time.time() - self.start_time / 1e9, 6)
        for trial in self._trials:
            self.ep_info_buffer.append({"r": float(trial.returns[-1]), "l": int(trial.lengths[-1]), "t": now})
            if not np.isnan(trial.success[-1]):
                self.ep_success_buffer.append(float(trial.success[-1]))
        self._episode_num += len(self._trials) * self.n_episodes
        # an iteration is at least one whole trial of every member
        self.logger.record("rollout/trial_rew_mean", safe_mean([trial.returns.sum() for trial in self._trials]))
        self.logger.record("rollout/pre_ep_rew_mean", safe_mean([trial.returns[0] for trial in self._trials]))
        if not np.isnan(self._trials[0].success[0]):
            self.logger.record("rollout/pre_success_rate", safe_mean([trial.success[0] for trial in self._trials]))

    def train(self) -> None:
        """Update the policy by recurrent PPO."""
        started, iteration = time.perf_counter(), self._n_updates
        with global_seed(int(self._rng(1).integers(2**32))):
            super().train()
        self._n_updates = iteration + 1  # as everywhere in this package, where sb3-contrib counts epochs
        self._whole_timesteps = self.num_timesteps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/train_seconds", time.perf_counter() - started)

    # Adaptation

    def adapt(
        self: SelfRL2,
        env: GymEnv | str | None = None,
        task: Any = None,
        n_episodes: int | None = None,
        deterministic: bool = False,
        seed: int = 0,
    ) -> SelfRL2:
        """Adapt to one task by running a trial on it.

        :param env: where the task is set: an id, a Gymnasium environment or a VecEnv; the model's own where None
        :param task: whatever ``set_task`` takes
        :param n_episodes: of the trial; as many as in training where None
        :param deterministic: most likely actions
        :param seed: of everything random here
        :return: a new model whose ``predict`` begins with the memory that the trial left behind, and whose
            ``adaptation`` is its history, an episode a round; this model stays as it was
        :raises ValueError: if no task is given, the trial has no episodes, or the environment refuses the task
        """
        source = self._adaptation_source(env, task)
        adapted = self._copy()
        with borrowed_env(source, 1, [task]) as venv:
            adapted.adaptation, memory = self._run_trials(venv, [task], n_episodes, 1, deterministic, seed)
        adapted.policy.set_memory(memory)
        return adapted

    def evaluate_trials(
        self,
        env: GymEnv | str,
        tasks: Sequence[Any],
        n_episodes: int | None = None,
        n_trials: int = 1,
        deterministic: bool = False,
        seed: int = 0,
    ) -> AdaptationResult:
        """Run trials on all tasks at once and report every episode.

        :param env: an id, a Gymnasium environment with tasks, or a VecEnv of such
        :param tasks: whatever ``set_task`` takes, n_tasks of them
        :param n_episodes: K, episodes of a trial; as many as in training where None
        :param n_trials: trials of each task
        :param deterministic: most likely actions
        :param seed: of everything random here
        :return: arrays with leading dimensions (K, n_tasks, n_trials)
        :raises ValueError: for numbers out of range, spaces that differ, or tasks that the environment refuses
        """
        with borrowed_env(env, len(tasks) * n_trials, tasks) as venv:
            return self._run_trials(venv, tasks, n_episodes, n_trials, deterministic, seed)[0]

    def _run_trials(
        self,
        env: MultiTaskVecEnv,
        tasks: Sequence[Any],
        n_episodes: int | None,
        n_trials: int,
        deterministic: bool,
        seed: int,
    ) -> tuple[AdaptationResult, Memory]:
        single = single_episodes(env)
        k = self.n_episodes if n_episodes is None else n_episodes
        self.check_spaces(TrialVecEnv(single, k, split=None))
        return run_trials(self.policy, single, tasks, k, n_trials, generator_of(seed), deterministic)
