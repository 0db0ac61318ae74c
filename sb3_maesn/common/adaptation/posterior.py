"""A Gaussian-process model of how well a latent solves a task, fitted to hit scores of the task's episodes.

With sparse reward, almost every return is a floor plus nuisance (control cost, noise), and an episode that reaches the
goal stands far above it. The functions below first turn returns into *hit scores* in [0, 1], which do not depend on
the returns' shift or scale, and then regress the scores on the latent with a Gaussian process (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, chapter 2). Latents are *whitened* here: the prior is N(0, I), and
lengths in latent space are in prior standard deviations. Everything is NumPy in float64 and handles all tasks at once
(leading axis B).
"""

from dataclasses import dataclass

import numpy as np
import torch as th

from sb3_maesn.common.adaptation.score_prior import Array, Points, ScorePrior
from sb3_maesn.common.objectives import EQUAL_VALUES

# Share of a task's returns below its floor, where a score prior tells how far hits stand above the floor.
LOW_RETURNS = 0.25
# Excess over the floor, in spreads of the floor, from which the best return counts as a full hit.
SOLID_HIT = 10.0
# Standard deviation of the noise of a pick's expected score: small, so that later picks go elsewhere.
PICK_NOISE_STD = 0.05


def typical_scale(latent_dim: int) -> float:
    """Compute how much larger distances between draws of the prior are in L dimensions than in 2.

    :param latent_dim: number of latent dimensions (L)
    :return: sqrt(L / 2)
    """
    return float(np.sqrt(latent_dim / 2.0))


def prior_radius(latent_dim: int) -> float:
    """Compute the radius of the ball that holds about 95 % of N(0, I), within 1.5 % for any L.

    :param latent_dim: number of latent dimensions (L)
    :return: the radius in prior stds
    """
    return float(np.sqrt(latent_dim) + 1.1)


def prior_points(n_points: int, shift: Array) -> Array:
    """Spread points evenly over the prior N(0, I).

    The points are a shifted Kronecker sequence, mapped through the normal quantile function. The generator of the
    sequence is the generalised golden ratio, so that the first n points are spread evenly for any n.

    :param n_points: number of points (N)
    :param shift: shift of the sequence in [0, 1); a uniform draw makes every point a draw from N(0, I) (..., L)
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
    """Compute the support points of the prior N(0, I), which minimise the energy distance to it.

    The method is the fixed-point iteration of Mak and Joseph, "Support points", Annals of Statistics 2018, Eq. 22.

    :param n_points: number of points (N)
    :param latent_dim: number of latent dimensions (L)
    :param n_reference: number of points that represent the prior in the computation
    :param n_iterations: number of iterations
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
    """Draw uniformly distributed orthogonal matrices: rotations, half of them with a reflection.

    The signs make the QR decomposition unique (Mezzadri 2007, "How to generate random matrices from the classical
    compact groups").

    :param n_rotations: number of matrices (B)
    :param latent_dim: number of latent dimensions (L)
    :param rng: source of randomness
    :return: matrices (B, L, L)
    """
    q, r = np.linalg.qr(rng.standard_normal((n_rotations, latent_dim, latent_dim)))
    return np.asarray(q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None])


def squared_distances(left: Array, right: Array) -> Array:
    """Compute the squared distances between all pairs of points.

    :param left: first points (B, N, L)
    :param right: second points (B, M, L)
    :return: squared distances (B, N, M)
    """
    square = np.sum(left**2, axis=-1)[:, :, None] + np.sum(right**2, axis=-1)[:, None]
    square -= 2.0 * left @ np.swapaxes(right, 1, 2)
    return np.maximum(square, 0.0, out=square)


def weighted_quantile(values: Array, weights: Array, quantile: float) -> Array:
    """Compute a quantile of weighted values.

    It is the smallest value such that it and the values below it hold the given share of the weight.

    :param values: values (B, N)
    :param weights: positive weights (B, N)
    :param quantile: share of the weight, in [0, 1]
    :return: quantiles (B, 1)
    """
    order = np.argsort(values, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    index = np.argmax(cumulative >= (quantile - 1e-9) * cumulative[:, -1:], axis=1)[:, None]
    return np.take_along_axis(np.take_along_axis(values, order, 1), index, 1)


def hit_scores(latents: Array, returns: Array, prior: ScorePrior | None = None) -> tuple[Array, Array]:
    """Score how far each return stands above the floor of its task, from 0 (the floor) to 1 (the best so far).

    The floor is the median of the task's returns and its spread their median absolute deviation, with every episode
    weighted by the inverse density of the latents around it, so that many episodes at one good latent do not become the
    floor. A score is the excess over the floor divided by the larger of the best return's excess and ``SOLID_HIT``
    spreads, so that noise is not stretched to hits. With fewer than 5 episodes the spread says little, and all scores
    are lowered.

    With ``prior``, the floor is that of :func:`excess_over_floor` and the divisor the larger of the best return's
    excess and the excess that is typical of the training tasks.

    :param latents: whitened latents (B, N, L)
    :param returns: returns (B, N)
    :param prior: mean and covariance of the scores of the training tasks, if known
    :return: scores (B, N), and for each task its highest score, the evidence that one of its episodes is a hit (B,)
    """
    if returns.shape[1] == 0:
        return np.zeros_like(returns), np.zeros(len(returns))
    if prior is not None:
        scores = excess_over_floor(latents, returns)
        scores /= np.maximum(scores.max(axis=1, keepdims=True), prior.excess)
        return scores, scores.max(axis=1)
    floor, solid = floor_and_solid_hit(latents, returns)
    excess = np.maximum(returns - floor, 0.0)
    scale = np.maximum(excess.max(axis=1, keepdims=True), solid)
    scores = excess / np.where(scale > rounding_of(returns), scale, np.inf) * min(1.0, (returns.shape[1] - 1) / 4.0)
    return scores, scores.max(axis=1)


def floor_and_solid_hit(latents: Array, returns: Array) -> tuple[Array, Array]:
    """Compute the floor of each task, a weighted median, and the excess from which a return is no mere nuisance.

    :param latents: whitened latents (B, N, L)
    :param returns: returns (B, N)
    :return: floors and ``SOLID_HIT`` spreads of the floors, in units of return (both (B, 1))
    """
    weights = _inverse_density(latents)
    floor = weighted_quantile(returns, weights, 0.5)
    return floor, SOLID_HIT * weighted_quantile(np.abs(returns - floor), weights, 0.5)


def rounding_of(returns: Array) -> Array:
    """Compute the difference of returns up to which they differ by rounding only.

    :param returns: returns (B, N)
    :return: differences in units of return (B, 1)
    """
    return np.asarray(EQUAL_VALUES * np.abs(returns).max(axis=1, keepdims=True))


def excess_over_floor(latents: Array, returns: Array) -> Array:
    """Compute by how much returns exceed the floor of their task, its weighted ``LOW_RETURNS`` quantile.

    The quantile is below the median, so that the floor is not a hit even in a task that many latents solve.

    :param latents: whitened latents (B, N, L)
    :param returns: returns (B, N)
    :return: excess in units of return, 0 below the floor (B, N)
    """
    floor = weighted_quantile(returns, _inverse_density(latents), LOW_RETURNS)
    return np.maximum(returns - floor, 0.0)


def _inverse_density(latents: Array) -> Array:
    """Weight episodes by the inverse density of their latents, so that every region counts the same (B, N)."""
    width = 0.5 * typical_scale(latents.shape[2])
    return np.asarray(1.0 / np.exp(-0.5 * squared_distances(latents, latents) / width**2).sum(axis=-1))


@dataclass(frozen=True)
class ScoreModel:
    """A Gaussian process for each task, conditioned on the hit scores of that task's episodes.

    The score of an episode with latent z is f(z) plus Gaussian noise. The prior covariance of f is a Matern-5/2 kernel
    of variance ``score_std``^2 plus the dot product of the points' features, which earlier tasks have taught.

    :param points: latents of the episodes so far, N for each task
    :param whitener: inverse of the lower Cholesky factor of the scores' covariance (B, N, N)
    :param weights: inverse of that covariance times (scores - expected scores) (B, N)
    :param length_scale: length scale of the Matern kernel in prior stds (B,)
    :param score_std: prior standard deviation of the part of f that the features do not explain
    """

    points: Points
    whitener: Array
    weights: Array
    length_scale: Array
    score_std: float

    def kernel(self, left: Points, right: Points) -> Array:
        """Compute the prior covariance of f between two sets of points.

        :param left: N points for each task
        :param right: M points for each task
        :return: covariances (B, N, M)
        """
        square = squared_distances(left.latents, right.latents)
        unexplained = self.score_std**2 * correlation(square, self.length_scale)
        return unexplained + left.features @ np.swapaxes(right.features, 1, 2)

    def prior_variance(self, points: Points) -> Array:
        """Compute the prior variance of f.

        :param points: M points for each task
        :return: variances (B, M)
        """
        return self.score_std**2 + np.sum(points.features**2, axis=2)

    def predict(self, points: Points) -> tuple[Array, Array]:
        """Compute the posterior mean of f, and the reduction of its covariance by the data in factored form.

        :param points: M points for each task
        :return: mean (B, M), and explained (B, N, M) such that the posterior covariance of points i and j is
            kernel(i, j) - sum_n explained_ni explained_nj
        """
        cross = self.kernel(self.points, points)
        return points.mean + np.einsum("bn,bnm->bm", self.weights, cross), self.whitener @ cross


def correlation(square: Array, length_scale: Array) -> Array:
    """Compute the Matern-5/2 correlation (Rasmussen and Williams, Eq. 4.17).

    :param square: squared distances (B, N, M)
    :param length_scale: length scales (B,)
    :return: correlations (B, N, M)
    """
    scaled = np.sqrt(square) * (np.sqrt(5.0) / length_scale)[:, None, None]
    return np.asarray((1.0 + scaled * (1.0 + scaled / 3.0)) * np.exp(-scaled))


def fit_scores(points: Points, scores: Array, length_scales: Array, score_std: float, noise_std: float) -> ScoreModel:
    """Condition a Gaussian process on the scores, with each task's length scale of highest marginal likelihood.

    :param points: latents of the episodes, N for each task
    :param scores: hit scores (B, N)
    :param length_scales: length scales to choose from, in prior stds (S,)
    :param score_std: prior standard deviation of the part of f that the points' features do not explain
    :param noise_std: standard deviation of an episode's score around f
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
    """Solve ``factor @ x = right`` for x.

    :param factor: lower triangular matrices (B, N, N)
    :param right: right-hand sides (B, N, M)
    :return: solutions (B, N, M)
    """
    solution = th.linalg.solve_triangular(th.as_tensor(factor), th.as_tensor(right.copy()), upper=False)
    return np.asarray(solution.numpy())


def log_likelihood(factor: Array, residual: Array) -> Array:
    """Compute the log density of N(0, factor factor^T) up to a constant (Rasmussen and Williams, Eq. 2.30).

    :param factor: lower Cholesky factors (B, N, N)
    :param residual: values at which to evaluate the density (B, N)
    :return: log densities (B,)
    """
    whitened = solve_lower(factor, residual[..., None])[..., 0]
    log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(axis=-1)
    return np.asarray(-0.5 * np.sum(whitened**2, axis=-1) - log_det)


def choose_batch(model: ScoreModel, candidates: Points, n_picks: int, optimism: float) -> Array:
    """Choose the latents to try next, one after another, by the upper confidence bound of their score.

    After each pick the process is conditioned on the score it expects there, which leaves the mean as it is and lowers
    the variance around the pick, so that the next pick goes elsewhere (Desautels et al., "Parallelizing
    exploration-exploitation tradeoffs in Gaussian process bandit optimization", JMLR 2014).

    :param model: conditioned process
    :param candidates: latents to choose from, M for each task
    :param n_picks: number of latents to choose
    :param optimism: number of posterior standard deviations added to the mean at the centre of the prior, fewer away
        from it
    :return: whitened latents (B, n_picks, L)
    """
    mean, explained = model.predict(candidates)
    variance = np.maximum(model.prior_variance(candidates) - np.sum(explained**2, axis=1), 0.0)
    bonus = optimism * np.exp(-0.1 * np.mean(candidates.latents**2, axis=-1))
    rows = np.arange(len(mean))
    picks = np.empty((len(mean), n_picks), dtype=np.int64)
    learned = np.zeros((len(mean), n_picks, mean.shape[1]))  # rows that the picks add to ``explained``
    for k in range(n_picks):
        pick = picks[:, k] = np.argmax(mean + bonus * np.sqrt(variance), axis=1)
        covariance = model.kernel(candidates.take(pick[:, None]), candidates)[:, 0]
        covariance -= (explained[rows, :, pick][:, None] @ explained)[:, 0]
        covariance -= (learned[rows, :k, pick][:, None] @ learned[:, :k])[:, 0]
        learned[:, k] = covariance / np.sqrt(variance[rows, pick] + PICK_NOISE_STD**2)[:, None]
        variance = np.maximum(variance - learned[:, k] ** 2, 0.0)
    return candidates.take(picks).latents
