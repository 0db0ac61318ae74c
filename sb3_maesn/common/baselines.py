"""Value baselines fitted to each task's batch, and generalised advantages."""

from collections.abc import Callable
from functools import partial

import torch as th

from sb3_maesn.common.objectives import are_equal, episode_mean, steps_are_equal
from sb3_maesn.common.parallel import Workers, one_torch_thread
from sb3_maesn.common.type_aliases import Rollout, TaskBatch

ValueFunction = Callable[[Rollout, th.Tensor], th.Tensor]
"""Value baseline: (rollout, discounted returns (T, B, K)) -> values (T, B, K)."""

MAX_OBSERVATION_SIZE = 1000  # numbers; the fit takes time in the cube of twice this
RIDGE = 1e-5
"""Default regularisation of the linear baseline."""


def discounted_sums(values: th.Tensor, discount: float) -> th.Tensor:
    """Compute the discounted sum of the values from each step to the end of the episode.

    :param values: values (T, B, K), zero after an episode's end
    :param discount: discount factor per step
    :return: discounted sums (T, B, K)
    """
    sums = th.empty_like(values)
    running = th.zeros_like(values[0])
    for t in reversed(range(values.shape[0])):
        running = values[t] + discount * running
        sums[t] = running
    return sums


def linear_features(observations: th.Tensor, first_step: int = 0) -> th.Tensor:
    """Compute the features of a time-varying linear value function.

    These are the features of the linear feature baseline of Duan et al. 2016, arXiv:1604.06778.

    :param observations: preprocessed observations (T, ..., O)
    :param first_step: time step of the first row, counted from 0
    :return: features (T, ..., 2 O + 4): the observation clipped to [-10, 10] and its square; t/100, its square and its
        cube, with t counted from 1; and the constant 1
    """
    observations = observations.clamp(-10.0, 10.0)
    time = (th.arange(first_step, first_step + observations.shape[0], dtype=observations.dtype) + 1.0) / 100.0
    powers = th.stack([time, time**2, time**3, th.ones_like(time)], dim=-1)  # (T, 4)
    powers = powers.view(-1, *(1,) * (observations.ndim - 2), 4).expand(*observations.shape[:-1], 4)
    return th.cat([observations, observations.square(), powers], dim=-1)


def _ridge_fit(features: th.Tensor, targets: th.Tensor, weights: th.Tensor, ridge: float) -> th.Tensor:
    """Fit a ridge regression on standardised features, and return the fitted values.

    :param features: features (N, F), which are centred in place
    :param targets: regression targets (N,)
    :param weights: 1 for a valid row, else 0 (N,)
    :param ridge: constant added to the diagonal of the features' correlation matrix
    :return: fitted values (N,), zero in rows that are not valid
    """
    count = weights.sum().clamp(min=1.0)
    features -= (weights @ features) / count
    if count < len(weights):
        features *= weights.unsqueeze(1)
    target_mean = (weights @ targets) / count
    covariance = (features.T @ features).double() / count
    moment = (features.T @ ((targets - target_mean) * weights)).double() / count
    # centring makes the constant feature 0; the mean of the targets replaces it
    scale = 1.0 / covariance.diagonal().sqrt().clamp(min=1e-6)
    correlation = covariance * scale * scale.unsqueeze(1)
    correlation.diagonal().add_(ridge)
    solution: th.Tensor = scale * th.linalg.solve(correlation, scale * moment)
    return (features @ solution.to(features.dtype) + target_mean) * weights


def linear_values(rollout: Rollout, discounted_returns: th.Tensor, ridge: float = RIDGE) -> th.Tensor:
    """Compute values by a linear function fitted to the discounted returns of each task's own episodes.

    :param rollout: episodes to fit
    :param discounted_returns: discounted return from each step on (T, B, K)
    :param ridge: constant added to the diagonal of the standardised features' covariance matrix; if it is small, a
        baseline with many features memorises the returns of few episodes and leaves no advantages
    :return: values (T, B, K), zero where the mask is zero
    :raises ValueError: if the observations are too large to fit a linear function of them in reasonable time
    """
    n_steps, n_tasks, n_episodes = discounted_returns.shape
    size = rollout.observations[0, 0, 0].numel()
    if size > MAX_OBSERVATION_SIZE:
        raise ValueError(
            f"expected observations of at most {MAX_OBSERVATION_SIZE} numbers for the linear baseline, got {size}: wrap"
            " the environment so that it observes less, or, where the algorithm has one, use baseline='critic'"
        )
    values = th.empty_like(discounted_returns)

    def fit(task: int) -> None:
        """Write the fitted values of one task into ``values``."""
        features = linear_features(rollout.observations[:, task].flatten(2))  # (T, K, F)
        fitted = _ridge_fit(
            features.flatten(0, 1), discounted_returns[:, task].flatten(), rollout.mask[:, task].flatten(), ridge
        )
        values[:, task] = fitted.view(n_steps, n_episodes)

    with Workers() as workers:  # one task per call keeps its features in the cache and limits the memory
        workers([partial(fit, task) for task in range(n_tasks)])
    return values


def mean_values(rollout: Rollout, discounted_returns: th.Tensor) -> th.Tensor:
    """Compute values by the mean of the discounted returns from each step on over a task's episodes.

    :param rollout: episodes
    :param discounted_returns: discounted return from each step on (T, B, K)
    :return: values (T, B, K), zero where the mask is zero, and for a single episode, which has nothing to be compared
        with
    """
    if rollout.mask.shape[2] == 1:
        return th.zeros_like(discounted_returns)
    return episode_mean(discounted_returns, rollout.mask) * rollout.mask


def explained_variance(values: th.Tensor, returns: th.Tensor, mask: th.Tensor) -> float:
    """Compute 1 - Var(returns - values) / Var(returns) over the valid steps.

    :param values: predicted values (T, B, K)
    :param returns: discounted return from each step on (T, B, K)
    :param mask: 1 for a valid step, else 0 (T, B, K)
    :return: explained variance, NaN if the returns do not vary or fewer than two steps are valid
    """
    valid = mask > 0
    if valid.sum() < 2:
        return float("nan")
    variance = returns[valid].var().item()
    return float("nan") if variance == 0.0 else 1.0 - (returns[valid] - values[valid]).var().item() / variance


def estimate_advantages(
    rollout: Rollout, gamma: float, gae_lambda: float, value_function: ValueFunction = linear_values
) -> TaskBatch:
    """Estimate generalised advantages for a rollout of whole episodes (Schulman et al. 2016, arXiv:1506.02438).

    :param rollout: whole episodes
    :param gamma: discount factor
    :param gae_lambda: lambda of the estimator; 1 gives discounted returns minus values
    :param value_function: value baseline
    :return: rollout with its advantages and discounted returns; the advantages of a task whose episodes are equally
        good, which would be errors of the baseline only, are zero
    """
    discounted_returns = discounted_sums(rollout.rewards, gamma)
    with th.no_grad():
        values = value_function(rollout, discounted_returns)
    with one_torch_thread():  # arrays this small gain nothing from more threads, which would keep spinning afterwards
        values = values * rollout.mask
        next_values = th.cat([values[1:], th.zeros_like(values[:1])])
        deltas = (rollout.rewards + gamma * next_values - values) * rollout.mask
        alike = steps_are_equal(discounted_returns, rollout.mask)
        advantages = discounted_sums(deltas, gamma * gae_lambda).masked_fill(alike, 0.0)
        fit = explained_variance(values, discounted_returns, rollout.mask)
        equal = are_equal(discounted_returns[0], rollout.mask[0])  # their differences are errors of the baseline
        episode_advantages = (discounted_returns[0] - values[0]).masked_fill(equal, 0.0)
    return TaskBatch(rollout, advantages, discounted_returns, episode_advantages, rollout.mask[0], fit)
