"""Surrogate, policy KL and prior KL. Equations refer to Gupta et al. 2018 (arXiv:1802.07245)."""

import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian


def task_mean(values: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Mean over the tasks of each task's mean over its valid steps, so that every task weighs the same.

    :param values: (T, B, K)
    :param mask: (T, B, K)
    """
    return ((values * mask).sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1.0)).mean()


def normalise_steps(advantages: th.Tensor, mask: th.Tensor, eps: float = 1e-8) -> th.Tensor:
    """Advantages with mean 0 and standard deviation 1 within each task.

    :param advantages: (T, B, K)
    :param mask: (T, B, K)
    :param eps: added to the standard deviation
    """
    count = mask.sum(dim=(0, 2), keepdim=True).clamp(min=1.0)  # (1, B, 1)
    mean = (advantages * mask).sum(dim=(0, 2), keepdim=True) / count
    centred = (advantages - mean) * mask
    std = (centred.square().sum(dim=(0, 2), keepdim=True) / count).sqrt()
    return centred / (std + eps)


def standardised_task_rewards(rewards: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Mean reward of each task's steps, once the rewards of all tasks have mean 0 and standard deviation 1 (B,).

    :param rewards: (T, B, K)
    :param mask: (T, B, K)
    """
    count = mask.sum().clamp(min=1.0)
    centred = (rewards - (rewards * mask).sum() / count) * mask
    std = (centred.square().sum() / count).sqrt()
    return centred.sum(dim=(0, 2)) / mask.sum(dim=(0, 2)).clamp(min=1.0) / (std + 1e-8)


def episode_std(advantages: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """Standard deviation over the K episodes of each task (B, 1).

    :param advantages: (B, K)
    :param mask: (B, K)
    """
    count = mask.sum(dim=1, keepdim=True).clamp(min=1.0)  # (B, 1)
    centred = (advantages - (advantages * mask).sum(dim=1, keepdim=True) / count) * mask
    return (centred.square().sum(dim=1, keepdim=True) / count).sqrt()


def normalise_episodes(advantages: th.Tensor, mask: th.Tensor, std_floor: float = 1e-8) -> th.Tensor:
    """Episode advantages with mean 0 and standard deviation 1 over the K episodes of each task.

    :param advantages: (B, K)
    :param mask: (B, K)
    :param std_floor: least standard deviation to divide by; about 3 keeps the noise of control costs from driving the
        latent of a task in which no episode has hit the goal
    """
    count = mask.sum(dim=1, keepdim=True).clamp(min=1.0)  # (B, 1)
    centred = (advantages - (advantages * mask).sum(dim=1, keepdim=True) / count) * mask
    return centred / episode_std(advantages, mask).clamp(min=std_floor)


def surrogate(
    new_log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    mask: th.Tensor,
    clip_range: float | None = None,
) -> th.Tensor:
    """Importance-weighted advantage (maximised).

    :param new_log_prob: of the actions under the new policy (T, B, K)
    :param old_log_prob: under the policy that acted (T, B, K)
    :param advantages: normalised (T, B, K)
    :param mask: (T, B, K)
    :param clip_range: where given, ratios farther than this from 1 gain nothing more (PPO: Schulman et al. 2017,
        arXiv:1707.06347, Eq. 7)
    """
    ratio = th.exp(new_log_prob - old_log_prob)
    gains = ratio * advantages
    if clip_range is not None:
        gains = th.minimum(gains, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages)
    return task_mean(gains, mask)


def policy_kl(old: ActionDistribution, new: ActionDistribution, mask: th.Tensor) -> th.Tensor:
    """Mean KL(old || new) of the action distributions.

    :param old: of the policy that acted, (T, B, K, A)
    :param new: of the new policy, (T, B, K, A)
    :param mask: (T, B, K)
    """
    return task_mean(old.kl(new), mask)  # type: ignore[arg-type]  # old and new are of one kind


def prior_kl(latents: DiagGaussian) -> th.Tensor:
    """Mean over tasks of KL(q_i || N(0, I)), the regulariser of Eq. 2.

    :param latents: (B, L) each
    """
    mean, log_std = latents
    return 0.5 * (th.exp(2.0 * log_std) + mean.square() - 1.0 - 2.0 * log_std).sum(dim=-1).mean()
