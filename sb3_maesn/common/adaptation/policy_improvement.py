"""Improving theta on one task after its latent distribution has been adapted (Gupta et al. 2018, section 5.3)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch as th

from sb3_maesn.common.collection import Collector
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import InnerUpdate
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.trust_region import TrustRegion, trust_region_step
from sb3_maesn.common.type_aliases import Adapted, MetaBatch, MetaParameters, NamedParameters, Tasks


def improve_policy(
    collector: Collector,
    trust_region: TrustRegion,
    params: MetaParameters,
    task: Any,
    n_episodes: int,
    fisher_subsampling: int,
    rng: np.random.Generator,
) -> tuple[NamedParameters, float]:
    """One trust-region step of theta on one task, its latent distribution fixed.

    :param collector: how episodes are collected
    :param trust_region: settings of the step
    :param params: theta; the latents are the policy's current distribution
    :param task: whatever ``set_task`` takes
    :param n_episodes: of the step
    :param fisher_subsampling: the Fisher product uses every n-th time step, but at least ten of a task's mean episode
    :param rng: source of all randomness
    :return: the new theta, and the mean return of the episodes before it
    """
    policy = collector.policy
    latents = DiagGaussian(policy.latent_mean[None], policy.latent_log_std[None])  # (1, L) each
    params = replace(params, omega=latents)
    tasks = Tasks(np.zeros(1, dtype=np.int64), [task])
    rollout = collector.rollout(tasks, params.theta, Adapted(latents, None), n_episodes, rng)
    assert rollout is not None  # only a step hook can end a collection
    batch = MetaBatch(tasks, (), collector.judge(rollout))
    objective = MetaObjective(InnerUpdate(), collector.actor, batch, kl_coef=0.0)

    def with_theta(leaves: Sequence[th.Tensor]) -> MetaParameters:
        return replace(params, theta=dict(zip(params.theta, leaves, strict=True)))

    result = trust_region_step(
        [lambda leaves: objective(with_theta(leaves))],
        [lambda leaves: objective.fisher_kl(with_theta(leaves), objective.stride(fisher_subsampling))],
        list(params.theta.values()),
        trust_region,
        int(rng.integers(2**62)),
    )
    returns = rollout.summary().returns
    return with_theta(result.leaves).theta, float(returns.mean()) if returns.size else float("nan")
