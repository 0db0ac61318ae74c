"""Value baselines: linear features fitted to each task, or the policy's critic."""

from collections.abc import Callable
from functools import partial

import torch as th

from sb3_maesn.common.parallel import Workers, one_torch_thread
from sb3_maesn.common.type_aliases import Rollout, TaskBatch

ValueFunction = Callable[[Rollout, th.Tensor], th.Tensor]
"""(rollout, its discounted returns (T, B, K)) -> values (T, B, K)"""

RIDGE = 1e-5


def discounted_sums(values: th.Tensor, discount: float) -> th.Tensor:
    """From each step on, the discounted sum of what follows.

    :param values: (T, B, K), zero after an episode's end
    :param discount: per step
    :return: (T, B, K)
    """
    sums = th.empty_like(values)
    running = th.zeros_like(values[0])
    for t in reversed(range(values.shape[0])):
        running = values[t] + discount * running
        sums[t] = running
    return sums


def linear_features(observations: th.Tensor, first_step: int = 0) -> th.Tensor:
    """Features of a time-varying linear value function (Duan et al. 2016, arXiv:1604.06778, linear feature baseline).

    :param observations: (T, ..., O)
    :param first_step: time of the first row
    :return: (T, ..., 2 O + 4): obs, obs^2, t/100 and its square and cube, 1
    """
    observations = observations.clamp(-10.0, 10.0)
    time = (th.arange(first_step, first_step + observations.shape[0], dtype=observations.dtype) + 1.0) / 100.0
    powers = th.stack([time, time**2, time**3, th.ones_like(time)], dim=-1)  # (T, 4)
    powers = powers.view(-1, *(1,) * (observations.ndim - 2), 4).expand(*observations.shape[:-1], 4)
    return th.cat([observations, observations.square(), powers], dim=-1)


def _ridge_fit(features: th.Tensor, targets: th.Tensor, weights: th.Tensor, ridge: float) -> th.Tensor:
    """Fitted values of a ridge regression on standardised features (N,); features (N, F) are centred in place, the
    normal equations solved in float64.
    """
    count = weights.sum().clamp(min=1.0)
    features -= (weights @ features) / count
    if count < len(weights):
        features *= weights.unsqueeze(1)
    target_mean = (weights @ targets) / count
    covariance = (features.T @ features).double() / count
    moment = (features.T @ ((targets - target_mean) * weights)).double() / count
    # the constant feature becomes 0: the targets' mean takes its place
    scale = 1.0 / covariance.diagonal().sqrt().clamp(min=1e-6)
    correlation = covariance * scale * scale.unsqueeze(1)
    correlation.diagonal().add_(ridge)
    solution: th.Tensor = scale * th.linalg.solve(correlation, scale * moment)
    return (features @ solution.to(features.dtype) + target_mean) * weights


def linear_values(rollout: Rollout, discounted_returns: th.Tensor, ridge: float = RIDGE) -> th.Tensor:
    """Values of a linear function fitted to the discounted returns of each task's own episodes.

    :param rollout: the episodes
    :param discounted_returns: (T, B, K)
    :param ridge: added to the diagonal of the standardised features' covariance; with few episodes and many features a
        small one lets the baseline learn the episodes by heart, and nothing is left of their advantages
    :return: (T, B, K), zero where the mask is
    """
    n_steps, n_tasks, n_episodes = discounted_returns.shape
    values = th.empty_like(discounted_returns)

    def fit(task: int) -> None:
        features = linear_features(rollout.observations[:, task].flatten(2))  # (T, K, F)
        fitted = _ridge_fit(
            features.flatten(0, 1), discounted_returns[:, task].flatten(), rollout.mask[:, task].flatten(), ridge
        )
        values[:, task] = fitted.view(n_steps, n_episodes)

    with Workers() as workers:  # one task at a time keeps the features in cache and the memory small
        workers([partial(fit, task) for task in range(n_tasks)])
    return values


def explained_variance(values: th.Tensor, returns: th.Tensor, mask: th.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the valid steps; NaN where the returns do not vary."""
    valid = mask > 0
    if valid.sum() < 2:
        return float("nan")
    variance = returns[valid].var().item()
    return float("nan") if variance == 0.0 else 1.0 - (returns[valid] - values[valid]).var().item() / variance


def estimate_advantages(
    rollout: Rollout, gamma: float, gae_lambda: float, value_function: ValueFunction = linear_values
) -> TaskBatch:
    """Generalised advantages (Schulman et al. 2016, arXiv:1506.02438) of a rollout of whole episodes.

    :param rollout: the episodes
    :param gamma: discount factor
    :param gae_lambda: 1 gives returns minus values
    :param value_function: the baseline
    """
    discounted_returns = discounted_sums(rollout.rewards, gamma)
    with th.no_grad():
        values = value_function(rollout, discounted_returns)
    with one_torch_thread():  # arrays this small are not worth waking others, which spin for a while afterwards
        values = values * rollout.mask
        next_values = th.cat([values[1:], th.zeros_like(values[:1])])
        deltas = (rollout.rewards + gamma * next_values - values) * rollout.mask
        advantages = discounted_sums(deltas, gamma * gae_lambda)
        fit = explained_variance(values, discounted_returns, rollout.mask)
    episode_advantages = discounted_returns[0] - values[0]
    return TaskBatch(rollout, advantages, discounted_returns, episode_advantages, rollout.mask[0], fit)
