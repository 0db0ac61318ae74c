"""The data of one meta-iteration: episodes before each inner update and after the last."""

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
    """How episodes are collected and judged.

    :param env: the environment
    :param policy: for its spaces and preprocessing
    :param actor: the actor as a function of its parameters
    :param gamma: discount factor
    :param gae_lambda: of the generalised advantages
    :param value_function: the baseline of the advantages
    :param on_step: called after every environment step
    :param reward_map: changes the rewards before they are judged
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
        """Episodes of each task with latents drawn from its distribution.

        :param tasks: B tasks
        :param theta: shared parameters
        :param adapted: the tasks' own values
        :param n_episodes: K, of each task
        :param rng: source of all randomness
        :param common_noise: whether the k-th episodes of all tasks share their latents' noise
        :return: the rollout; None if ``on_step`` ended it
        """
        shape = (1 if common_noise else len(tasks.values), n_episodes, self.policy.latent_dim)
        noise = th.from_numpy(rng.standard_normal(shape, dtype=np.float32)).expand(len(tasks.values), -1, -1)
        behaviour = Behaviour(self.policy, self.actor, theta, adapted, noise, sample_z(adapted.omega, noise))
        return collect(self.env, tasks.values, behaviour, rng, self.on_step)

    def judge(self, rollout: Rollout) -> TaskBatch:
        """The rollout with its advantages.

        :param rollout: the episodes
        """
        mapped = rollout if self.reward_map is None else self.reward_map(rollout)
        return estimate_advantages(mapped, self.gamma, self.gae_lambda, self.value_function)


@dataclass(frozen=True)
class CollectionPlan:
    """Which episodes a meta-iteration consists of.

    :param n_inner_steps: inner updates
    :param n_episodes: of each task in each rollout
    :param n_prior_episodes: where given, this many episodes of the prior take the place of the tasks' own before the
        inner update, shared by all tasks of equal dynamics
    :param keep_steps: whether the meta step needs the single steps before the inner updates, or the episodes only
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
    """Collect, adapt, and collect again.

    :param collector: how
    :param plan: which episodes
    :param spec: the inner update
    :param params: the meta-parameters
    :param tasks: B tasks
    :param rng: source of all randomness
    :return: the data; None if the collector's ``on_step`` ended the collection
    """
    adapted = Adapted(DiagGaussian(params.omega.mean[tasks.ids], params.omega.log_std[tasks.ids]), None)
    acted = [adapted]
    pre: list[TaskBatch | EpisodeBatch] = []
    summaries: list[RolloutSummary] = []
    for _ in range(plan.n_inner_steps):
        before = _collect_before(collector, plan, params.theta, tasks, adapted, rng)
        if before is None:
            return None
        batch, summary = before
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


def _collect_before(
    collector: Collector,
    plan: CollectionPlan,
    theta: NamedParameters,
    tasks: Tasks,
    adapted: Adapted,
    rng: np.random.Generator,
) -> tuple[TaskBatch | EpisodeBatch, RolloutSummary] | None:
    """What an inner update learns from: each task's own episodes, or those of the prior that tasks share."""
    if plan.n_prior_episodes is None:
        rollout = collector.rollout(tasks, theta, adapted, plan.n_episodes, rng)
        return None if rollout is None else (collector.judge(rollout), rollout.summary())
    groups, first = dynamics_groups(collector.env, tasks)
    zeros = th.zeros(len(first.values), collector.policy.latent_dim)
    prior = Adapted(DiagGaussian(zeros, zeros), None)
    # the groups try the same latents, so that all tasks can agree on whose each latent is
    bank = collector.rollout(first, theta, prior, plan.n_prior_episodes, rng, common_noise=True)
    if bank is None:
        return None
    return share_episodes(collector.env, tasks, groups, bank, collector.gamma), bank.summary()
