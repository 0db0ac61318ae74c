"""REINFORCE: the plain policy gradient of one task (Williams 1992, doi:10.1007/BF00992696)."""

from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.baselines import RIDGE
from sb3_maesn.common.collection import Collector
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.env_util import as_single_task
from sb3_maesn.common.episodic_algorithm import EpisodicAlgorithm
from sb3_maesn.common.objectives import normalise_steps, policy_kl, surrogate
from sb3_maesn.common.policies import LatentActorCriticPolicy, PlainActorCriticPolicy
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.common.type_aliases import Adapted, TaskBatch, Tasks


class REINFORCE(EpisodicAlgorithm):
    """Likelihood-ratio policy gradient on whole episodes of one task, with a linear value baseline.

    An iteration collects ``n_episodes`` episodes, fits a linear value baseline of observation and time to their
    returns, and takes Adam steps along the policy gradient of the whole batch. Resumes exactly (see
    :class:`EpisodicAlgorithm`).

    :param policy: policy class, or its alias ``"MlpPolicy"``; a class must derive from PlainActorCriticPolicy
    :param env: environment whose maximum episode length is known; narrow one that has several tasks down to one of them
        with ``MultiTaskVecEnv.only(task)``
    :param learning_rate: learning rate of Adam
    :param n_episodes: number of episodes in one iteration, collected in waves if the environment has fewer members
    :param n_gradient_steps: number of Adam steps in one iteration; those after the first follow the gradient of the
        importance-weighted advantage
    :param gamma: discount factor
    :param gae_lambda: lambda of generalised advantage estimation; 1 gives returns minus the baseline
    :param baseline_ridge: ridge coefficient of the linear baseline
    :param stats_window_size: number of episodes over which ``rollout/*`` averages
    :param tensorboard_log: folder for TensorBoard logs, None for none
    :param policy_kwargs: keyword arguments of the policy
    :param verbose: verbosity level: 0 for none, 1 for info, 2 for debug
    :param seed: seed of all randomness, None for a random one
    :param device: torch device, ``"cpu"`` or ``"auto"``; both mean the CPU
    :param _init_setup_model: whether to build the networks in the constructor
    :raises ValueError: if a setting is out of range, or the environment has more than one task
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": PlainActorCriticPolicy}
    policy_base: ClassVar[type[LatentActorCriticPolicy]] = PlainActorCriticPolicy

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-2,
        n_episodes: int = 20,
        n_gradient_steps: int = 1,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        baseline_ridge: float = RIDGE,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "cpu",
        _init_setup_model: bool = True,
    ):
        self.n_episodes = n_episodes
        self.n_gradient_steps = n_gradient_steps
        self.baseline_ridge = baseline_ridge
        self._batch: TaskBatch | None = None
        super().__init__(
            policy,
            as_single_task(env, n_episodes) if isinstance(env, str) else env,
            learning_rate,
            gamma,
            gae_lambda,
            stats_window_size,
            tensorboard_log,
            policy_kwargs,
            verbose,
            seed,
            device,
            _init_setup_model,
        )

    # Set-up

    @staticmethod
    def _wrap_env(env: GymEnv | str, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = env if isinstance(env, str) else BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        return as_single_task(wrapped, 1)

    def _setup_model(self) -> None:
        check_at_least(vars(self), {"n_episodes": 2, "n_gradient_steps": 1})
        super()._setup_model()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_batch"]

    @property
    def timesteps_per_iteration(self) -> int:
        """Environment steps of one iteration in which every episode lasts for the whole horizon."""
        return self.n_episodes * self.n_steps

    # One iteration

    def _collect(self, collector: Collector) -> bool:
        """Collect ``n_episodes`` episodes of the environment's only task and estimate their advantages."""
        theta = {name: value.detach() for name, value in self._actor.named_parameters()}
        no_latent = th.zeros(1, 0)  # mean and log std of a latent with 0 dimensions
        rollout = collector.rollout(
            Tasks(np.zeros(1, dtype=np.int64), collector.env.task_set("train")),
            theta,
            Adapted(DiagGaussian(no_latent, no_latent), None),
            self.n_episodes,
            self._rng(),
        )
        if rollout is None:
            return False
        self._batch = collector.judge(rollout)
        self._note_episodes(rollout.summary())
        self.logger.record("rollout/n_diverged", float(rollout.n_diverged))
        return True

    def train(self) -> None:
        """Take ``n_gradient_steps`` Adam steps along the policy gradient of the collected episodes."""
        assert self._batch is not None
        self.policy.set_training_mode(True)
        batch, self._batch = self._batch, None
        rollout = batch.rollout
        advantages = normalise_steps(batch.advantages, rollout.mask)
        latents = rollout.latents.expand(*rollout.mask.shape, 0)  # (1, K, 0) -> (T, 1, K, 0)
        self._update_learning_rate(self.policy.optimizer)
        for _ in range(self.n_gradient_steps):
            new = self._actor(rollout.observations, latents)
            loss = -surrogate(new.log_prob(rollout.actions), rollout.log_prob, advantages, rollout.mask)
            self.policy.optimizer.zero_grad()
            loss.backward()
            self.policy.optimizer.step()
        self._n_updates += 1
        self._whole_timesteps = self.num_timesteps
        with th.no_grad():
            new = self._actor(rollout.observations, latents)
            self.logger.record("train/kl_divergence", policy_kl(rollout.distribution, new, rollout.mask).item())
        self.logger.record("train/explained_variance", batch.explained_variance)
        if self._actor.log_std is not None:
            self.logger.record("train/std", self._actor.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
