"""The inner update, which is the only adaptation code for meta-training and for test time.

Equations refer to Gupta et al. 2018 (arXiv:1802.07245).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch as th

from sb3_maesn.common.balancing import NEVER, Prices, episode_prices
from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian
from sb3_maesn.common.objectives import are_equal, episode_std, normalise_episodes, normalise_steps
from sb3_maesn.common.type_aliases import Adapted, EpisodeBatch, NamedParameters, Rollout, StepSizes, TaskBatch

ActorFunction: TypeAlias = Callable[[NamedParameters, th.Tensor, th.Tensor], ActionDistribution]
"""Actor: (theta, observations (..., *obs_shape), latents (..., L)) -> action distributions (..., A).

Latents may have fewer leading dimensions than observations; they are then broadcast over the first dimensions.
"""

INNER_UPDATES = ("likelihood_ratio", "reparameterised", "reward_weighted")
"""Estimators of the latents' inner update."""
MIN_WEIGHTED_STD = 0.05
"""Smallest standard deviation of the reward-weighted target, added in quadrature."""


@dataclass(frozen=True)
class InnerUpdate:
    """Settings of the inner update.

    :param estimator: estimator of the latents' update, one of ``INNER_UPDATES``
    :param adapt_policy: whether theta is updated too (Eq. 4)
    :param first_order: whether the meta-gradient ignores the derivatives of the inner gradients, that of the
        temperature among them
    :param std_floor: lower bound on the standard deviation by which episode advantages are normalised
    :param balance: whether the reward-weighted update of tasks that share their episodes gives all episodes the same
        total weight, summed over the tasks, so that the tasks divide the prior among them instead of crowding into a
        part of it
    :param low_variance_curvature: whether theta's gradient is taken of probability ratios instead of log probabilities
        (ProMP)
    :raises ValueError: if the estimator is unknown
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
        """Whether a subset of the rollout's time steps suffices to estimate the update.

        This holds for theta's update, which averages over the steps, but not for the reparameterised update, which sums
        over them. An update of the latents alone by one of the other estimators uses no single steps, so there is
        nothing to thin.
        """
        return self.adapt_policy and self.estimator != "reparameterised"


def likelihood_ratio_gradient(
    omega: DiagGaussian, z: th.Tensor, advantages: th.Tensor, mask: th.Tensor
) -> DiagGaussian:
    """Compute the gradient of mean_k A_k log q(z_k) with respect to (mean, log_std) in closed form (Eq. 5).

    :param omega: latent distributions q, (B, L) each
    :param z: drawn latents, treated as constants (B, K, L)
    :param advantages: advantages of the episodes (B, K)
    :param mask: 1 for a valid episode, else 0 (B, K)
    :return: gradient, (B, L) each
    """
    weights = (advantages * mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)).unsqueeze(-1)  # (B, K, 1)
    inverse_std = th.exp(-omega.log_std).unsqueeze(1)  # (B, 1, L)
    standardised = (z - omega.mean.unsqueeze(1)) * inverse_std  # (B, K, L)
    mean = (weights * standardised * inverse_std).sum(dim=1)
    return DiagGaussian(mean, (weights * (standardised.square() - 1.0)).sum(dim=1))


def sample_z(omega: DiagGaussian, noise: th.Tensor) -> th.Tensor:
    """Compute reparameterised latents z = mean + std * eps.

    :param omega: latent distributions q, (B, L) each
    :param noise: standard normal noise eps (B, K, L)
    :return: latents z (B, K, L)
    """
    return omega.mean.unsqueeze(1) + th.exp(omega.log_std).unsqueeze(1) * noise


def apply_actor(
    actor: ActorFunction, theta: NamedParameters, adapted: Adapted, observations: th.Tensor, z: th.Tensor
) -> ActionDistribution:
    """Compute the action distributions of all tasks at once, with a shared theta or each task's own.

    :param actor: actor as a function of its parameters
    :param theta: shared policy parameters, used if ``adapted`` has none
    :param adapted: latent distributions of the B tasks, and their own policy parameters where these are adapted
    :param observations: preprocessed observations (T, B, K, *obs_shape)
    :param z: latents (B, K, L)
    :return: action distributions (T, B, K, A)
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
    """Compute the sum over tasks of mean_k sum_t A_t log pi(a_t | s_t, mean + std * eps_k).

    Its gradient with respect to a task's adapted values is that task's policy gradient. With pi / pi_old in place of
    log pi, the gradient at the values that acted is the same, but its derivative contains A_t grad log pi grad log pi^T
    in addition to A_t grad^2 log pi, and so accounts for the effect of other actions on the update (low variance
    curvature estimator: Rothfuss et al. 2019, arXiv:1810.06784, section 5).

    :param actor: actor as a function of its parameters
    :param theta: shared policy parameters, used if ``adapted`` has none
    :param adapted: latent distributions of the B tasks, and their own policy parameters where these are adapted
    :param rollout: episodes of the tasks
    :param advantages: advantages of the steps (T, B, K)
    :param low_variance_curvature: whether to use probability ratios instead of log probabilities
    :return: surrogate, a scalar
    """
    z = sample_z(adapted.omega, rollout.noise)
    log_prob = apply_actor(actor, theta, adapted, rollout.observations, z).log_prob(rollout.actions)
    credit = th.exp(log_prob - rollout.log_prob) if low_variance_curvature else log_prob
    n_episodes = rollout.mask[0].sum(dim=1).clamp(min=1.0)  # (B,)
    return ((credit * advantages * rollout.mask).sum(dim=(0, 2)) / n_episodes).sum()


def reparameterised_gradient(
    actor: ActorFunction,
    theta: NamedParameters,
    adapted: Adapted,
    rollout: Rollout,
    advantages: th.Tensor,
    with_graph: bool = True,
) -> DiagGaussian:
    """Compute the gradient of the action surrogate with respect to (mean, log_std), through the policy (Eq. 3).

    :param actor: actor as a function of its parameters
    :param theta: shared policy parameters, used if ``adapted`` has none
    :param adapted: values of the B tasks before this update, whose omega must require gradients
    :param rollout: episodes of the tasks
    :param advantages: advantages of the steps (T, B, K)
    :param with_graph: whether the gradient will be differentiated
    :return: gradient, with its graph if ``with_graph``, (B, L) each
    """
    if adapted.omega.mean.numel() == 0:  # autograd refuses tensors on which the result does not depend
        return adapted.omega
    objective = action_surrogate(actor, theta, adapted, rollout, advantages)
    return DiagGaussian(*th.autograd.grad(objective, list(adapted.omega), create_graph=with_graph))


def reward_weighted_target(omega: DiagGaussian, noise: th.Tensor, scores: th.Tensor, mask: th.Tensor) -> DiagGaussian:
    """Compute the mean and log std of the drawn latents, weighted by the softmax of their scores.

    :param omega: latent distributions q, (B, L) each
    :param noise: standard normal noise eps of the latents (B, K, L)
    :param scores: unnormalised log weights of the episodes, such as advantages over a temperature (B, K)
    :param mask: 1 for a valid episode, else 0; at least one valid episode per task (B, K)
    :return: target distributions, (B, L) each
    """
    z = sample_z(omega, noise)
    weights = th.softmax(scores.masked_fill(mask == 0.0, NEVER), dim=1).unsqueeze(-1)  # (B, K, 1)
    mean = (weights * z).sum(dim=1)
    variance = (weights * (z - mean.unsqueeze(1)).square()).sum(dim=1)
    return DiagGaussian(mean, 0.5 * th.log(variance + MIN_WEIGHTED_STD**2))


def balancing_prices(spec: InnerUpdate, step_sizes: StepSizes, episodes: EpisodeBatch) -> Prices | None:
    """Compute the prices that :func:`inner_update` subtracts where tasks divide shared prior episodes among them.

    They depend on the arguments alone, so a meta step needs to compute them only once for each temperature.

    :param spec: settings of the inner update
    :param step_sizes: step sizes, of which only the temperature matters
    :param episodes: episodes that the tasks share
    :return: prices (B, K); None if nothing is balanced
    """
    if not spec.balance or spec.estimator != "reward_weighted" or episodes.groups is None:
        return None
    advantages = normalise_episodes(episodes.advantages, episodes.mask, spec.std_floor)
    return episode_prices(advantages, step_sizes.log_temperature.detach(), episodes.mask, episodes.groups)


def _omega_direction(
    spec: InnerUpdate,
    actor: ActorFunction,
    theta: NamedParameters,
    step_sizes: StepSizes,
    adapted: Adapted,
    batch: TaskBatch | EpisodeBatch,
    prices: Prices | None,
    with_graph: bool,
) -> DiagGaussian:
    """Compute the direction that omega's step sizes multiply, (B, L) each, with its graph if ``with_graph``."""
    episodes = batch.episodes if isinstance(batch, TaskBatch) else batch
    if spec.estimator == "reparameterised":
        # dividing by the episodes' standard deviation gives both gradient estimators the same expectation and scale
        step_advantages = whole(batch).advantages / _advantage_scale(spec, episodes).view(1, -1, 1)
        return reparameterised_gradient(actor, theta, adapted, whole(batch).rollout, step_advantages, with_graph)
    advantages = normalise_episodes(episodes.advantages, episodes.mask, spec.std_floor)
    if spec.estimator == "reward_weighted":
        if prices is None:
            prices = balancing_prices(spec, step_sizes, episodes)
        scores = advantages * th.exp(-step_sizes.log_temperature)
        if prices is not None:
            scores = scores - prices.at(step_sizes.log_temperature)
        return _reward_weighted_direction(adapted.omega, episodes, scores)
    # the likelihood-ratio estimator treats z as data: at other parameters it uses the same draws
    return likelihood_ratio_gradient(adapted.omega, episodes.latents, advantages, episodes.mask)


def _advantage_scale(spec: InnerUpdate, episodes: EpisodeBatch) -> th.Tensor:
    """Compute the std by which step advantages are divided (B, 1), infinite where all episodes are equally good."""
    std = episode_std(episodes.advantages, episodes.mask).clamp(min=spec.std_floor)
    return std.masked_fill(are_equal(episodes.advantages, episodes.mask), th.inf)


def _reward_weighted_direction(omega: DiagGaussian, episodes: EpisodeBatch, scores: th.Tensor) -> DiagGaussian:
    """Compute the difference between the reward-weighted target and omega, zero for a task without a valid episode."""
    target = reward_weighted_target(omega, episodes.noise, scores, episodes.mask)
    known = episodes.mask.amax(dim=1, keepdim=True)  # (B, 1)
    return DiagGaussian((target.mean - omega.mean) * known, (target.log_std - omega.log_std) * known)


def whole(batch: TaskBatch | EpisodeBatch) -> TaskBatch:
    """Return the batch if it contains the single time steps of each task's own episodes, else raise an error.

    :param batch: data of an inner update
    :return: the batch
    :raises ValueError: if the batch contains whole-episode data only
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
    """Compute the gradient of the mean over steps of A log pi with respect to each task's theta (Eq. 4).

    :return: gradients by parameter name, with a leading B, with their graph if ``with_graph``
    """
    mask = batch.rollout.mask
    own_theta = adapted.theta
    if own_theta is None:
        own_theta = {name: value.expand(mask.shape[1], *value.shape) for name, value in theta.items()}
    own_theta = {name: _differentiable(value) for name, value in own_theta.items()}
    advantages = normalise_steps(batch.advantages, mask)
    mean_length = mask.sum(dim=(0, 2)) / mask[0].sum(dim=1).clamp(min=1.0)  # (B,)
    scaled = advantages / mean_length.clamp(min=1.0).view(1, -1, 1)
    values = Adapted(adapted.omega, own_theta)
    objective = action_surrogate(actor, theta, values, batch.rollout, scaled, spec.low_variance_curvature)
    gradients = th.autograd.grad(objective, list(own_theta.values()), create_graph=with_graph)
    return dict(zip(own_theta, gradients, strict=True))


def _differentiable(value: th.Tensor) -> th.Tensor:
    """Return the value itself if it requires gradients, else a new leaf that does.

    A value requires gradients inside a meta-gradient's graph; it does not during collection and at test time.
    """
    return value if value.requires_grad else value.detach().requires_grad_()


def inner_update(
    spec: InnerUpdate,
    actor: ActorFunction,
    theta: NamedParameters,
    step_sizes: StepSizes,
    adapted: Adapted,
    batch: TaskBatch | EpisodeBatch,
    prices: Prices | None = None,
) -> Adapted:
    """Make one inner update of all tasks at once (Eqs. 3 and 4).

    The result is differentiable in every argument that requires gradients.

    :param spec: settings of the inner update
    :param actor: actor as a function of its parameters
    :param theta: shared policy parameters
    :param step_sizes: step sizes and temperature
    :param adapted: values of the B tasks before the update
    :param batch: data of the episodes collected with these values
    :param prices: result of :func:`balancing_prices` for these arguments; None to compute it
    :return: values of the B tasks after the update
    :raises ValueError: if the update needs single time steps and the batch has none
    """
    with_graph = th.is_grad_enabled() and not spec.first_order
    with th.enable_grad():
        adapted = Adapted(DiagGaussian(*(_differentiable(value) for value in adapted.omega)), adapted.theta)
        direction = _omega_direction(spec, actor, theta, step_sizes, adapted, batch, prices, with_graph)
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
