"""The adaptation rules: how the episodes of a new task change its latent distribution, and which latents to try next.

All rules model the latent of each task by a diagonal Gaussian N(mean, std^2), start from the prior, and see nothing of
an episode but its latent z, its return and its advantage. A *hit* is an episode whose return stands out from the floor
of its task, see :func:`sb3_maesn.common.adaptation.posterior.hit_scores`; the *evidence* of a hit is the highest score.
"In prior stds" means relative to the standard deviation of the prior in each latent dimension.
"""

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
    """Compute the factor of the gradient rules' step sizes, which halve every round from the third on.

    :param n_rounds: number of the round, counted from 1
    :return: the factor: 1, 1, 1/2, 1/4, ...
    """
    return 0.5 ** max(0, n_rounds - 2)


class PolicyGradientRule(AdaptationRule):
    """The rule of the paper: one likelihood-ratio gradient step after every round (Gupta et al. 2018, Eqs. 3 and 5).

    The step ascends the mean over the last round's episodes k of A_k log q(z_k) in (mean, log std), where A_k is the
    episode's advantage, normalised over the round to mean 0 and std 1 (over all rounds, if this one has a single
    episode). Step sizes are those learned in meta-training, halved every round from the third on.

    :param step_size_mean: step size of each dimension's latent mean (L,)
    :param step_size_log_std: step size of each dimension's latent log std (L,)
    :param std_floor: least standard deviation by which a task's advantages are divided, in units of return. The paper's
        rule has none; with a few units, nuisance does not move the latent where no episode has reached the goal
    :raises ValueError: if ``std_floor`` is out of range
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
        """Build the state before the first round, whose latent distribution is the prior.

        :param prior_mean: mean of the prior (B, L)
        :param prior_log_std: log std of the prior (B, L)
        :return: the state
        :raises ValueError: if there is not one step size for each latent dimension
        """
        state = super().start(prior_mean, prior_log_std)
        for name in ("step_size_mean", "step_size_log_std"):
            if getattr(self, name).shape != state.mean.shape[1:]:
                raise ValueError(f"{name} must have shape {state.mean.shape[1:]}, got {getattr(self, name).shape}")
        return state

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        # a single episode has no advantage over its own round: normalise over all episodes so far
        advantages = _normalised(state.advantages[:, -n_new if n_new > 1 else 0 :], self.std_floor)[:, -n_new:]
        gradient = likelihood_ratio_gradient(
            _gaussian(state), th.as_tensor(state.latents[:, -n_new:]), advantages, th.ones_like(advantages)
        )
        mean_gradient, log_std_gradient = self._precondition(state, gradient.mean.numpy(), gradient.log_std.numpy())
        scale = step_scale(state.n_rounds)
        mean = state.mean + scale * self.step_size_mean * mean_gradient
        return mean, state.log_std + scale * self.step_size_log_std * log_std_gradient

    def _precondition(self, state: AdaptationState, mean: Array, log_std: Array) -> tuple[Array, Array]:
        """Transform the gradient in mean and log std into the direction of the step, (B, L) each."""
        return mean, log_std


def _gaussian(state: AdaptationState) -> DiagGaussian:
    """Convert the current latent distribution to tensors."""
    return DiagGaussian(th.as_tensor(state.mean), th.as_tensor(state.log_std))


def _normalised(advantages: Array, std_floor: float) -> th.Tensor:
    """Normalise advantages to mean 0 and std 1 over the episodes of each task."""
    values = th.as_tensor(advantages)
    return normalise_episodes(values, th.ones_like(values), std_floor)


class NaturalGradientRule(PolicyGradientRule):
    """The policy gradient multiplied by the inverse Fisher matrix of the latent Gaussian.

    The inverse Fisher matrix is diag(std^2) for the mean and 1/2 for the log std (Amari, "Natural gradient works
    efficiently in learning", Neural Computation 1998). All else is as in :class:`PolicyGradientRule`.
    """

    def _precondition(self, state: AdaptationState, mean: Array, log_std: Array) -> tuple[Array, Array]:
        return np.exp(2.0 * state.log_std) * mean, 0.5 * log_std


class RewardWeightedRule(AdaptationRule):
    """Mean and std of the latents of all rounds together, weighted by a softmax of their advantages.

    The update resembles that of training with ``inner_update="reward_weighted"`` (Peters and Schaal, "Reinforcement
    learning by reward-weighted regression", ICML 2007), but has a temperature of its own and no step sizes: weights
    proportional to exp(A_k / temperature), where the advantages A_k are normalised to mean 0 and std 1 over all
    episodes of the task. The prior takes part as imagined episodes of average advantage at its 2 L sigma points. While
    the evidence of a hit is weak, the std stays near the prior's.

    :param temperature: temperature of the softmax, in standard deviations of the advantages
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
        scores = advantages / self.temperature
        target = reward_weighted_target(prior, noise, scores, th.ones_like(scores))
        return _widen_without_hit(state, target.mean.numpy(), target.log_std.exp().numpy(), evidence)


class CrossEntropyRule(AdaptationRule):
    """The cross-entropy method (Rubinstein and Kroese 2004): mean and std of the elite among the latents of all rounds.

    The elite are the episodes with the highest returns, ties at the lowest of these included. While the evidence of a
    hit is weak, the std stays near the prior's.

    :param elite_fraction: share of the episodes in the elite, rounded up to whole episodes
    :param prior_episodes: weight of the prior, in episodes of the elite
    :param min_std: least std of the elite's latents, in prior stds
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


def _widen_without_hit(state: AdaptationState, mean: Array, std: Array, evidence: Array) -> tuple[Array, Array]:
    """Widen the distribution towards the prior while the evidence of a hit is weak.

    The log std is interpolated between the prior's (evidence 0) and the given one (evidence 1). Without any evidence,
    as where all returns are equal, the mean is the prior's.

    :param state: state that holds the prior
    :param mean: whitened mean (B, L)
    :param std: std in prior stds, broadcastable to (B, L)
    :param evidence: evidence that a hit is among the episodes, in [0, 1] (B,)
    :return: mean and log std, both (B, L)
    """
    mean = np.where(evidence[:, None] > 0.0, mean, 0.0)
    return state.unwhiten(mean[:, None])[:, 0], state.prior_log_std + evidence[:, None] * np.log(std)


def _moments_with_prior(state: AdaptationState, weights: Array, n_prior: float, min_std: float) -> tuple[Array, Array]:
    """Compute mean and log std of weighted latents together with ``n_prior`` episodes of the prior.

    :param state: state with all episodes
    :param weights: non-negative weights of the episodes (B, N)
    :param n_prior: weight of the prior, in episodes of weight 1
    :param min_std: least std before it is widened for lack of evidence, in prior stds
    :return: mean and log std, both (B, L)
    """
    latents = state.whitened
    _, evidence = hit_scores(latents, state.returns)
    total = weights.sum(axis=1, keepdims=True)
    mean = np.einsum("bn,bnl->bl", weights, latents) / (total + n_prior)
    variance = np.einsum("bn,bnl->bl", weights, (latents - mean[:, None]) ** 2) + n_prior * (1.0 + mean**2)
    std = np.maximum(np.sqrt(variance / (total + n_prior)), min_std)
    return _widen_without_hit(state, mean, std, evidence)


class KernelRule(AdaptationRule):
    """The best latent tried so far, judged by the kernel-smoothed hit score of all episodes around it.

    The smoothed score of a latent is a Nadaraya-Watson estimate with a Gaussian kernel: the kernel-weighted mean of all
    episodes' hit scores, together with ``prior_episodes`` of score 0. The latent with the highest one becomes the mean.
    The std halves every round, but stays near the prior's while the evidence of a hit is weak.

    :param width: std of the kernel, in prior stds
    :param prior_episodes: number of episodes of score 0 imagined at every latent, which keep one lucky episode from
        winning
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
        return _widen_without_hit(state, best, std, evidence)


class PosteriorRule(AdaptationRule):
    """Sequential Bayesian optimisation: every latent is chosen in the light of all earlier episodes of its task.

    **Model.** The hit score of an episode with latent z is f(z) plus Gaussian noise, and f has a Gaussian-process prior
    (:mod:`sb3_maesn.common.adaptation.posterior`). With ``prior``, mean and covariance of f are those of the training
    tasks (:mod:`sb3_maesn.common.adaptation.score_prior`) plus a Matern kernel of std ``unlike_std``; without it, the
    mean is constant and the covariance a Matern kernel of std ``score_std``.

    **Exploration.** Without ``prior``, the first round's latents are the points that represent N(0, I) best, in a
    random rotation for each task. All other rounds pick, one latent after another, the one that maximises the upper
    confidence bound mean + ``optimism`` stds of f, where the stds count less away from the centre of the prior
    (Desautels et al. 2014, JMLR). The candidates are points spread over the prior, the task's best latents so far and
    random neighbours of these. In a task where a hit stands out (evidence of at least 0.5), at most ``n_explore``
    episodes of a round are picked so; the others are drawn from the current distribution.

    **Result.** The mean of the latent distribution is the candidate with the highest lower confidence bound, mean -
    ``caution`` stds of f, and its std is ``std`` prior stds.

    :param optimism: width of the upper confidence bound, in posterior standard deviations of f
    :param caution: width of the lower confidence bound, in posterior standard deviations of f
    :param n_explore: maximum number of exploring episodes in a round once a hit stands out
    :param std: std of the returned distribution, in prior stds
    :param n_candidates: number of candidates spread over the prior
    :param length_scales: length scales of the Matern kernel to choose from by marginal likelihood, in prior stds for
        L = 2 and proportional to sqrt(L) for other L
    :param score_mean: prior mean of f without ``prior``, in units of the score from 0 to 1
    :param score_std: prior standard deviation of f without ``prior``, in units of the score
    :param noise_std: standard deviation of the noise from episode to episode, in units of the score
    :param prior: mean and covariance of the scores of the training tasks, if known
    :param unlike_std: with ``prior``, standard deviation of the part of f that is unlike the training tasks, in units
        of the score
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
        if len(length_scales) < 1:
            raise ValueError("expected at least one of length_scales, got none")
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

    def start(self, prior_mean: Array, prior_log_std: Array) -> AdaptationState:
        """Check the size of ``prior``'s latents and build the state, see ``AdaptationRule.start``."""
        state = super().start(prior_mean, prior_log_std)
        if self.prior is not None and self.prior.latents.shape[1] != state.mean.shape[1]:
            raise ValueError(
                f"expected a score prior of latents of {state.mean.shape[1]} dimensions, got one of"
                f" {self.prior.latents.shape[1]}"
            )
        return state

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Choose the latents of the next round's episodes as the class describes, see ``AdaptationRule.propose``."""
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
        """Condition the Gaussian process of each task on the scores (B, N) of whitened latents (B, N, L)."""
        length_scales = self.length_scales * typical_scale(latents.shape[2])
        return fit_scores(self._points(latents), scores, length_scales, self.score_std, self.noise_std)

    def _points(self, latents: Array) -> Points:
        """Attach prior mean and features of the score to whitened latents (B, M, L)."""
        return uninformed(latents, self.score_mean) if self.prior is None else self.prior.at(latents)

    def _candidates(self, state: AdaptationState, scores: Array, rng: np.random.Generator) -> Array:
        """Collect the latents to choose from, all within the ball that holds most of the prior.

        They are points spread over the prior, the task's 5 best latents, and 20 random neighbours of each of these.

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
    """Split the tasks into blocks small enough for their arrays to stay in the cache."""
    return [tasks[i : i + size] for i in range(0, len(tasks), size)]


RULES: dict[str, type[AdaptationRule]] = {
    "policy_gradient": PolicyGradientRule,
    "natural_gradient": NaturalGradientRule,
    "reward_weighted": RewardWeightedRule,
    "cross_entropy": CrossEntropyRule,
    "kernel": KernelRule,
    "posterior": PosteriorRule,
}
