"""The return of a latent, inferred from the episodes of one task: hit scores and a Gaussian process, all tasks at once.

With sparse reward almost every return is a floor plus nuisance (control cost, noise), and an episode that meets the
goal stands far above it. The functions below first turn returns into *hit scores* in [0, 1], which do not depend on
the returns' shift or scale, and then regress the scores on the latent with a Gaussian process (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, chapter 2). Latents are *whitened* here: the prior is N(0, I).
Everything is NumPy in float64, with the tasks in the leading axis B, no loop over tasks.
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_maesn.common.adaptation.score_prior import Array, Points, ScorePrior

# Share of a task's returns below its floor, where it is known how far hits stand above that.
LOW_RETURNS = 0.25
# A hit is solid when the best return stands this many spreads of the floor above the floor.
SOLID_HIT = 10.0
# Noise of the expected outcome of a pick: little, so that the picks after it go elsewhere.
PICK_NOISE_STD = 0.05


def typical_scale(latent_dim: int) -> float:
    """How much larger distances are under the prior of this dimension than under the 2-dimensional one.

    :param latent_dim: L
    :return: sqrt(L / 2)
    """
    return float(np.sqrt(latent_dim / 2.0))


def prior_radius(latent_dim: int) -> float:
    """Radius of the ball that holds about 95 % of N(0, I), within 1 % for any L.

    :param latent_dim: L
    :return: the radius
    """
    return float(np.sqrt(latent_dim) + 1.1)


def prior_points(n_points: int, shift: Array) -> Array:
    """Points spread evenly over the prior N(0, I).

    A shifted Kronecker sequence (its generator is the generalised golden ratio, so any first n points are spread evenly
    too) through the normal quantile function.

    :param n_points: how many points (N)
    :param shift: uniform shift of the sequence in [0, 1), shape (..., L); a uniform draw makes every point N(0, I)
    :return: whitened latents (..., N, L)
    """
    latent_dim = shift.shape[-1]
    ratio = 2.0
    for _ in range(60):  # fixed point of ratio^(L + 1) = ratio + 1
        ratio = (1.0 + ratio) ** (1.0 / (latent_dim + 1))
    generator = ratio ** -np.arange(1.0, latent_dim + 1)
    uniform = (shift[..., None, :] + np.arange(n_points)[:, None] * generator) % 1.0
    uniform = np.clip(uniform, 1e-9, 1.0 - 1e-9)
    return np.asarray(th.special.ndtri(th.as_tensor(uniform)).numpy(), dtype=np.float64)


def representative_points(n_points: int, latent_dim: int, n_reference: int = 1024, n_iterations: int = 50) -> Array:
    """The points that stand best for the prior N(0, I): its support points, which minimise the energy distance to it.

    By the fixed-point iteration of Mak and Joseph, "Support points", Annals of Statistics 2018, Eq. 22.

    :param n_points: how many points (N)
    :param latent_dim: L
    :param n_reference: points that take the place of the prior in the computation
    :param n_iterations: iterations
    :return: whitened latents (N, L)
    """
    reference = prior_points(n_reference, np.full(latent_dim, 0.5))
    points = prior_points(n_points, np.full(latent_dim, 0.37))
    for _ in range(n_iterations):
        apart = points[:, None] - points  # (N, N, L)
        push = (apart / np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-9)).sum(axis=1)
        nearness = 1.0 / np.maximum(np.linalg.norm(points[:, None] - reference, axis=-1), 1e-6)  # (N, n_reference)
        pull = nearness @ reference
        points = (push * n_reference / n_points + pull) / nearness.sum(axis=1, keepdims=True)
    return points


def random_rotations(n_rotations: int, latent_dim: int, rng: np.random.Generator) -> Array:
    """Random orthogonal matrices: rotations, some of them with a reflection.

    :param n_rotations: how many (B)
    :param latent_dim: L
    :param rng: source of randomness
    :return: (B, L, L)
    """
    return np.asarray(np.linalg.qr(rng.standard_normal((n_rotations, latent_dim, latent_dim)))[0])


def squared_distances(left: Array, right: Array) -> Array:
    """Squared distances between all pairs.

    :param left: (B, N, L)
    :param right: (B, M, L)
    :return: (B, N, M)
    """
    square = np.sum(left**2, axis=-1)[:, :, None] + np.sum(right**2, axis=-1)[:, None]
    square -= 2.0 * left @ np.swapaxes(right, 1, 2)
    return np.maximum(square, 0.0, out=square)


def weighted_quantile(values: Array, weights: Array, quantile: float) -> Array:
    """Quantile of weighted values: the smallest value at or below which lies the given share of the weight.

    :param values: (B, N)
    :param weights: positive weights (B, N)
    :param quantile: in [0, 1]
    :return: (B, 1)
    """
    order = np.argsort(values, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    index = np.argmax(cumulative >= (quantile - 1e-9) * cumulative[:, -1:], axis=1)[:, None]
    return np.take_along_axis(np.take_along_axis(values, order, 1), index, 1)


def hit_scores(latents: Array, returns: Array, prior: ScorePrior | None = None) -> tuple[Array, Array]:
    """How far each return stands above the floor of its task, on a scale from 0 (floor) to 1 (the best so far).

    The floor and its spread are the median and the median absolute deviation of the returns, every episode weighted by
    the inverse of the episodes' density, so that many episodes at one good latent do not become the floor. Until the
    best return is ``SOLID_HIT`` spreads above the floor, that distance takes the place of the best, so that
    noise is not stretched to hits; with fewer than 5 episodes, whose spread says little, scores are lowered. Where
    training tasks have shown how far hits stand above the floor, that is the distance.

    :param latents: whitened latents (B, N, L)
    :param returns: (B, N)
    :param prior: what training tasks have shown
    :return: scores (B, N) and, per task, the evidence that a hit is among them (B,): the highest score
    """
    if returns.shape[1] == 0:
        return np.zeros_like(returns), np.zeros(len(returns))
    if prior is not None:
        scores = excess_over_floor(latents, returns)
        scores /= np.maximum(scores.max(axis=1, keepdims=True), prior.excess)
        return scores, scores.max(axis=1)
    n_episodes, weights = returns.shape[1], _inverse_density(latents)
    floor = weighted_quantile(returns, weights, 0.5)
    spread = weighted_quantile(np.abs(returns - floor), weights, 0.5)
    excess = np.maximum(returns - floor, 0.0)
    scale = np.maximum(excess.max(axis=1, keepdims=True), SOLID_HIT * spread)
    rounding = 1e-12 * np.abs(returns).max(axis=1, keepdims=True)
    scores = excess / np.where(scale > rounding, scale, np.inf) * min(1.0, (n_episodes - 1) / 4.0)
    return scores, scores.max(axis=1)


def excess_over_floor(latents: Array, returns: Array) -> Array:
    """By how much returns exceed the floor of their task, the ``LOW_RETURNS`` quantile.

    Less than the median, so that the floor of a task that many latents solve is none of its hits.

    :param latents: whitened latents (B, N, L)
    :param returns: (B, N)
    :return: (B, N), 0 below the floor
    """
    floor = weighted_quantile(returns, _inverse_density(latents), LOW_RETURNS)
    return np.maximum(returns - floor, 0.0)


def _inverse_density(latents: Array) -> Array:
    """Weights of the episodes by which every region of the latents counts the same (B, N)."""
    width = 0.5 * typical_scale(latents.shape[2])
    return np.asarray(1.0 / np.exp(-0.5 * squared_distances(latents, latents) / width**2).sum(axis=-1))


@dataclass(frozen=True)
class ScoreModel:
    """A Gaussian process per task, conditioned on that task's hit scores.

    :param points: the latents of the episodes so far, N a task
    :param whitener: inverse of the lower Cholesky factor of the scores' covariance (B, N, N)
    :param weights: that covariance's inverse times (scores - expected scores), (B, N)
    :param length_scale: (B,)
    :param score_std: standard deviation of what the points' features do not explain
    """

    points: Points
    whitener: Array
    weights: Array
    length_scale: Array
    score_std: float

    def kernel(self, left: Points, right: Points) -> Array:
        """Prior covariance of the mean scores.

        :param left: N points a task
        :param right: M points a task
        :return: (B, N, M)
        """
        square = squared_distances(left.latents, right.latents)
        unexplained = self.score_std**2 * correlation(square, self.length_scale)
        return unexplained + left.features @ np.swapaxes(right.features, 1, 2)

    def prior_variance(self, points: Points) -> Array:
        """Prior variance of the mean scores.

        :param points: M a task
        :return: (B, M)
        """
        return self.score_std**2 + np.sum(points.features**2, axis=2)

    def predict(self, points: Points) -> tuple[Array, Array]:
        """Posterior mean of the score, and what its covariances need.

        :param points: M a task
        :return: mean (B, M) and explained (B, N, M): cov(i, j) = kernel(i, j) - sum_n explained_ni explained_nj
        """
        cross = self.kernel(self.points, points)
        return points.mean + np.einsum("bn,bnm->bm", self.weights, cross), self.whitener @ cross


def correlation(square: Array, length_scale: Array) -> Array:
    """Matern-5/2 correlation (Rasmussen and Williams, Eq. 4.17).

    :param square: squared distances (B, N, M)
    :param length_scale: (B,)
    :return: (B, N, M)
    """
    scaled = np.sqrt(square) * (np.sqrt(5.0) / length_scale)[:, None, None]
    return np.asarray((1.0 + scaled * (1.0 + scaled / 3.0)) * np.exp(-scaled))


def fit_scores(points: Points, scores: Array, length_scales: Array, score_std: float, noise_std: float) -> ScoreModel:
    """Condition a Gaussian process on the scores, with the length scale of the highest marginal likelihood per task.

    :param points: the latents of the episodes, N a task
    :param scores: (B, N)
    :param length_scales: the length scales to choose from
    :param score_std: prior standard deviation of what the points' features do not explain of a latent's mean score
    :param noise_std: standard deviation of a score around that
    :return: the conditioned process
    """
    square, residual = squared_distances(points.latents, points.latents), scores - points.mean
    known = points.features @ np.swapaxes(points.features, 1, 2) + noise_std**2 * np.eye(square.shape[-1])
    best = np.full(len(square), -np.inf)
    factor, chosen = np.empty_like(square), np.empty(len(square))
    for length_scale in length_scales:
        trial = np.full(len(square), length_scale)
        trial_factor = np.linalg.cholesky(score_std**2 * correlation(square, trial) + known)
        likelihood = log_likelihood(np.asarray(trial_factor, dtype=np.float64), residual)
        better = likelihood > best
        best[better], factor[better], chosen[better] = likelihood[better], trial_factor[better], length_scale
    inverse = solve_lower(factor, np.broadcast_to(np.eye(square.shape[-1]), square.shape))
    weights = np.einsum("bji,bj->bi", inverse, np.einsum("bij,bj->bi", inverse, residual))
    return ScoreModel(points, inverse, weights, chosen, score_std)


def solve_lower(factor: Array, right: Array) -> Array:
    """Solution of ``factor @ x = right``.

    :param factor: lower triangular (B, N, N)
    :param right: (B, N, M)
    :return: (B, N, M)
    """
    solution = th.linalg.solve_triangular(th.as_tensor(factor), th.as_tensor(right.copy()), upper=False)
    return np.asarray(solution.numpy())


def log_likelihood(factor: Array, residual: Array) -> Array:
    """Log density of N(0, factor factor^T), up to a constant (Rasmussen and Williams, Eq. 2.30).

    :param factor: lower Cholesky factors (B, N, N)
    :param residual: (B, N)
    :return: (B,)
    """
    whitened = solve_lower(factor, residual[..., None])[..., 0]
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=-1)
    return np.asarray(-0.5 * np.sum(whitened**2, axis=-1) - log_det)


def choose_batch(model: ScoreModel, candidates: Points, n_picks: int, optimism: float) -> Array:
    """Latents to try next: each maximises an upper confidence bound of the score given all picks before it, whose
    outcomes are taken to be what the model expects (Desautels et al., "Parallelizing exploration-exploitation
    tradeoffs in Gaussian process bandit optimization", JMLR 2014).

    :param model: the conditioned process
    :param candidates: latents to choose from, M a task
    :param n_picks: how many to choose
    :param optimism: posterior standard deviations added to the mean at the prior's mean, fewer away from it
    :return: whitened latents (B, n_picks, L)
    """
    mean, explained = model.predict(candidates)
    variance = np.maximum(model.prior_variance(candidates) - np.sum(explained**2, axis=1), 0.0)
    bonus = optimism * np.exp(-0.1 * np.mean(candidates.latents**2, axis=-1))
    rows = np.arange(len(mean))
    picks = np.empty((len(mean), n_picks), dtype=np.int64)
    learned = np.zeros((len(mean), n_picks, mean.shape[1]))  # what the picks add to explained
    for k in range(n_picks):
        pick = picks[:, k] = np.argmax(mean + bonus * np.sqrt(variance), axis=1)
        covariance = model.kernel(candidates.take(pick[:, None]), candidates)[:, 0]
        covariance -= (explained[rows, :, pick][:, None] @ explained)[:, 0]
        covariance -= (learned[rows, :k, pick][:, None] @ learned[:, :k])[:, 0]
        learned[:, k] = covariance / np.sqrt(variance[rows, pick] + PICK_NOISE_STD**2)[:, None]
        variance = np.maximum(variance - learned[:, k] ** 2, 0.0)
    return candidates.take(picks).latents
