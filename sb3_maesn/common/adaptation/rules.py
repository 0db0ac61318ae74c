"""Adaptation rules: how the episodes of a new task move its latent distribution, and which latents to try next."""

from collections.abc import Sequence

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.posterior import (
    ScoreModel,
    choose_batch,
    fit_scores,
    hit_scores,
    prior_points,
    prior_radius,
    random_rotations,
    representative_points,
    squared_distances,
    typical_scale,
)
from sb3_maesn.common.adaptation.rule import AdaptationRule, AdaptationState, check_range
from sb3_maesn.common.adaptation.score_prior import Array, Points, ScorePrior, uninformed
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import likelihood_ratio_gradient, reward_weighted_target
from sb3_maesn.common.objectives import normalise_episodes


def step_scale(n_rounds: int) -> float:
    """What the gradient rules multiply their step sizes by: they halve every round from the third on.

    :param n_rounds: number of the round, from 1
    :return: 1, 1, 1/2, 1/4, ...
    """
    return 0.5 ** max(0, n_rounds - 2)


class PolicyGradientRule(AdaptationRule):
    """The paper's rule (Gupta et al. 2018, Eqs. 3 and 5): one likelihood-ratio gradient step on mean and log std after
    every round, with the step sizes that were learned in meta-training, halved every round from the third on.

    :param step_size_mean: step size of the latent mean (L,)
    :param step_size_log_std: step size of the latent log std (L,)
    :param std_floor: least standard deviation by which a task's advantages are divided; the paper's rule has none. A
        few units of return keep nuisance from moving the latent where no episode has met the goal
    """

    def __init__(
        self,
        step_size_mean: Sequence[float] | Array,
        step_size_log_std: Sequence[float] | Array,
        std_floor: float = 1e-8,
    ) -> None:
        check_range("std_floor", std_floor, 1e-12, np.inf)
        self.step_size_mean = np.array(step_size_mean, dtype=np.float64)
        self.step_size_log_std = np.array(step_size_log_std, dtype=np.float64)
        self.std_floor = std_floor

    def start(self, prior_mean: Array, prior_log_std: Array) -> AdaptationState:
        """State before the first round.

        :param prior_mean: (B, L)
        :param prior_log_std: (B, L)
        :return: a state whose distribution is the prior
        :raises ValueError: if the step sizes are not one for each latent dimension
        """
        state = super().start(prior_mean, prior_log_std)
        for name in ("step_size_mean", "step_size_log_std"):
            if getattr(self, name).shape != state.mean.shape[1:]:
                raise ValueError(f"{name} must have shape {state.mean.shape[1:]}, got {getattr(self, name).shape}")
        return state

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        # a round of one episode is compared with all earlier ones, having nothing else to be compared with
        advantages = _normalised(state.advantages[:, -n_new if n_new > 1 else 0 :], self.std_floor)[:, -n_new:]
        gradient = likelihood_ratio_gradient(
            _gaussian(state), th.as_tensor(state.latents[:, -n_new:]), advantages, th.ones_like(advantages)
        )
        mean_gradient, log_std_gradient = self._precondition(state, gradient.mean.numpy(), gradient.log_std.numpy())
        scale = step_scale(state.n_rounds)
        mean = state.mean + scale * self.step_size_mean * mean_gradient
        return mean, state.log_std + scale * self.step_size_log_std * log_std_gradient

    def _precondition(self, state: AdaptationState, mean: Array, log_std: Array) -> tuple[Array, Array]:
        """The direction of the step, for a gradient in mean and log std, (B, L) each."""
        return mean, log_std


def _gaussian(state: AdaptationState) -> DiagGaussian:
    return DiagGaussian(th.as_tensor(state.mean), th.as_tensor(state.log_std))


def _normalised(advantages: Array, std_floor: float) -> th.Tensor:
    values = th.as_tensor(advantages)
    return normalise_episodes(values, th.ones_like(values), std_floor)


class NaturalGradientRule(PolicyGradientRule):
    """The policy gradient multiplied by the inverse Fisher matrix of the latent Gaussian.

    That is diag(std^2) for the mean and 1/2 for the log std (Amari, "Natural gradient works efficiently in learning",
    1998). All else is as in :class:`PolicyGradientRule`.
    """

    def _precondition(self, state: AdaptationState, mean: Array, log_std: Array) -> tuple[Array, Array]:
        return np.exp(2.0 * state.log_std) * mean, 0.5 * log_std


class RewardWeightedRule(AdaptationRule):
    """Softmax-weighted mean and std of the latents of all rounds together.

    The update of training with ``inner_update="reward_weighted"`` (Peters and Schaal, "Reinforcement learning by
    reward-weighted regression", ICML 2007). The prior takes part as imagined episodes of average advantage at its 2 L
    sigma points; the std stays near the prior's where no hit stands out.

    :param temperature: of the softmax over normalised advantages
    :param prior_episodes: weight of the prior, in episodes of average advantage
    """

    def __init__(self, temperature: float = 0.1, prior_episodes: float = 1.0) -> None:
        check_range("temperature", temperature, 1e-3, np.inf)
        check_range("prior_episodes", prior_episodes, 1e-6, np.inf)
        self.temperature = temperature
        self.prior_episodes = prior_episodes

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        n_tasks, latent_dim = state.mean.shape
        latents = state.whitened
        _, evidence = hit_scores(latents, state.returns)
        sigma_points = np.sqrt(latent_dim) * np.concatenate([np.eye(latent_dim), -np.eye(latent_dim)])
        imagined = np.broadcast_to(sigma_points, (n_tasks, *sigma_points.shape))
        log_weight = self.temperature * np.log(self.prior_episodes / len(sigma_points))
        imagined_advantages = th.full((n_tasks, len(sigma_points)), log_weight, dtype=th.float64)
        advantages = th.cat([_normalised(state.advantages, 1e-8), imagined_advantages], dim=1)
        prior = DiagGaussian(th.zeros(state.mean.shape).double(), th.zeros(state.mean.shape).double())
        noise = th.as_tensor(np.concatenate([latents, imagined], axis=1))
        log_temperature = th.tensor(np.log(self.temperature))
        target = reward_weighted_target(prior, noise, advantages, th.ones_like(advantages), log_temperature)
        return _widened(state, target.mean.numpy(), target.log_std.exp().numpy(), evidence)


class CrossEntropyRule(AdaptationRule):
    """Cross-entropy method (Rubinstein and Kroese 2004): mean and std of the best latents of all rounds together.

    :param elite_fraction: share of the episodes that count, at least one
    :param prior_episodes: weight of the prior, in episodes
    :param min_std: least std of the latent, in prior stds
    """

    def __init__(self, elite_fraction: float = 0.1, prior_episodes: float = 0.01, min_std: float = 0.1) -> None:
        check_range("elite_fraction", elite_fraction, 1e-6, 1.0)
        check_range("prior_episodes", prior_episodes, 1e-6, np.inf)
        check_range("min_std", min_std, 1e-3, 1.0)
        self.elite_fraction = elite_fraction
        self.prior_episodes = prior_episodes
        self.min_std = min_std

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        n_elite = int(np.ceil(self.elite_fraction * state.returns.shape[1]))
        bar = np.sort(state.returns, axis=1)[:, -n_elite, None]
        return _moments_with_prior(state, (state.returns >= bar).astype(np.float64), self.prior_episodes, self.min_std)


def _widened(state: AdaptationState, mean: Array, std: Array, evidence: Array) -> tuple[Array, Array]:
    """Keep exploring as long as no hit stands out: the std is drawn to the prior's, and the mean is the prior's where
    all returns are equal.

    :param mean: whitened (B, L)
    :param std: in prior stds (B, L), broadcastable
    :param evidence: that a hit is among the episodes (B,)
    :return: mean and log std, both (B, L)
    """
    mean = np.where(evidence[:, None] > 0.0, mean, 0.0)
    return state.unwhiten(mean[:, None])[:, 0], state.prior_log_std + evidence[:, None] * np.log(std)


def _moments_with_prior(state: AdaptationState, weights: Array, n_prior: float, min_std: float) -> tuple[Array, Array]:
    """Mean and log std of the weighted latents and ``n_prior`` episodes of the prior, wider where no hit stands out.

    :param weights: non-negative (B, N)
    :return: mean and log std, both (B, L)
    """
    latents = state.whitened
    _, evidence = hit_scores(latents, state.returns)
    total = weights.sum(axis=1, keepdims=True)
    mean = np.einsum("bn,bnl->bl", weights, latents) / (total + n_prior)
    variance = np.einsum("bn,bnl->bl", weights, (latents - mean[:, None]) ** 2) + n_prior * (1.0 + mean**2)
    std = np.maximum(np.sqrt(variance / (total + n_prior)), min_std)
    return _widened(state, mean, std, evidence)


class KernelRule(AdaptationRule):
    """The best latent tried so far, judged by the kernel-smoothed hit score of all episodes around it; the std halves
    every round, but stays near the prior's where no hit stands out.

    :param width: width of the smoothing kernel, in prior stds
    :param prior_episodes: episodes at the floor that are imagined at every latent; keeps one lucky episode from winning
    :param first_std: std after the first round, in prior stds
    :param min_std: least std, in prior stds
    """

    def __init__(
        self, width: float = 0.25, prior_episodes: float = 0.5, first_std: float = 0.3, min_std: float = 0.05
    ) -> None:
        for name, value in (("width", width), ("prior_episodes", prior_episodes), ("first_std", first_std)):
            check_range(name, value, 1e-6, np.inf)
        check_range("min_std", min_std, 1e-3, first_std)
        self.width = width
        self.prior_episodes = prior_episodes
        self.first_std = first_std
        self.min_std = min_std

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        latents = state.whitened
        scores, evidence = hit_scores(latents, state.returns)
        kernel = np.exp(-0.5 * squared_distances(latents, latents) / self.width**2)
        smoothed = np.einsum("bnm,bm->bn", kernel, scores) / (kernel.sum(-1) + self.prior_episodes)
        best = latents[np.arange(len(latents)), smoothed.argmax(axis=1)]
        std = np.full((len(best), 1), max(self.first_std * 0.5 ** (state.n_rounds - 1), self.min_std))
        return _widened(state, best, std, evidence)


class PosteriorRule(AdaptationRule):
    """Sequential Bayesian optimisation: every latent is chosen from what all earlier episodes returned.

    A Gaussian process on the latent models the hit score (:mod:`sb3_maesn.common.adaptation.posterior`). Its mean and
    covariance are those of the training tasks where they are known (:mod:`sb3_maesn.common.adaptation.score_prior`).
    Where they are not, the first round stands for the prior as well as its number of episodes can. The other rounds
    maximise an upper confidence bound over points of the prior and neighbours of the best latents so far. In a task
    where a hit stands out, at most ``n_explore`` episodes of a round are spent so; the others are drawn from the
    distribution that adaptation would return, around the latent with the highest lower confidence bound.

    :param optimism: posterior standard deviations of the upper confidence bound
    :param caution: posterior standard deviations of the lower confidence bound
    :param n_explore: most episodes of a round that explore once a hit stands out
    :param std: std of the returned distribution, in prior stds
    :param n_candidates: points of the prior among which to choose
    :param length_scales: length scales of the model to choose from, in prior stds for L = 2
    :param score_mean: score expected of an untried latent, where nothing is known of training tasks
    :param score_std: standard deviation of the score from latent to latent, likewise
    :param noise_std: standard deviation of the score from episode to episode
    :param prior: what the training tasks have shown
    :param unlike_std: with ``prior``, standard deviation of the score beyond what the training tasks have shown
    """

    def __init__(
        self,
        optimism: float = 1.5,
        caution: float = 0.5,
        n_explore: int = 10,
        std: float = 0.02,
        n_candidates: int = 512,
        length_scales: Sequence[float] = (0.35, 0.6, 1.0, 1.6),
        score_mean: float = 0.05,
        score_std: float = 0.4,
        noise_std: float = 0.2,
        prior: ScorePrior | None = None,
        unlike_std: float = 0.2,
    ) -> None:
        check_range("optimism", optimism, 0.0, np.inf)
        check_range("caution", caution, 0.0, np.inf)
        check_range("n_explore", n_explore, 1, np.inf)
        check_range("std", std, 1e-3, 1.0)
        check_range("n_candidates", n_candidates, 2, np.inf)
        stds = {"score_std": score_std, "noise_std": noise_std, "unlike_std": unlike_std}
        for name, value in {"length_scales": min(length_scales), **stds}.items():
            check_range(name, value, 1e-3, np.inf)
        self.optimism = optimism
        self.caution = caution
        self.n_explore = n_explore
        self.std = std
        self.n_candidates = n_candidates
        self.length_scales = np.array(length_scales, dtype=np.float64)
        self.score_mean = score_mean
        self.score_std = score_std if prior is None else unlike_std
        self.noise_std = noise_std
        self.prior = prior

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Latents of the next round's episodes, see the class.

        :param state: what is known
        :param n_episodes: episodes of that round, per task (K)
        :param rng: source of randomness
        :return: (B, K, L)
        """
        latents = super().propose(state, n_episodes, rng)
        n_tasks, latent_dim = state.mean.shape
        if state.returns.shape[1] == 0 and self.prior is None:
            rotations = random_rotations(n_tasks, latent_dim, rng)
            return state.unwhiten(representative_points(n_episodes, latent_dim) @ rotations)
        scores, evidence = hit_scores(state.whitened, state.returns, self.prior)
        candidates = self._candidates(state, scores, rng)
        solid = evidence >= 0.5
        for tasks, n_picks in ((solid, min(self.n_explore, n_episodes)), (~solid, n_episodes)):
            for block in _blocks(np.flatnonzero(tasks)):
                model = self._fit(state.whitened[block], scores[block])
                picks = choose_batch(model, self._points(candidates[block]), n_picks, self.optimism)
                latents[block, :n_picks] = state.unwhiten(picks, block)
        return latents

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        scores, _ = hit_scores(state.whitened, state.returns, self.prior)
        candidates = self._candidates(state, scores, rng)
        mean = np.empty_like(state.mean)
        for block in _blocks(np.arange(len(mean))):
            model, points = self._fit(state.whitened[block], scores[block]), self._points(candidates[block])
            expected, explained = model.predict(points)
            std = np.sqrt(np.maximum(model.prior_variance(points) - np.sum(explained**2, axis=1), 0.0))
            best = np.argmax(expected - self.caution * std, axis=1)[:, None, None]
            mean[block] = state.unwhiten(np.take_along_axis(candidates[block], best, axis=1), block)[:, 0]
        return mean, state.prior_log_std + np.log(self.std)

    def _fit(self, latents: Array, scores: Array) -> ScoreModel:
        length_scales = self.length_scales * typical_scale(latents.shape[2])
        return fit_scores(self._points(latents), scores, length_scales, self.score_std, self.noise_std)

    def _points(self, latents: Array) -> Points:
        return uninformed(latents, self.score_mean) if self.prior is None else self.prior.at(latents)

    def _candidates(self, state: AdaptationState, scores: Array, rng: np.random.Generator) -> Array:
        """Latents to choose from: points of the prior, the task's best latents, and points around those, all within the
        ball that holds most of the prior.

        :return: whitened latents (B, M, L)
        """
        n_tasks, latent_dim = state.mean.shape
        spread = prior_points(self.n_candidates, rng.random((latent_dim,)))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        best = np.take_along_axis(state.whitened, order[..., None], axis=1)
        offsets = 0.3 * rng.standard_normal((best.shape[1], 20, latent_dim))
        nearby = (best[:, :, None] + offsets).reshape(n_tasks, -1, latent_dim)  # (B, 5 * 20, L)
        points = np.concatenate([np.broadcast_to(spread, (n_tasks, *spread.shape)), best, nearby], axis=1)
        radius = np.maximum(np.linalg.norm(points, axis=-1, keepdims=True), 1e-9)
        return points * np.minimum(1.0, prior_radius(latent_dim) / radius)


def _blocks(tasks: NDArray[np.int64], size: int = 16) -> list[NDArray[np.int64]]:
    """The tasks in blocks small enough for their arrays to stay in the cache."""
    return [tasks[i : i + size] for i in range(0, len(tasks), size)]


RULES: dict[str, type[AdaptationRule]] = {
    "policy_gradient": PolicyGradientRule,
    "natural_gradient": NaturalGradientRule,
    "reward_weighted": RewardWeightedRule,
    "cross_entropy": CrossEntropyRule,
    "kernel": KernelRule,
    "posterior": PosteriorRule,
}
