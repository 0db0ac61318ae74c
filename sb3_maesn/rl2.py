"""RL2: meta-RL with a recurrent policy whose hidden state adapts to the task.

See Duan et al. 2016 (arXiv:1611.02779) and Wang et al. 2016 (arXiv:1611.05763).
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
    """Meta-RL algorithm that trains a recurrent policy with sb3-contrib's recurrent PPO.

    The policy's input is the observation and the previous action, reward and done. Its hidden state is kept across the
    episodes of a trial, which all have the same task, and reset between trials. Recurrent PPO treats a trial as one
    episode (see :class:`~sb3_maesn.envs.trials.TrialVecEnv`) and maximises its discounted sum of rewards, so the policy
    learns to explore in the first episodes of a trial as far as that pays off in the later ones. To adapt to a new
    task is to run a trial on it. Episodes whose simulation diverges are penalised as TrialVecEnv describes, and counted
    in the log as ``rollout/n_diverged``.

    An iteration runs ``meta_batch_size`` trials, each on a newly drawn training task. A run that is saved, loaded and
    continued equals one that was never stopped, on as many torch threads; their number changes results by rounding.

    :param policy: policy class, or its alias ``"MlpLstmPolicy"``; a class must derive from TrialLstmPolicy
    :param env: environment id of this package, Gymnasium environment with tasks, or VecEnv of such environments
    :param learning_rate: learning rate of Adam
    :param meta_batch_size: number of trials in one iteration, rounded up to the same number for each member of the
        environment. If episodes end early, an iteration has more trials, the last of which are cut off
    :param n_episodes: number of episodes in a trial (K)
    :param batch_size: number of steps in a mini-batch, None for all steps of the iteration
    :param stats_window_size: number of trials over which ``rollout/*`` averages
    :param seed: seed of all randomness, None for a random one
    :param device: torch device
    :param _init_setup_model: whether to build the networks in the constructor
    :param kwargs: further arguments of RecurrentPPO, except ``n_steps``
    :raises ValueError: if a setting is out of range, or the environment or the policy is unsuitable
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpLstmPolicy": TrialLstmPolicy}
    observes_rewards: ClassVar[bool] = True

    policy: TrialLstmPolicy  # a narrower type than SB3's
    rollout_buffer: RecurrentRolloutBuffer  # a narrower type than SB3's
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
        self._whole_timesteps = 0
        self._trials: list[Trial] = []  # trials that ended in the current iteration
        self._n_diverged = 0  # episodes of the current iteration that diverged, also those of trials that are cut off
        super().__init__(
            policy,
            None if env is None else self._with_trials(env, kwargs.get("verbose", 0)),  # type: ignore[arg-type]  # SB3 passes None to load a model without an environment
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
        """Wrap an environment as the user passed it in a TrialVecEnv, unless it is one already."""
        if isinstance(env, TrialVecEnv):
            if env.n_episodes != self.n_episodes:
                raise ValueError(f"expected trials of {self.n_episodes} episodes, got trials of {env.n_episodes}")
            return env
        multi = as_multi_task(env if isinstance(env, str) else self._wrap_env(env, verbose), self.meta_batch_size)
        return TrialVecEnv(multi, self.n_episodes)

    def _setup_model(self) -> None:
        self._check_saved_algorithm()
        check_at_least(vars(self), {"meta_batch_size": 1, "n_epochs": 1})
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, or None for all steps, got {self.batch_size}")
        if not issubclass(self.policy_class, TrialLstmPolicy):
            raise ValueError(f"expected a subclass of TrialLstmPolicy, got {self.policy_class.__name__}")
        self._check_env()
        super()._setup_model()

    def _note_env_facts(self, env: MultiTaskVecEnv) -> None:
        super()._note_env_facts(env)
        self.n_steps = env.horizon * -(-self.meta_batch_size // env.num_envs)  # rounded up

    def set_env(self, env: GymEnv | str, force_reset: bool = True) -> None:
        """Replace the environment by one that may have another number of members.

        :param env: environment with the same spaces and the same number of training tasks, with or without trials
        :param force_reset: whether the next call of ``learn`` resets the environment
        :raises ValueError: if the spaces, the number of training tasks or the number of episodes in a trial differ
        """
        super().set_env(self._with_trials(env, self.verbose), force_reset)
        lstm = self.policy.lstm_actor
        self.rollout_buffer.buffer_size, self.rollout_buffer.n_envs = self.n_steps, self.n_envs
        # the buffer allocates its arrays at the start of every collection, from these sizes
        self.rollout_buffer.hidden_state_shape = (self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size)

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one iteration."""
        return self.n_steps * self.n_envs

    # Files

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "adaptation", "_trials", "_n_diverged"]

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
        """Load a file written by SB3's ``save``.

        :param path: path of the file, or an open binary file
        :param env: environment to continue training in, with or without trials
        :param device: torch device
        :param custom_objects: replacements for objects that cannot be deserialised, by name
        :param print_system_info: whether to print the system information of the saved model and of this machine
        :param force_reset: whether the next call of ``learn`` resets the environment
        :param kwargs: constructor arguments that replace those in the file
        :return: the model
        """
        model = super().load(path, None, device, custom_objects, print_system_info, force_reset, **kwargs)
        if env is not None:  # wrapping it needs n_episodes, which is known only after loading
            model.set_env(env, force_reset)
        return model

    # One iteration

    def _rng(self, part: int) -> np.random.Generator:
        """Make a generator of the current iteration, for its collection (part 0) or its update (part 1)."""
        return np.random.default_rng([self.entropy, self._n_updates, part])

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect the trials of one iteration.

        :param env: training environment, a TrialVecEnv
        :param callback: callback, called at every environment step
        :param rollout_buffer: rollout buffer to fill
        :param n_rollout_steps: number of steps of each member
        :return: whether to go on; False if the callback ended the training
        """
        started, rng = time.perf_counter(), self._rng(0)
        env.seed(int(rng.integers(2**31 - env.num_envs)))
        self._last_obs = env.reset()  # type: ignore[assignment]  # a TrialVecEnv's observations are arrays
        self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self._last_lstm_states = self._empty_states()  # type: ignore[assignment]  # sb3-contrib's annotation is None
        self._trials, self._n_diverged = [], 0
        with global_seed(int(rng.integers(2**32))):
            going_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if going_on:  # otherwise the iteration is repeated, and its trials are counted then
            self._note_trials()
            self.logger.record("time/collect_seconds", time.perf_counter() - started)
        return going_on

    def _empty_states(self) -> RNNStates:
        lstm = self.policy.lstm_actor
        zeros = th.zeros(lstm.num_layers, self.n_envs, lstm.hidden_size, device=self.device)
        return RNNStates((zeros, zeros), (zeros, zeros))

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        """Collect the trials that ended and count divergences, in place of SB3's episode statistics."""
        self._trials += [info["trial"] for info in infos if "trial" in info]
        self._n_diverged += sum(bool(info.get("diverged")) for info in infos)

    def _note_trials(self) -> None:
        """Log the iteration's trials.

        SB3's episode statistics are those of the last episodes, after adaptation. The first episodes are logged under
        the names that the other meta-learners use for episodes before adaptation. As there, episodes that diverged
        are counted and left out of these statistics; the return of a trial includes their penalties.
        """
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        now = round(time.time() - self.start_time / 1e9, 6)
        for trial in self._trials:
            if trial.diverged[-1]:
                continue
            self.ep_info_buffer.append({"r": float(trial.returns[-1]), "l": int(trial.lengths[-1]), "t": now})
            if not np.isnan(trial.success[-1]):
                self.ep_success_buffer.append(float(trial.success[-1]))
        self._episode_num += len(self._trials) * self.n_episodes
        # every member completes at least one trial in an iteration
        self.logger.record("rollout/trial_rew_mean", safe_mean([trial.returns.sum() for trial in self._trials]))
        self.logger.record("rollout/n_diverged", float(self._n_diverged))
        whole = [trial for trial in self._trials if not trial.diverged[0]]
        if whole:
            self.logger.record("rollout/pre_ep_rew_mean", safe_mean([trial.returns[0] for trial in whole]))
            if not np.isnan(whole[0].success[0]):
                self.logger.record("rollout/pre_success_rate", safe_mean([trial.success[0] for trial in whole]))

    def train(self) -> None:
        """Update the policy with recurrent PPO."""
        started, iteration = time.perf_counter(), self._n_updates
        with global_seed(int(self._rng(1).integers(2**32))):
            super().train()
        self._n_updates = iteration + 1  # this package counts iterations, sb3-contrib epochs
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
        """Adapt to one task by running a trial on it, and return the adapted model.

        :param env: environment with the task, as an id, a Gymnasium environment or a VecEnv; the model's own
            environment if None
        :param task: task to adapt to, any value that the environment's ``set_task`` accepts
        :param n_episodes: number of episodes of the trial, None for as many as in training
        :param deterministic: whether to take the most likely actions
        :param seed: seed of all randomness in this method
        :return: new model whose ``predict`` starts from the hidden state at the end of the trial, and whose
            ``adaptation`` is the history of the trial, one episode per round; the original model does not change
        :raises ValueError: if no task is given, the trial has no episodes, or the environment refuses the task
        """
        source = self._adaptation_source(env, task)
        adapted = self._copy()
        with borrowed_env(source, 1, [task], norm_reward=True) as venv:
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

        :param env: environment id, Gymnasium environment with tasks, or VecEnv of such environments
        :param tasks: tasks, any values that the environment's ``set_task`` accepts (n_tasks)
        :param n_episodes: number of episodes in a trial (K), None for as many as in training
        :param n_trials: number of trials of each task
        :param deterministic: whether to take the most likely actions
        :param seed: seed of all randomness in this method
        :return: results of all episodes, arrays with leading dimensions (K, n_tasks, n_trials)
        :raises ValueError: if a number is out of range, the spaces differ from the model's, or the environment refuses
            a task
        """
        with borrowed_env(env, len(tasks) * n_trials, tasks, norm_reward=True) as venv:
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
