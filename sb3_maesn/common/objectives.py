"""Normalised advantages, surrogate, policy KL and prior KL.

Equations refer to Gupta et al. 2018 (arXiv:1802.07245). In every function, a mask is 1 where a value is valid, else 0.
"""

import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian

EQUAL_VALUES = 1e-6  # std relative to the largest value, below which values differ by rounding only


def task_mean(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Compute the mean over tasks of each task's mean over its valid steps, so that all tasks weigh the same.

    :param values: values of the steps (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :return: mean, a scalar
    """
    return ((values * mask).sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1.0)).mean()


def episode_mean(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Compute the mean over a task's episodes at each step.

    :param values: values of the steps (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :return: means, zero where no episode is valid (T, B, 1)
    """
    return (values * mask).sum(dim=2, keepdim=True) / mask.sum(dim=2, keepdim=True).clamp(min=1.0)


def steps_are_equal(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Tell for which tasks the values of all valid episodes are the same at every step, up to rounding.

    Then nothing prefers one action to another, see :func:`are_equal`. A single episode has nothing to be compared with.

    :param values: values of the steps, such as returns from each step on (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :return: booleans (1, B, 1)
    """
    deviation, scale = (
        (part * mask).abs().amax(dim=(0, 2), keepdim=True) for part in (values - episode_mean(values, mask), values)
    )  # (1, B, 1)
    return (deviation <= EQUAL_VALUES * scale) & (mask[:1].sum(dim=2, keepdim=True) > 1.0)


def normalise_steps(advantages: th.Tensor, mask: th.Tensor, eps: float = 1e-8) -> th.Tensor:
    """Normalise the advantages of the steps to mean 0 and standard deviation 1 within each task.

    :param advantages: advantages of the steps (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :param eps: constant added to the standard deviation
    :return: normalised advantages, zero where the mask is zero (T, B, K)
    """
    count = mask.sum(dim=(0, 2), keepdim=True).clamp(min=1.0)  # (1, B, 1)
    mean = (advantages * mask).sum(dim=(0, 2), keepdim=True) / count
    centred = (advantages - mean) * mask
    std = (centred.square().sum(dim=(0, 2), keepdim=True) / count).sqrt()
    return centred / (std + eps)


def standardised_task_rewards(rewards: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Compute each task's mean reward per step, after standardising the rewards over all tasks.

    :param rewards: rewards (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :return: mean standardised reward of each task (B,)
    """
    count = mask.sum().clamp(min=1.0)
    centred = (rewards - (rewards * mask).sum() / count) * mask
    std = (centred.square().sum() / count).sqrt()
    return centred.sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1.0) / (std + 1e-8)


def episode_std(advantages: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Compute the standard deviation of the episode advantages over the K episodes of each task.

    :param advantages: advantages of the episodes (B, K)
    :param mask: mask of the episodes (B, K)
    :return: standard deviations (B, 1)
    """
    return _centred(advantages, mask)[1]


def _centred(values: th.Tensor, mask: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Compute each task's valid values minus their mean (B, K), and their standard deviation (B, 1)."""
    count = mask.sum(dim=1, keepdim=True).clamp(min=1.0)  # (B, 1)
    centred = (values - (values * mask).sum(dim=1, keepdim=True) / count) * mask
    return centred, (centred.square().sum(dim=1, keepdim=True) / count).sqrt()


def are_equal(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Tell for which tasks the values of all valid episodes are the same, up to rounding.

    Then nothing prefers one latent to another; normalised, the rounding errors would look like advantages.

    :param values: values of the episodes, such as returns (B, K)
    :param mask: mask of the episodes (B, K)
    :return: booleans (B, 1)
    """
    return _is_rounding(episode_std(values, mask), values, mask)


def _is_rounding(std: th.Tensor, values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Tell for which tasks the standard deviation (B, 1) is no more than the rounding of the values (B, K)."""
    return std <= EQUAL_VALUES * (values * mask).abs().amax(dim=1, keepdim=True)


def normalise_episodes(advantages: th.Tensor, mask: th.Tensor, std_floor: float = 1e-8) -> th.Tensor:
    """Normalise the episode advantages to mean 0 and standard deviation 1 over the K episodes of each task.

    :param advantages: advantages of the episodes (B, K)
    :param mask: mask of the episodes (B, K)
    :param std_floor: lower bound on the standard deviation to divide by; about 3 keeps the noise of control costs from
        driving the latent distribution of a task in which no episode has reached the goal
    :return: normalised advantages, zero where the mask is zero and for a task whose advantages are all equal (B, K)
    """
    centred, std = _centred(advantages, mask)
    return (centred / std.clamp(min=std_floor)).masked_fill(_is_rounding(std, advantages, mask), 0.0)


def surrogate(
    new_log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    mask: th.Tensor,
    clip_range: float | None = None,
) -> th.Tensor:
    """Compute the importance-weighted advantage, which is maximised.

    :param new_log_prob: log probabilities of the actions under the new policy (T, B, K)
    :param old_log_prob: log probabilities of the actions under the policy that acted (T, B, K)
    :param advantages: normalised advantages (T, B, K)
    :param mask: mask of the steps (T, B, K)
    :param clip_range: distance from 1 beyond which a probability ratio gains nothing more (PPO: Schulman et al. 2017,
        arXiv:1707.06347, Eq. 7); None for no clipping
    :return: surrogate, a scalar
    """
    ratio = th.exp(new_log_prob - old_log_prob)
    gains = ratio * advantages
    if clip_range is not None:
        gains = th.minimum(gains, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages)
    return task_mean(gains, mask)


def policy_kl(old: ActionDistribution, new: ActionDistribution, mask: th.Tensor) -> th.Tensor:
    """Compute the mean KL(old || new) of the action distributions.

    :param old: action distributions of the policy that acted (T, B, K, A)
    :param new: action distributions of the new policy (T, B, K, A)
    :param mask: mask of the steps (T, B, K)
    :return: mean KL, a scalar
    """
    return task_mean(old.kl(new), mask)  # type: ignore[arg-type]  # old and new are of one kind


def prior_kl(latents: DiagGaussian) -> th.Tensor:
    """Compute the mean over tasks of KL(q_i || N(0, I)), the regulariser of Eq. 2.

    :param latents: latent distributions q, (B, L) each
    :return: mean KL, a scalar
    """
    mean, log_std = latents
    return 0.5 * (th.exp(2.0 * log_std) + mean.square() - 1.0 - 2.0 * log_std).sum(dim=-1).mean()
