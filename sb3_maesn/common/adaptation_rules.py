"""
Adaptation rules: how the episodes of a new task move its latent distribution, and which latents to try next.

A rule is an immutable object; all that it knows about the tasks at hand is in an :class:`AdaptationState`, a value that
is passed in and returned. Every rule handles all tasks at once (leading axis B) and never looks across tasks.

One round is ``latents = rule.propose(state, n_episodes, rng)``, the episodes themselves, and
``state = rule.update(state, latents, returns, advantages, rng)``; ``rule.distribution(state)`` is the latent
distribution of the policy that adaptation would return at that point.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch as th

from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import likelihood_ratio_gradient, reward_weighted_target
from sb3_maesn.common.objectives import normalise_episodes
from sb3_maesn.common.posterior import (
    Array,
    ScoreModel,
    choose_batch,
    fit_scores,
    hit_scores,
    prior_points,
    squared_distances,
)


@dataclass(frozen=True)
class AdaptationState:
    """
    What is known about B tasks: the prior, the current latent distribution, and every episode so far (N of them).

    :param prior_mean: (B, L)
    :param prior_log_std: (B, L)
    :param mean: current latent mean (B, L)
    :param log_std: current latent log std (B, L)
    :param latents: (B, N, L)
    :param returns: (B, N)
    :param advantages: the episodes' advantages at their first step, unnormalised (B, N)
    :param n_rounds: rounds so far
    :raises ValueError: if shapes disagree or a value is not finite
    """

    prior_mean: Array
    prior_log_std: Array
    mean: Array
    log_std: Array
    latents: Array
    returns: Array
    advantages: Array
    n_rounds: int = 0

    def __post_init__(self) -> None:
        if self.prior_mean.ndim != 2:
            raise ValueError(f"prior_mean must have shape (tasks, latent_dim), got {self.prior_mean.shape}")
        n_tasks, latent_dim = self.prior_mean.shape
        n_episodes = self.latents.shape[1] if self.latents.ndim == 3 else 0
        expected = {
            "prior_log_std": (n_tasks, latent_dim),
            "mean": (n_tasks, latent_dim),
            "log_std": (n_tasks, latent_dim),
            "latents": (n_tasks, n_episodes, latent_dim),
            "returns": (n_tasks, n_episodes),
            "advantages": (n_tasks, n_episodes),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        for name in ("prior_mean", *expected):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} must be finite, got {_first_non_finite(getattr(self, name))}")

    @property
    def whitened(self) -> Array:
        """The latents in units of the prior, (B, N, L)."""
        return (self.latents - self.prior_mean[:, None]) * np.exp(-self.prior_log_std[:, None])

    def unwhiten(self, whitened: Array) -> Array:
        """
        Latents from latents in units of the prior.

        :param whitened: (B, K, L)
        :return: (B, K, L)
        """
        return self.prior_mean[:, None] + np.exp(self.prior_log_std)[:, None] * whitened


def _first_non_finite(values: Array) -> str:
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return f"{values[index]} at index {index}"


class AdaptationRule(ABC):
    """Base of all rules: keeps the history, draws from the current distribution, leaves the update to the subclass."""

    def start(self, prior_mean: Array, prior_log_std: Array, rng: np.random.Generator) -> AdaptationState:
        """
        State before the first round.

        :param prior_mean: (B, L)
        :param prior_log_std: (B, L)
        :param rng: source of randomness
        :return: a state whose distribution is the prior
        """
        mean, log_std = np.array(prior_mean, dtype=np.float64), np.array(prior_log_std, dtype=np.float64)
        if mean.ndim != 2:
            raise ValueError(f"prior_mean must have shape (tasks, latent_dim), got {mean.shape}")
        n_tasks, latent_dim = mean.shape
        none = np.zeros((n_tasks, 0))
        return AdaptationState(mean, log_std, mean, log_std, np.zeros((n_tasks, 0, latent_dim)), none, none)

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """
        Latents of the next round's episodes.

        :param state: what is known
        :param n_episodes: episodes of that round, per task (K)
        :param rng: source of randomness
        :return: (B, K, L)
        """
        _check_n_episodes(n_episodes)
        noise = rng.standard_normal((len(state.mean), n_episodes, state.mean.shape[1]))
        return state.mean[:, None] + np.exp(state.log_std)[:, None] * noise

    def update(
        self, state: AdaptationState, latents: Array, returns: Array, advantages: Array, rng: np.random.Generator
    ) -> AdaptationState:
        """
        State after a round.

        :param state: what was known before
        :param latents: the round's latents (B, K, L)
        :param returns: the episodes' undiscounted returns (B, K)
        :param advantages: the episodes' advantages at their first step, unnormalised (B, K)
        :param rng: source of randomness
        :return: the new state
        :raises ValueError: if shapes disagree or a value is not finite
        """
        known = replace(
            state,
            latents=_append(state.latents, latents, "latents"),
            returns=_append(state.returns, returns, "returns"),
            advantages=_append(state.advantages, advantages, "advantages"),
            n_rounds=state.n_rounds + 1,
        )
        n_new = known.returns.shape[1] - state.returns.shape[1]
        if n_new < 1:
            raise ValueError("a round must have at least 1 episode, got 0")
        mean, log_std = self._adapt(known, n_new, rng)
        return replace(known, mean=mean, log_std=log_std)

    def distribution(self, state: AdaptationState) -> tuple[Array, Array]:
        """
        The latent distribution of the adapted policy.

        :param state: what is known
        :return: mean and log std, both (B, L)
        """
        return state.mean, state.log_std

    @abstractmethod
    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """
        The new latent distribution.

        :param state: all episodes, the last ``n_new`` of each task being new, with the distribution that proposed those
        :param n_new: episodes of the last round (K)
        :param rng: source of randomness
        :return: mean and log std, both (B, L)
        """


def _append(old: Array, new: Array, name: str) -> Array:
    new = np.asarray(new, dtype=np.float64)
    if new.ndim != old.ndim or new.shape[0] != old.shape[0] or new.shape[2:] != old.shape[2:]:
        expected = (old.shape[0], "episodes", *old.shape[2:])
        raise ValueError(f"{name} of a round must have shape {expected}, got {new.shape}")
    return np.concatenate([old, new], axis=1)


def _check_n_episodes(n_episodes: int) -> None:
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")


class PolicyGradientRule(AdaptationRule):
    """
    The paper's rule (Gupta et al. 2018, Eqs. 3 and 5): one likelihood-ratio gradient step on mean and log std after
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
        _check_range("std_floor", std_floor, 1e-12, np.inf)
        self.step_size_mean = np.array(step_size_mean, dtype=np.float64)
        self.step_size_log_std = np.array(step_size_log_std, dtype=np.float64)
        self.std_floor = std_floor

    def start(self, prior_mean: Array, prior_log_std: Array, rng: np.random.Generator) -> AdaptationState:
        """
        State before the first round.

        :param prior_mean: (B, L)
        :param prior_log_std: (B, L)
        :param rng: source of randomness
        :return: a state whose distribution is the prior
        :raises ValueError: if the step sizes are not one for each latent dimension
        """
        state = super().start(prior_mean, prior_log_std, rng)
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
        scale = 0.5 ** max(0, state.n_rounds - 2)
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
    """
    As :class:`PolicyGradientRule`, the gradient multiplied by the inverse Fisher matrix of the latent Gaussian, which is
    diag(std^2) for the mean and 1/2 for the log std (Amari, "Natural gradient works efficiently in learning", 1998).
    """

    def _precondition(self, state: AdaptationState, mean: Array, log_std: Array) -> tuple[Array, Array]:
        return np.exp(2.0 * state.log_std) * mean, 0.5 * log_std


class RewardWeightedRule(AdaptationRule):
    """
    Softmax-weighted mean and std of the latents of all rounds together (Peters and Schaal, "Reinforcement learning by
    reward-weighted regression", ICML 2007), the update of training with ``inner_update="reward_weighted"``. The prior
    takes part as imagined episodes of average advantage at its 2 L sigma points.

    :param temperature: of the softmax over normalised advantages
    :param prior_episodes: weight of the prior, in episodes of average advantage
    """

    def __init__(self, temperature: float = 0.3, prior_episodes: float = 1.0) -> None:
        _check_range("temperature", temperature, 1e-3, np.inf)
        _check_range("prior_episodes", prior_episodes, 1e-6, np.inf)
        self.temperature = temperature
        self.prior_episodes = prior_episodes

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        n_tasks, latent_dim = state.mean.shape
        sigma_points = np.sqrt(latent_dim) * np.concatenate([np.eye(latent_dim), -np.eye(latent_dim)])
        imagined = state.unwhiten(np.broadcast_to(sigma_points, (n_tasks, *sigma_points.shape)))
        _, evidence = hit_scores(state.whitened, state.returns)
        advantages = th.as_tensor(evidence[:, None]) * _normalised(state.advantages, 1e-8)
        log_weight = np.log(self.prior_episodes / (2 * latent_dim)) * self.temperature
        advantages = th.cat([advantages, th.full((n_tasks, 2 * latent_dim), log_weight, dtype=th.float64)], dim=1)
        latents = np.concatenate([state.latents, imagined], axis=1)
        noise = th.as_tensor((latents - state.mean[:, None]) * np.exp(-state.log_std)[:, None])
        log_temperature = th.tensor(np.log(self.temperature))
        target = reward_weighted_target(_gaussian(state), noise, advantages, th.ones_like(advantages), log_temperature)
        return target.mean.numpy(), target.log_std.numpy()


class CrossEntropyRule(AdaptationRule):
    """
    Cross-entropy method (Rubinstein and Kroese 2004): mean and std of the best latents of all rounds together.

    :param elite_fraction: share of the episodes that count, at least one
    :param prior_episodes: weight of the prior, in episodes
    :param min_std: least std of the latent, in prior stds
    """

    def __init__(self, elite_fraction: float = 0.1, prior_episodes: float = 0.1, min_std: float = 0.1) -> None:
        _check_range("elite_fraction", elite_fraction, 1e-6, 1.0)
        _check_range("prior_episodes", prior_episodes, 1e-6, np.inf)
        _check_range("min_std", min_std, 1e-3, 1.0)
        self.elite_fraction = elite_fraction
        self.prior_episodes = prior_episodes
        self.min_std = min_std

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        n_elite = int(np.ceil(self.elite_fraction * state.returns.shape[1]))
        bar = np.sort(state.returns, axis=1)[:, -n_elite, None]
        return _moments_with_prior(state, (state.returns >= bar).astype(np.float64), self.prior_episodes, self.min_std)


def _moments_with_prior(state: AdaptationState, weights: Array, n_prior: float, min_std: float) -> tuple[Array, Array]:
    """
    Mean and log std of the weighted latents and ``n_prior`` episodes of the prior; the prior where no hit stands out.

    :param weights: non-negative (B, N)
    :return: mean and log std, both (B, L)
    """
    latents = state.whitened
    _, evidence = hit_scores(latents, state.returns)
    total = weights.sum(axis=1, keepdims=True)
    mean = np.einsum("bn,bnl->bl", weights, latents) / (total + n_prior)
    variance = np.einsum("bn,bnl->bl", weights, (latents - mean[:, None]) ** 2) + n_prior * (1.0 + mean**2)
    std = np.maximum(np.sqrt(variance / (total + n_prior)), min_std)
    mean, std = evidence[:, None] * mean, std ** evidence[:, None]
    return state.unwhiten(mean[:, None])[:, 0], state.prior_log_std + np.log(std)


class KernelRule(AdaptationRule):
    """
    The best latent tried so far, judged by the kernel-smoothed hit score of all episodes around it; the std halves
    with every round since the task's first hit.

    :param width: width of the smoothing kernel, in prior stds
    :param prior_episodes: episodes at the floor that are imagined at every latent; keeps one lucky episode from winning
    :param first_std: std after the first round with a hit, in prior stds
    :param min_std: least std, in prior stds
    """

    def __init__(
        self, width: float = 0.25, prior_episodes: float = 0.5, first_std: float = 0.3, min_std: float = 0.05
    ) -> None:
        for name, value in (("width", width), ("prior_episodes", prior_episodes), ("first_std", first_std)):
            _check_range(name, value, 1e-6, np.inf)
        _check_range("min_std", min_std, 1e-3, first_std)
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
        hit_before = (state.log_std < state.prior_log_std - 1e-9).all(axis=1)
        halved = np.exp(state.log_std - state.prior_log_std) / 2.0
        std = np.maximum(
            np.where(hit_before[:, None], np.minimum(halved, self.first_std), self.first_std), self.min_std
        )
        hit = evidence[:, None] >= 0.5
        mean, std = np.where(hit, best, 0.0), np.where(hit, std, 1.0)
        return state.unwhiten(mean[:, None])[:, 0], state.prior_log_std + np.log(std)


class PosteriorRule(AdaptationRule):
    """
    Sequential Bayesian optimisation: every latent is chosen from what all earlier episodes returned.

    A Gaussian process on the latent models the hit score (:mod:`sb3_maesn.common.posterior`). The first round is spread
    evenly over the prior. Later rounds maximise the upper confidence bound over draws of the prior and
    neighbours of the best latents so far. In a round of many episodes, as soon as a hit stands out, all but ``n_explore`` of them are drawn
    from the distribution that adaptation would return: the latent with the highest expected score, and a small std.

    :param optimism: posterior standard deviations added to the expected score when a latent is chosen to be tried
    :param n_explore: most episodes of a round that explore once a hit stands out
    :param n_candidates: latents of the prior among which to choose
    :param std: std of the returned distribution, in prior stds
    :param length_scales: length scales of the model to choose from, in prior stds
    :param score_mean: score expected of an untried latent
    :param score_std: standard deviation of the score from latent to latent
    :param noise_std: standard deviation of the score from episode to episode
    """

    def __init__(
        self,
        optimism: float = 1.0,
        n_explore: int = 5,
        n_candidates: int = 512,
        std: float = 0.05,
        length_scales: tuple[float, ...] = (0.35, 0.6, 1.0, 1.6),
        score_mean: float = 0.1,
        score_std: float = 0.4,
        noise_std: float = 0.2,
    ) -> None:
        _check_range("optimism", optimism, 0.0, np.inf)
        _check_range("n_explore", n_explore, 1, np.inf)
        _check_range("n_candidates", n_candidates, 2, np.inf)
        _check_range("std", std, 1e-3, 1.0)
        for name, value in (("score_std", score_std), ("noise_std", noise_std), ("length_scales", min(length_scales))):
            _check_range(name, value, 1e-3, np.inf)
        self.optimism = optimism
        self.n_explore = n_explore
        self.n_candidates = n_candidates
        self.std = std
        self.length_scales = np.asarray(length_scales, dtype=np.float64)
        self.score_mean = score_mean
        self.score_std = score_std
        self.noise_std = noise_std

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """
        Latents of the next round's episodes, see the class.

        :param state: what is known
        :param n_episodes: episodes of that round, per task (K)
        :param rng: source of randomness
        :return: (B, K, L)
        """
        _check_n_episodes(n_episodes)
        n_tasks, latent_dim = state.mean.shape
        if state.returns.shape[1] == 0:
            return state.unwhiten(prior_points(n_episodes, rng.random((n_tasks, latent_dim))))
        scores, evidence = hit_scores(state.whitened, state.returns)
        model = self._fit(state, scores)
        candidates = self._candidates(state, scores, rng)
        tries = state.unwhiten(choose_batch(model, candidates, n_episodes, self.optimism))
        exploit = (np.arange(n_episodes) >= self.n_explore) & (evidence[:, None] >= 0.5)
        return np.where(exploit[..., None], super().propose(state, n_episodes, rng), tries)

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        scores, _ = hit_scores(state.whitened, state.returns)
        candidates = self._candidates(state, scores, rng)
        expected, _ = self._fit(state, scores).predict(candidates)
        best = candidates[np.arange(len(candidates)), expected.argmax(axis=1)]
        return state.unwhiten(best[:, None])[:, 0], state.prior_log_std + np.log(self.std)

    def _fit(self, state: AdaptationState, scores: Array) -> ScoreModel:
        return fit_scores(state.whitened, scores, self.length_scales, self.score_mean, self.score_std, self.noise_std)

    def _candidates(self, state: AdaptationState, scores: Array, rng: np.random.Generator) -> Array:
        """
        Latents to choose from: even draws of the prior, the tasks' best latents, and draws around those.

        :return: whitened latents (B, M, L), the same draws for all tasks
        """
        n_tasks, latent_dim = state.mean.shape
        drawn = prior_points(self.n_candidates, rng.random(latent_dim))
        n_best = min(5, scores.shape[1])
        best = np.argpartition(-scores, n_best - 1, axis=1)[:, :n_best]
        best_latents = np.take_along_axis(state.whitened, best[..., None], 1)
        offsets = 0.3 * rng.standard_normal((n_best, 20, latent_dim))
        nearby = (best_latents[:, :, None] + offsets).reshape(n_tasks, -1, latent_dim)  # (B, n_best * 20, L)
        everywhere = np.broadcast_to(drawn, (n_tasks, *drawn.shape))
        return np.concatenate([everywhere, best_latents, nearby], axis=1)


RULES: dict[str, type[AdaptationRule]] = {
    "policy_gradient": PolicyGradientRule,
    "natural_gradient": NaturalGradientRule,
    "reward_weighted": RewardWeightedRule,
    "cross_entropy": CrossEntropyRule,
    "kernel": KernelRule,
    "posterior": PosteriorRule,
}
