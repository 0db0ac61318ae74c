"""Base class of the algorithms that collect whole episodes with this package's collector and keep them by task."""

import time
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.baselines import ValueFunction, linear_values
from sb3_maesn.common.collection import Collector
from sb3_maesn.common.global_seed import entropy_of
from sb3_maesn.common.inner_update import ActorFunction
from sb3_maesn.common.parallel import StatelessModule, one_torch_thread
from sb3_maesn.common.policies import LatentActor, LatentActorCriticPolicy
from sb3_maesn.common.rollouts import StepHook
from sb3_maesn.common.task_algorithm import TaskAlgorithm
from sb3_maesn.envs.multi_task import MultiTaskVecEnv


class EpisodicAlgorithm(TaskAlgorithm):
    """TaskAlgorithm that trains a LatentActorCriticPolicy on whole episodes.

    It has no rollout buffer, since SB3's loses track of episodes and tasks. All randomness of iteration i comes from
    the seed and i alone, so a run that is saved, loaded and continued equals one that was never stopped.

    The parameters are those of SB3's OnPolicyAlgorithm, apart from the ones that only its own rollouts and losses use.

    :raises ValueError: for a device other than the CPU or ``"auto"``
    """

    policy: LatentActorCriticPolicy  # a narrower type than SB3's
    baseline_ridge: float
    _actor: LatentActor

    #: Base class of every policy that the algorithm accepts.
    policy_base: ClassVar[type[LatentActorCriticPolicy]] = LatentActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule,
        gamma: float,
        gae_lambda: float,
        stats_window_size: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        verbose: int,
        seed: int | None,
        device: th.device | str,
        _init_setup_model: bool,
    ):
        self.entropy = entropy_of(seed)
        self._whole_timesteps = 0
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # SB3 passes None to load a model without an environment
            learning_rate,
            n_steps=1,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=_checked_cpu(device),
            _init_setup_model=_init_setup_model,
        )

    # Set-up

    def _setup_model(self) -> None:
        self._check_origin()
        self._setup_lr_schedule()
        self._check_env()
        self.set_random_seed(self.seed)
        policy_class: type[LatentActorCriticPolicy] = self.policy_class  # type: ignore[assignment]  # as just checked
        with one_torch_thread():  # the orthogonal initial weights depend on the number of threads, by rounding
            policy = policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)
        self.policy = policy.to(self.device)
        self.rollout_buffer = None  # type: ignore[assignment]  # SB3 expects the attribute
        self._actor = self.policy.make_actor()

    def _check_origin(self) -> None:
        """Check that neither algorithm nor policy is another one's, as in a file of another algorithm.

        :raises ValueError: if one is
        """
        self._check_saved_algorithm()
        policy_class: type = self.policy_class
        if not issubclass(policy_class, self.policy_base):
            raise ValueError(f"expected a subclass of {self.policy_base.__name__}, got {policy_class.__name__}")

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actor"]

    @property
    def _actor_function(self) -> ActorFunction:
        """The actor as a function of its parameters."""
        return StatelessModule(self._actor)

    @property
    def _value_function(self) -> ValueFunction:
        """The value baseline from which advantages are estimated."""
        return partial(linear_values, ridge=self.baseline_ridge)

    def _collector(self, env: MultiTaskVecEnv, on_step: StepHook | None = None) -> Collector:
        """Build a collector of episodes of this policy.

        :param env: environment to collect from
        :param on_step: function called after every environment step; returning False ends the collection
        :return: the collector
        """
        return Collector(
            env, self.policy, self._actor_function, self.gamma, self.gae_lambda, self._value_function, on_step
        )

    # One iteration

    def _rng(self) -> np.random.Generator:
        """Make the generator of the current iteration; its collection and its step use no other randomness."""
        return np.random.default_rng([self.entropy, self._n_updates])

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Collect the episodes of one iteration.

        :param env: training environment, a MultiTaskVecEnv
        :param callback: callback, called at every environment step
        :param rollout_buffer: SB3's rollout buffer, not used
        :param n_rollout_steps: SB3's number of steps, not used: the episodes are whole
        :return: whether to go on; False if the callback ended the training
        """
        assert isinstance(env, MultiTaskVecEnv)
        started = time.perf_counter()
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        if not self._collect(self._collector(env, self._step_hook(callback))):
            return False
        self.logger.record("time/collect_seconds", time.perf_counter() - started)
        callback.on_rollout_end()
        return True

    def _collect(self, collector: Collector) -> bool:
        """Collect the episodes of one iteration, keep them for ``train``, and log their statistics.

        :param collector: collector bound to the training environment and the callback
        :return: whether to go on; False if the callback ended the collection
        """
        raise NotImplementedError


def _checked_cpu(device: th.device | str) -> str:
    """Return ``"cpu"`` if the device is the CPU or ``"auto"``.

    :param device: torch device
    :return: ``"cpu"``
    :raises ValueError: if it is another device
    """
    if device != "auto" and get_device(device).type != "cpu":
        raise ValueError(f"expected device 'cpu' or 'auto', got {str(device)!r}: episodes and networks stay on the CPU")
    return "cpu"
