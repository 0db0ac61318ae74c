"""
The return of a latent, inferred from the episodes of one task: hit scores and a Gaussian process, all tasks at once.

With sparse reward almost every return is a floor plus nuisance (control cost, noise), and an episode that meets the goal
stands far above it. The functions below first turn returns into *hit scores* in [0, 1], which do not depend on the
returns' shift or scale, and then regress the scores on the latent with a Gaussian process (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, chapter 2). Latents are *whitened* here: the prior is N(0, I).
Everything is NumPy in float64, with the tasks in the leading axis B, no loop over tasks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Kernel width of the density estimate that keeps clustered episodes from moving the floor.
DENSITY_WIDTH = 0.5
# Latents further out than this are drawn together: the prior has too little mass there to tell them apart.
SQUASH_RADIUS = 2.5


def prior_points(n_points: int, shift: Array) -> Array:
    """
    Points spread evenly over the prior N(0, I): a shifted Kronecker sequence (its generator is the generalised golden
    ratio, so any first n points are spread evenly too) through the normal quantile function.

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
    return np.asarray(torch.special.ndtri(torch.as_tensor(uniform)).numpy(), dtype=np.float64)


def squared_distances(left: Array, right: Array) -> Array:
    """
    Squared distances between latents, after the tails of the prior are drawn in.

    :param left: whitened latents (..., N, L)
    :param right: whitened latents (..., M, L)
    :return: (..., N, M)
    """
    left, right = _squash(left), _squash(right)
    square = np.sum(left**2, -1)[..., :, None] + np.sum(right**2, -1)[..., None, :]
    return np.maximum(square - 2.0 * left @ np.swapaxes(right, -1, -2), 0.0)


def _squash(latents: Array) -> Array:
    square = np.sum(latents**2, -1, keepdims=True)
    return latents / np.sqrt(1.0 + square / (SQUASH_RADIUS**2 * latents.shape[-1] / 2.0))


def weighted_quantile(values: Array, weights: Array, quantile: float) -> Array:
    """
    Quantile of weighted values: the smallest value at or below which lies the given share of the weight.

    :param values: (B, N)
    :param weights: positive weights (B, N)
    :param quantile: in [0, 1]
    :return: (B, 1)
    """
    order = np.argsort(values, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    index = np.argmax(cumulative >= (quantile - 1e-9) * cumulative[:, -1:], axis=1)[:, None]
    return np.take_along_axis(np.take_along_axis(values, order, 1), index, 1)


def hit_scores(latents: Array, returns: Array, threshold: float = 3.0, solid: float = 8.0) -> tuple[Array, Array]:
    """
    How far each return stands above the floor of its task, on a scale from 0 (floor) to 1 (the best so far).

    The floor and its spread are the median and median absolute deviation of the returns, every episode weighted by the
    inverse of the episodes' density, so that many episodes at one good latent do not become the floor. A return
    within ``threshold`` spreads of the floor scores 0. As long as the best return is less than ``solid``
    spreads above that, scores are measured in spreads instead, so that noise is not stretched to hits.

    :param latents: whitened latents (B, N, L)
    :param returns: (B, N)
    :return: scores (B, N) and, per task, the evidence that a hit is among them, (B,), both in [0, 1]
    """
    weights = 1.0 / np.exp(-0.5 * squared_distances(latents, latents) / DENSITY_WIDTH**2).sum(-1)
    floor = weighted_quantile(returns, weights, 0.5)
    spread = weighted_quantile(np.abs(returns - floor), weights, 0.5)
    excess = np.maximum(returns - floor - threshold * spread, 0.0)
    best = excess.max(axis=1, keepdims=True)
    scale = np.maximum(best, solid * spread)
    scale = np.where(scale > 1e-12 * np.abs(returns).max(axis=1, keepdims=True), scale, np.inf)
    return excess / scale, (best / scale)[:, 0]


@dataclass(frozen=True)
class ScoreModel:
    """
    A Gaussian process per task, conditioned on that task's hit scores.

    :param latents: whitened latents (B, N, L)
    :param cholesky: inverse of the lower Cholesky factor of the scores' covariance (B, N, N)
    :param weights: that covariance's inverse times (scores - ``score_mean``), (B, N)
    :param length_scale: (B,)
    :param score_mean: prior mean of the score
    :param score_std: prior standard deviation of the score
    :param noise_std: standard deviation of a score around the mean score of its latent
    """

    latents: Array
    cholesky: Array
    weights: Array
    length_scale: Array
    score_mean: float
    score_std: float
    noise_std: float

    def kernel(self, left: Array, right: Array) -> Array:
        """
        Prior covariance of the mean scores.

        :param left: whitened latents (B, N, L)
        :param right: whitened latents (B, M, L)
        :return: (B, N, M)
        """
        return self.score_std**2 * correlation(squared_distances(left, right), self.length_scale)

    def predict(self, latents: Array) -> tuple[Array, Array]:
        """
        Posterior mean of the score, and what its covariances need.

        :param latents: whitened latents (B, M, L)
        :return: mean (B, M) and explained (B, N, M): cov(i, j) = kernel(i, j) - sum_n explained_ni explained_nj
        """
        cross = self.kernel(self.latents, latents)
        mean = self.score_mean + np.einsum("bn,bnm->bm", self.weights, cross)
        return mean, self.cholesky @ cross


def correlation(square: Array, length_scale: Array) -> Array:
    """
    Matern-5/2 correlation (Rasmussen and Williams, Eq. 4.17).

    :param square: squared distances (B, N, M)
    :param length_scale: (B,)
    :return: (B, N, M)
    """
    scaled = np.sqrt(5.0 * square) / length_scale[:, None, None]
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


def fit_scores(
    latents: Array, scores: Array, length_scales: Array, score_mean: float, score_std: float, noise_std: float
) -> ScoreModel:
    """
    Condition a Gaussian process on the scores, with the length scale of the highest marginal likelihood per task
    (Rasmussen and Williams, Eq. 2.30).

    :param latents: whitened latents (B, N, L)
    :param scores: (B, N)
    :param length_scales: the length scales to choose from
    :param score_mean: prior mean of the score
    :param score_std: prior standard deviation of the mean score of a latent
    :param noise_std: standard deviation of a score around that
    :return: the conditioned process
    """
    square, residual = squared_distances(latents, latents), scores - score_mean
    best = np.full(len(latents), -np.inf)
    inverse, chosen = np.zeros_like(square), np.zeros(len(latents))
    noise = noise_std**2 * np.eye(square.shape[-1])
    for length_scale in length_scales:
        trial = np.full(len(latents), length_scale)
        factor = np.linalg.cholesky(score_std**2 * correlation(square, trial) + noise)
        factor_inverse = np.linalg.inv(factor)
        whitened = np.einsum("bij,bj->bi", factor_inverse, residual)
        log_det = np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(-1)
        likelihood = -0.5 * np.sum(whitened**2, -1) - log_det
        better = likelihood > best
        best = np.where(better, likelihood, best)
        inverse = np.where(better[:, None, None], factor_inverse, inverse)
        chosen = np.where(better, length_scale, chosen)
    weights = np.einsum("bji,bj->bi", inverse, np.einsum("bij,bj->bi", inverse, residual))
    return ScoreModel(latents, inverse, weights, chosen, score_mean, score_std, noise_std)


def choose_batch(model: ScoreModel, candidates: Array, n_picks: int, optimism: float) -> Array:
    """
    Latents to try next: each maximises the upper confidence bound of the score given all picks before it, whose outcomes
    are taken to be what the model expects (Desautels et al., "Parallelizing exploration-exploitation tradeoffs in Gaussian
    process bandit optimization", JMLR 2014).

    :param candidates: whitened latents to choose from (B, M, L)
    :param n_picks: how many to choose
    :param optimism: posterior standard deviations added to the mean
    :return: whitened latents (B, n_picks, L)
    """
    mean, explained = model.predict(candidates)
    variance = np.maximum(model.score_std**2 - np.sum(explained**2, axis=1), 1e-12)
    rows, picks = np.arange(len(candidates)), np.empty((len(candidates), n_picks), dtype=np.int64)
    extra = np.zeros((len(candidates), n_picks, candidates.shape[1]))  # rows that the picks add to explained
    for k in range(n_picks):
        pick = np.argmax(mean + optimism * np.sqrt(variance), axis=1)
        picks[:, k] = pick
        covariance = model.kernel(candidates[rows, pick][:, None], candidates)[:, 0]
        covariance -= np.einsum("bn,bnm->bm", explained[rows, :, pick], explained)
        covariance -= np.einsum("bn,bnm->bm", extra[rows, :k, pick], extra[:, :k])
        extra[:, k] = covariance / np.sqrt(variance[rows, pick] + model.noise_std**2)[:, None]
        variance = np.maximum(variance - extra[:, k] ** 2, 1e-12)
    return candidates[rows[:, None], picks]
