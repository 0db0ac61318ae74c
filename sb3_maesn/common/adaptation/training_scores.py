"""Scores of latents in the training tasks, from which the prior of the adaptation rule ``posterior`` is learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_maesn.common.adaptation.learners import Agent
from sb3_maesn.common.adaptation.posterior import excess_over_floor, floor_and_solid_hit, prior_points, rounding_of
from sb3_maesn.common.adaptation.rounds import play
from sb3_maesn.common.adaptation.rule import worst_for_diverged
from sb3_maesn.common.adaptation.score_prior import Array, ScorePrior, learn_score_prior
from sb3_maesn.common.shared_episodes import dynamics_groups
from sb3_maesn.common.type_aliases import Rollout, Tasks
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.relabel import relabelled_returns

EPISODES_AT_ONCE = 5000  # limits the memory of a rollout


def score_prior_of(
    agent: Agent, env: MultiTaskVecEnv, tasks: Sequence[Any], n_latents: int, rng: np.random.Generator
) -> ScorePrior:
    """Play the same latents in all tasks, and estimate the mean and the covariance of their scores.

    A score is the excess over the task's floor, divided by the larger of the task's best excess and the median of that
    over tasks, which is at least the median of what would be a solid hit. In a native environment, tasks of the same
    dynamics share their episodes.

    :param agent: agent that plays
    :param env: environment with the reward of adaptation
    :param tasks: J tasks
    :param n_latents: number of latents (N)
    :param rng: source of all randomness
    :return: the prior
    :raises ValueError: for fewer than two tasks
    """
    latents = prior_points(n_latents, rng.random(agent.policy.latent_dim))  # whitened (N, L)
    mean, log_std = (part.double().numpy() for part in (agent.policy.latent_mean, agent.policy.latent_log_std))
    returns = _returns(agent, env, tasks, mean + np.exp(log_std) * latents, rng)  # (J, N)
    # one task at a time to save memory
    excess = np.stack([excess_over_floor(latents[None], row[None])[0] for row in returns])  # (J, N)
    best = excess.max(axis=1, keepdims=True)
    # where few tasks are solved, the best excess is mere nuisance
    solid = np.concatenate([floor_and_solid_hit(latents[None], row[None])[1] for row in returns])  # (J, 1)
    typical = max(float(np.median(part)) for part in (best, solid, rounding_of(returns), 1e-12))
    return learn_score_prior(latents, excess / np.maximum(best, typical), typical)


def _returns(
    agent: Agent, env: MultiTaskVecEnv, tasks: Sequence[Any], latents: Array, rng: np.random.Generator
) -> Array:
    """Compute the undiscounted returns of all latents in all tasks (J, N)."""
    returns = np.empty((len(tasks), len(latents)))
    groups = np.arange(len(tasks))
    if env.shares_episodes:
        groups, _ = dynamics_groups(env, Tasks(groups, list(tasks)))
    size = max(1, EPISODES_AT_ONCE // len(latents))  # number of groups in a block
    for start in range(0, int(groups.max()) + 1, size):
        block = np.arange(start, min(start + size, int(groups.max()) + 1))
        played = [tasks[int(np.flatnonzero(groups == group)[0])] for group in block]
        rollout = play(agent, env, played, np.repeat(latents[None], len(played), axis=0), rng)
        for i, group in enumerate(block):
            own = groups == group
            returns[own] = _as_each_task(env, rollout, i, [tasks[int(j)] for j in np.flatnonzero(own)])
    return returns


def _as_each_task(env: MultiTaskVecEnv, rollout: Rollout, i: int, tasks: Sequence[Any]) -> Array:
    """Compute what the episodes of the rollout's i-th task return in each of the tasks of its group (n, N)."""
    if len(tasks) == 1:
        return worst_for_diverged(rollout.returns.numpy(), rollout.valid)[i]
    steps = (rollout.observations, rollout.actions, rollout.mask)
    observations, actions, mask = (part[:, i].double().numpy() for part in steps)
    returns = relabelled_returns(env.family, observations, actions, mask, np.stack(tasks), gamma=1.0)
    return worst_for_diverged(returns, np.broadcast_to(rollout.valid[i], returns.shape))
