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
from sb3_maesn.envs.multi_task import MultiTaskVecEnv


class REINFORCE(EpisodicAlgorithm):
    """The likelihood-ratio policy gradient on whole episodes of one task, with a linear baseline.

    An iteration collects ``n_episodes`` episodes, fits a linear function of observation and time to their returns,
    subtracts it, and takes Adam steps along the gradient of all steps at once. All randomness of iteration i comes from
    the seed and i alone, so that a run that is saved, loaded and continued equals one that was never stopped.

    :param policy: ``"MlpPolicy"`` or a subclass of PlainActorCriticPolicy
    :param env: an environment whose episodes have a known greatest length; one with tasks has to be narrowed to one of
        them by ``MultiTaskVecEnv.only(task)``
    :param learning_rate: of Adam
    :param n_episodes: of an iteration; in waves where the environment has fewer members
    :param n_gradient_steps: Adam steps of an iteration; after the first, the gradient is that of the
        importance-weighted advantage
    :param gamma: discount factor
    :param gae_lambda: of the generalised advantages; 1 gives returns minus baseline
    :param baseline_ridge: of the baseline's ridge regression
    :param stats_window_size: episodes over which ``rollout/*`` averages
    :param tensorboard_log: folder of the TensorBoard logs
    :param policy_kwargs: arguments of the policy
    :param verbose: 0, 1 or 2
    :param seed: of everything random
    :param device: torch device
    :param _init_setup_model: whether to build the networks now
    :raises ValueError: for settings out of range, and for an environment with more than one task
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
        """Environment steps of one iteration whose episodes are all as long as the horizon."""
        return self.n_episodes * self.n_steps

    # One iteration

    def _collect(self, collector: Collector, env: MultiTaskVecEnv) -> bool:
        """Of the one task."""
        theta = {name: value.detach() for name, value in self._actor.named_parameters()}
        nothing = th.zeros(1, 0)  # the latents of a policy without any
        rollout = collector.rollout(
            Tasks(np.zeros(1, dtype=np.int64), env.task_set("train")),
            theta,
            Adapted(DiagGaussian(nothing, nothing), None),
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
        """Adam steps along the policy gradient."""
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
