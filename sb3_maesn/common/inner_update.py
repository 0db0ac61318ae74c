"""The inner update: the only adaptation code, for meta-training and for test time.

Equations refer to Gupta et al. 2018 (arXiv:1802.07245).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian
from sb3_maesn.common.objectives import episode_std, normalise_episodes, normalise_steps
from sb3_maesn.common.type_aliases import Adapted, EpisodeBatch, NamedParameters, Rollout, StepSizes, TaskBatch

ActorFunction: TypeAlias = Callable[[NamedParameters, th.Tensor, th.Tensor], ActionDistribution]
"""(theta, observations (..., *obs_shape), latents (..., L)) -> distribution (..., A); latents with fewer leading
dimensions are shared by the first ones"""

INNER_UPDATES = ("likelihood_ratio", "reparameterised", "reward_weighted")
MIN_WEIGHTED_STD = 0.05
BALANCE_TOLERANCE, MAX_BALANCE_ITERATIONS = 0.05, 1000
NEVER = -1e30
"""A log weight whose softmax is 0, but no NaN where all are so."""


@dataclass(frozen=True)
class InnerUpdate:
    """Which update is made.

    :param estimator: one of ``INNER_UPDATES``
    :param adapt_policy: whether theta is updated too (Eq. 4)
    :param first_order: stop the gradient through the inner gradient
    :param std_floor: least standard deviation by which episode advantages are normalised
    :param balance: in the reward-weighted update of tasks that share their episodes, let every episode count the same
        in sum over the tasks, so that the tasks divide the prior among them instead of crowding into a part of it
    :param low_variance_curvature: take theta's gradient of ratios in place of log probabilities (ProMP)
    """

    estimator: str = "likelihood_ratio"
    adapt_policy: bool = False
    first_order: bool = False
    std_floor: float = 1e-8
    balance: bool = False
    low_variance_curvature: bool = False

    def __post_init__(self) -> None:
        if self.estimator not in INNER_UPDATES:
            raise ValueError(f"inner_update must be one of {', '.join(INNER_UPDATES)}, got {self.estimator!r}")

    @property
    def thins(self) -> bool:
        """Whether some of a rollout's steps give an estimate of the update; a reparameterised one sums over all."""
        return self.adapt_policy and self.estimator != "reparameterised"


def likelihood_ratio_gradient(
    omega: DiagGaussian, z: th.Tensor, advantages: th.Tensor, mask: th.Tensor
) -> DiagGaussian:
    """Gradient of mean_k A_k log q(z_k) in (mean, log_std), in closed form (Eq. 5).

    :param omega: q, (B, L) each
    :param z: drawn latents, constants (B, K, L)
    :param advantages: advantages of the episodes (B, K)
    :param mask: 1 for a valid episode (B, K)
    :return: the gradient, (B, L) each
    """
    weights = (advantages * mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)).unsqueeze(-1)  # (B, K, 1)
    inverse_std = th.exp(-omega.log_std).unsqueeze(1)  # (B, 1, L)
    standardised = (z - omega.mean.unsqueeze(1)) * inverse_std  # (B, K, L)
    mean = (weights * standardised * inverse_std).sum(dim=1)
    return DiagGaussian(mean, (weights * (standardised.square() - 1.0)).sum(dim=1))


def sample_z(omega: DiagGaussian, noise: th.Tensor) -> th.Tensor:
    """Reparameterised latents z = mean + std * eps.

    :param omega: q, (B, L) each
    :param noise: eps (B, K, L)
    :return: z (B, K, L)
    """
    return omega.mean.unsqueeze(1) + th.exp(omega.log_std).unsqueeze(1) * noise


def apply_actor(
    actor: ActorFunction, theta: NamedParameters, adapted: Adapted, observations: th.Tensor, z: th.Tensor
) -> ActionDistribution:
    """Action distributions of all tasks at once, with the shared or each task's own theta.

    :param actor: the actor as a function of its parameters
    :param theta: the shared theta, used where ``adapted`` has none
    :param adapted: the tasks' adapted values
    :param observations: preprocessed observations (T, B, K, *obs_shape)
    :param z: latents (B, K, L)
    :return: distributions (T, B, K, A)
    """
    if adapted.theta is None:
        return actor(theta, observations, z)
    parts = th.vmap(actor, in_dims=(0, 1, 0), out_dims=1)(adapted.theta, observations, z)
    return type(parts)(*parts)


def action_surrogate(
    actor: ActorFunction,
    theta: NamedParameters,
    adapted: Adapted,
    rollout: Rollout,
    advantages: th.Tensor,
    low_variance_curvature: bool = False,
) -> th.Tensor:
    """Sum over tasks of mean_k sum_t A_t log pi(a_t | s_t, mean + std * eps_k).

    Its gradient in a task's values is that task's policy gradient. With pi / pi_old in place of log pi, the gradient
    where the values acted is the same. Its own derivative has A_t grad log pi grad log pi^T beside A_t grad^2 log pi,
    and so says what other actions would have made of the update (the low variance curvature estimator: Rothfuss et al.
    2019, arXiv:1810.06784, section 5).

    :param actor: the actor as a function of its parameters
    :param theta: the shared theta
    :param adapted: the tasks' values
    :param rollout: the tasks' episodes
    :param advantages: advantages of the steps (T, B, K)
    :param low_variance_curvature: take ratios in place of log probabilities
    :return: a scalar
    """
    z = sample_z(adapted.omega, rollout.noise)
    log_prob = apply_actor(actor, theta, adapted, rollout.observations, z).log_prob(rollout.actions)
    credit = th.exp(log_prob - rollout.log_prob) if low_variance_curvature else log_prob
    n_episodes = rollout.mask[0].sum(dim=1).clamp(min=1.0)  # (B,)
    return ((credit * advantages * rollout.mask).sum(dim=(0, 2)) / n_episodes).sum()


def reparameterised_gradient(
    actor: ActorFunction, theta: NamedParameters, adapted: Adapted, rollout: Rollout, advantages: th.Tensor
) -> DiagGaussian:
    """Gradient of the action surrogate in (mean, log_std), with its graph: Eq. 3 through the policy.

    :param actor: the actor as a function of its parameters
    :param theta: the shared theta
    :param adapted: the tasks' values before this update, whose omega must require gradients
    :param rollout: the tasks' episodes
    :param advantages: advantages of the steps (T, B, K)
    :return: the gradient, (B, L) each
    """
    if adapted.omega.mean.numel() == 0:  # a policy without a latent does not depend on one
        return adapted.omega
    objective = action_surrogate(actor, theta, adapted, rollout, advantages)
    return DiagGaussian(*th.autograd.grad(objective, list(adapted.omega), create_graph=True))


def reward_weighted_target(
    omega: DiagGaussian, noise: th.Tensor, advantages: th.Tensor, mask: th.Tensor, log_temperature: th.Tensor
) -> DiagGaussian:
    """Mean and log std of the drawn latents, weighted by softmax(A / temperature).

    :param omega: q, (B, L) each
    :param noise: eps (B, K, L)
    :param advantages: normalised advantages of the episodes (B, K)
    :param mask: 1 for a valid episode (B, K); at least one a task
    :param log_temperature: log of the softmax's temperature, a scalar
    :return: the target, (B, L) each
    """
    z = sample_z(omega, noise)
    logits = (advantages * th.exp(-log_temperature)).masked_fill(mask == 0.0, NEVER)
    weights = th.softmax(logits, dim=1).unsqueeze(-1)  # (B, K, 1)
    mean = (weights * z).sum(dim=1)
    variance = (weights * (z - mean.unsqueeze(1)).square()).sum(dim=1)
    return DiagGaussian(mean, 0.5 * th.log(variance + MIN_WEIGHTED_STD**2))


def episode_prices(scores: th.Tensor, mask: th.Tensor, groups: th.Tensor) -> th.Tensor:
    """What to subtract from the tasks' scores so that softmax weights use every shared episode equally.

    Sinkhorn's iteration (Cuturi 2013, arXiv:1306.0895), until no episode's use is off by more than
    ``BALANCE_TOLERANCE``; at most ``MAX_BALANCE_ITERATIONS``, which only scores far apart need.

    :param scores: log weights before normalisation (B, K)
    :param mask: (B, K); a latent whose episode is not valid for every task of its group has no price
    :param groups: the k-th episodes of the tasks of one group have one latent (B,)
    :return: (B, K), the same for all tasks of a group, constants
    """
    prices = th.zeros_like(scores)
    with th.no_grad():
        for group in groups.unique():
            members = groups == group  # (B,)
            valid = (mask[members] > 0.0).all(dim=0)  # (K,)
            own = scores[members][:, valid]  # (n, m)
            if own.shape[1]:
                prices[members.nonzero(), valid.nonzero().T] = _balancing_price(own)
    return prices


def _balancing_price(scores: th.Tensor) -> th.Tensor:
    """The price of every column (1, m) by which softmax weights over the rows (n, m) use all columns equally."""
    even = math.log(scores.shape[0] / scores.shape[1])
    price = th.zeros_like(scores[:1])
    for _ in range(MAX_BALANCE_ITERATIONS):
        excess = th.logsumexp(th.log_softmax(scores - price, dim=1), dim=0) - even  # (m,), log of use over equal use
        if excess.abs().max() < BALANCE_TOLERANCE:
            break
        price = price + excess
    return price


def balancing_prices(spec: InnerUpdate, step_sizes: StepSizes, episodes: EpisodeBatch) -> th.Tensor | None:
    """The prices that :func:`inner_update` subtracts where tasks divide the prior's episodes among them.

    They depend on nothing but the arguments, so that a meta step computes them once for each temperature.

    :param spec: which update
    :param step_sizes: only the temperature counts
    :param episodes: the episodes that tasks share
    :return: prices in units of the normalised advantages (B, K), constants; None where nothing is balanced
    """
    if not spec.balance or spec.estimator != "reward_weighted" or episodes.groups is None:
        return None
    temperature = th.exp(step_sizes.log_temperature.detach())
    advantages = normalise_episodes(episodes.advantages, episodes.mask, spec.std_floor)
    return temperature * episode_prices(advantages / temperature, episodes.mask, episodes.groups)


def _omega_direction(
    spec: InnerUpdate,
    actor: ActorFunction,
    theta: NamedParameters,
    step_sizes: StepSizes,
    adapted: Adapted,
    batch: TaskBatch | EpisodeBatch,
    prices: th.Tensor | None,
) -> DiagGaussian:
    """What omega's step sizes multiply, (B, L) each."""
    episodes = batch.episodes if isinstance(batch, TaskBatch) else batch
    if spec.estimator == "reparameterised":
        # dividing by the episodes' standard deviation gives both estimators the same expectation and scale
        scale = episode_std(episodes.advantages, episodes.mask).clamp(min=spec.std_floor)
        step_advantages = whole(batch).advantages / scale.view(1, -1, 1)
        return reparameterised_gradient(actor, theta, adapted, whole(batch).rollout, step_advantages)
    advantages = normalise_episodes(episodes.advantages, episodes.mask, spec.std_floor)
    if spec.estimator == "reward_weighted":
        if prices is None:
            prices = balancing_prices(spec, step_sizes, episodes)
        priced = advantages if prices is None else advantages - prices
        return _reward_weighted_direction(adapted.omega, step_sizes.log_temperature, episodes, priced)
    # the score function takes z as data: the estimator at other parameters uses the same draws
    return likelihood_ratio_gradient(adapted.omega, episodes.latents, advantages, episodes.mask)


def _reward_weighted_direction(
    omega: DiagGaussian, log_temperature: th.Tensor, episodes: EpisodeBatch, advantages: th.Tensor
) -> DiagGaussian:
    """From omega to the reward-weighted target; zero for a task without a valid episode."""
    target = reward_weighted_target(omega, episodes.noise, advantages, episodes.mask, log_temperature)
    known = episodes.mask.amax(dim=1, keepdim=True)  # (B, 1)
    return DiagGaussian((target.mean - omega.mean) * known, (target.log_std - omega.log_std) * known)


def whole(batch: TaskBatch | EpisodeBatch) -> TaskBatch:
    """The batch, if it has the single steps of each task's own episodes.

    :param batch: of an inner update
    :raises ValueError: if it has not
    """
    if not isinstance(batch, TaskBatch):
        raise ValueError("this inner update needs each task's own episodes: n_prior_episodes must be None")
    return batch


def _theta_gradient(
    spec: InnerUpdate,
    actor: ActorFunction,
    theta: NamedParameters,
    adapted: Adapted,
    batch: TaskBatch,
    with_graph: bool,
) -> NamedParameters:
    """Gradient of the mean step's log pi * A in each task's theta (Eq. 4), with a leading B.

    It has its graph, or is a constant.
    """
    mask = batch.rollout.mask
    own = adapted.theta
    if own is None:
        own = {name: value.expand(mask.shape[1], *value.shape) for name, value in theta.items()}
    own = {name: _differentiable(value) for name, value in own.items()}
    advantages = normalise_steps(batch.advantages, mask)
    mean_length = mask.sum(dim=(0, 2)) / mask[0].sum(dim=1).clamp(min=1.0)  # (B,)
    scaled = advantages / mean_length.clamp(min=1.0).view(1, -1, 1)
    at = Adapted(adapted.omega, own)
    objective = action_surrogate(actor, theta, at, batch.rollout, scaled, spec.low_variance_curvature)
    gradients = th.autograd.grad(objective, list(own.values()), create_graph=with_graph)
    return dict(zip(own, gradients, strict=True))


def _differentiable(value: th.Tensor) -> th.Tensor:
    """The value itself inside a meta-gradient's graph; at collection and test time, where there is none, a new leaf."""
    return value if value.requires_grad else value.detach().requires_grad_()


def inner_update(
    spec: InnerUpdate,
    actor: ActorFunction,
    theta: NamedParameters,
    step_sizes: StepSizes,
    adapted: Adapted,
    batch: TaskBatch | EpisodeBatch,
    prices: th.Tensor | None = None,
) -> Adapted:
    """One inner update of all tasks at once, differentiable in every argument that requires gradients (Eqs. 3 and 4).

    :param spec: which update
    :param actor: the actor as a function of its parameters
    :param theta: the shared theta
    :param step_sizes: what the directions are multiplied by
    :param adapted: the tasks' values before the update
    :param batch: episodes collected with these values
    :param prices: what :func:`balancing_prices` gave for these arguments, computed anew where None
    :return: the tasks' values after the update
    """
    with_graph = th.is_grad_enabled() and not spec.first_order
    with th.enable_grad():
        adapted = Adapted(DiagGaussian(*(_differentiable(value) for value in adapted.omega)), adapted.theta)
        direction = _omega_direction(spec, actor, theta, step_sizes, adapted, batch, prices)
        gradients: NamedParameters = {}
        if spec.adapt_policy:
            gradients = _theta_gradient(spec, actor, theta, adapted, whole(batch), with_graph)
    if not with_graph:
        direction = DiagGaussian(direction.mean.detach(), direction.log_std.detach())
    omega = DiagGaussian(
        adapted.omega.mean + step_sizes.mean * direction.mean,
        adapted.omega.log_std + step_sizes.log_std * direction.log_std,
    )
    before = theta if adapted.theta is None else adapted.theta
    after = {name: before[name] + step_sizes.theta[name] * gradient for name, gradient in gradients.items()}
    return Adapted(omega, after or adapted.theta)
