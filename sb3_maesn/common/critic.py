"""The policy's critic as a value baseline."""

import numpy as np
import torch as th

from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.type_aliases import MetaBatch, Rollout, TaskBatch


def critic_values(policy: LatentActorCriticPolicy, rollout: Rollout) -> th.Tensor:
    """Compute the critic's values of all steps, with their graph where gradients are enabled.

    :param policy: policy with the critic
    :param rollout: episodes, with preprocessed observations
    :return: values (T, B, K)
    """
    n_steps = rollout.rewards.shape[0]
    features = policy.vf_features_extractor(rollout.observations.flatten(0, 2))  # (T * B * K, F)
    latents = rollout.latents.expand(n_steps, *rollout.latents.shape).flatten(0, 2)  # (T * B * K, L)
    hidden = policy.mlp_extractor.forward_critic(th.cat([features, latents], dim=-1))
    values: th.Tensor = policy.value_net(hidden)  # (T * B * K, 1)
    return values.view(rollout.rewards.shape)


def fit_critic(policy: LatentActorCriticPolicy, meta_batch: MetaBatch, n_updates: int) -> float:
    """Fit the critic to the discounted returns of a meta-iteration's rollouts by full-batch regression.

    Every update is one step of the policy's optimiser on the mean squared error of one rollout. Prior episodes that
    tasks share are left out, because their steps are not kept.

    :param policy: policy with the critic and its optimiser
    :param meta_batch: data of the meta-iteration
    :param n_updates: number of passes over the rollouts, at least 1
    :return: mean loss over all updates
    """
    parameters = policy.critic_parameters()
    losses = []
    for _ in range(n_updates):
        for batch in (*meta_batch.pre, meta_batch.post):
            if isinstance(batch, TaskBatch):
                loss = _value_loss(policy, batch)
                policy.optimizer.zero_grad()
                for parameter, gradient in zip(parameters, th.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                policy.optimizer.step()
                losses.append(loss.item())
    return float(np.mean(losses))


def _value_loss(policy: LatentActorCriticPolicy, batch: TaskBatch) -> th.Tensor:
    """Compute the mean squared error of the critic over the valid steps of a rollout."""
    mask = batch.rollout.mask
    errors = (critic_values(policy, batch.rollout) - batch.discounted_returns).square() * mask
    return errors.sum() / mask.sum().clamp(min=1.0)
