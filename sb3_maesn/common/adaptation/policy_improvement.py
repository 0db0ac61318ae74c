"""Improvement of theta on one task after its latent distribution has been adapted (Gupta et al. 2018, section 5.3)."""

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
    """Collect episodes of one task and take one trust-region step of theta, with the latent distribution fixed.

    :param collector: collector of the episodes, with the policy whose latent distribution is used
    :param trust_region: settings of the step
    :param params: meta-parameters, of which theta is the starting point; their latent distributions are not used
    :param task: a task that ``set_task`` takes
    :param n_episodes: number of episodes of the step
    :param fisher_subsampling: stride in time steps at which the Fisher-vector product is computed, reduced where less
        than ten steps of the task's mean episode would be left
    :param rng: source of all randomness
    :return: the new theta, and the mean return of the episodes before the step (NaN if all of them diverged)
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
