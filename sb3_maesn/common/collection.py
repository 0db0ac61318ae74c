"""Data collection of one meta-iteration: rollouts before each inner update and after the last."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_maesn.common.baselines import ValueFunction, estimate_advantages, linear_values
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import ActorFunction, InnerUpdate, inner_update, sample_z
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.rollouts import Behaviour, StepHook, collect
from sb3_maesn.common.shared_episodes import dynamics_groups, share_episodes
from sb3_maesn.common.type_aliases import (
    Adapted,
    EpisodeBatch,
    MetaBatch,
    MetaParameters,
    NamedParameters,
    Rollout,
    RolloutSummary,
    TaskBatch,
    Tasks,
)
from sb3_maesn.envs.multi_task import MultiTaskVecEnv


@dataclass(frozen=True)
class Collector:
    """Means of collecting rollouts and estimating their advantages.

    :param env: multi-task environment
    :param policy: policy that provides the spaces and the preprocessing
    :param actor: actor as a function of its parameters
    :param gamma: discount factor
    :param gae_lambda: lambda of generalised advantage estimation
    :param value_function: value baseline of the advantages
    :param on_step: callback after every environment step
    :param reward_map: function that changes a rollout's rewards before advantages are estimated
    """

    env: MultiTaskVecEnv
    policy: LatentActorCriticPolicy
    actor: ActorFunction
    gamma: float
    gae_lambda: float
    value_function: ValueFunction = linear_values
    on_step: StepHook | None = None
    reward_map: Callable[[Rollout], Rollout] | None = None

    def rollout(
        self,
        tasks: Tasks,
        theta: NamedParameters,
        adapted: Adapted,
        n_episodes: int,
        rng: np.random.Generator,
        common_noise: bool = False,
    ) -> Rollout | None:
        """Collect episodes of each task, with latents drawn from the task's latent distribution.

        :param tasks: B tasks
        :param theta: shared policy parameters
        :param adapted: latent distributions of the B tasks, and their own policy parameters where these are adapted
        :param n_episodes: number of episodes of each task, K
        :param rng: source of all randomness
        :param common_noise: whether the k-th episodes of all tasks share the noise of their latents
        :return: rollout, or None if ``on_step`` ended the collection
        """
        shape = (1 if common_noise else len(tasks.values), n_episodes, self.policy.latent_dim)
        noise = th.from_numpy(rng.standard_normal(shape, dtype=np.float32)).expand(len(tasks.values), -1, -1)
        behaviour = Behaviour(self.policy, self.actor, theta, adapted, noise, sample_z(adapted.omega, noise))
        return collect(self.env, tasks.values, behaviour, rng, self.on_step)

    def judge(self, rollout: Rollout) -> TaskBatch:
        """Estimate the advantages of a rollout, after its rewards have passed through ``reward_map``.

        :param rollout: episodes as collected
        :return: rollout with mapped rewards, and its advantages
        """
        mapped = rollout if self.reward_map is None else self.reward_map(rollout)
        return estimate_advantages(mapped, self.gamma, self.gae_lambda, self.value_function)


@dataclass(frozen=True)
class CollectionPlan:
    """Number and kind of episodes to collect in a meta-iteration.

    :param n_inner_steps: number of inner updates
    :param n_episodes: number of episodes of each task in each rollout
    :param n_prior_episodes: number of episodes with latents from the prior that all tasks of equal dynamics share in
        place of pre-update episodes of their own; None for pre-update episodes of each task's own
    :param keep_steps: whether the meta step needs the single time steps of the pre-update rollouts, and not only
        whole-episode data
    """

    n_inner_steps: int
    n_episodes: int
    n_prior_episodes: int | None
    keep_steps: bool


def collect_meta_batch(
    collector: Collector,
    plan: CollectionPlan,
    spec: InnerUpdate,
    params: MetaParameters,
    tasks: Tasks,
    rng: np.random.Generator,
) -> MetaBatch | None:
    """Collect pre-update rollouts, make the inner updates, and collect the post-update rollout.

    :param collector: means of collecting rollouts
    :param plan: number and kind of episodes
    :param spec: settings of the inner update
    :param params: meta-parameters
    :param tasks: B tasks
    :param rng: source of all randomness
    :return: meta-batch, or None if the collector's ``on_step`` ended the collection
    """
    adapted = Adapted(DiagGaussian(params.omega.mean[tasks.ids], params.omega.log_std[tasks.ids]), None)
    acted = [adapted]
    pre: list[TaskBatch | EpisodeBatch] = []
    summaries: list[RolloutSummary] = []
    for _ in range(plan.n_inner_steps):
        collected = _collect_pre_update(collector, plan, params.theta, tasks, adapted, rng)
        if collected is None:
            return None
        batch, summary = collected
        with th.no_grad():
            new = inner_update(spec, collector.actor, params.theta, params.step_sizes, adapted, batch)
        adapted = new.detached()
        acted.append(adapted)
        pre.append(batch.episodes if isinstance(batch, TaskBatch) and not plan.keep_steps else batch)
        summaries.append(summary)
    post = collector.rollout(tasks, params.theta, adapted, plan.n_episodes, rng)
    if post is None:
        return None
    return MetaBatch(tasks, tuple(pre), collector.judge(post), tuple(summaries), tuple(acted))


def _collect_pre_update(
    collector: Collector,
    plan: CollectionPlan,
    theta: NamedParameters,
    tasks: Tasks,
    adapted: Adapted,
    rng: np.random.Generator,
) -> tuple[TaskBatch | EpisodeBatch, RolloutSummary] | None:
    """Collect the data of one inner update: each task's own episodes, or prior episodes that tasks share.

    :return: data and the summary of the collected episodes, or None if the collector's ``on_step`` ended the collection
    """
    if plan.n_prior_episodes is None:
        rollout = collector.rollout(tasks, theta, adapted, plan.n_episodes, rng)
        return None if rollout is None else (collector.judge(rollout), rollout.summary())
    groups, first = dynamics_groups(collector.env, tasks)
    zeros = th.zeros(len(first.values), collector.policy.latent_dim)
    prior = Adapted(DiagGaussian(zeros, zeros), None)
    # equal latents in all groups let balancing divide them among the tasks of all groups
    bank = collector.rollout(first, theta, prior, plan.n_prior_episodes, rng, common_noise=True)
    if bank is None:
        return None
    return share_episodes(collector.env, tasks, groups, bank, collector.gamma), bank.summary()
