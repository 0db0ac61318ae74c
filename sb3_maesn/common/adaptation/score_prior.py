"""A prior for the scores of a new task, learned from training tasks: which latents score, and which score together.

A Gaussian process whose mean and covariance are those of earlier tasks needs far fewer episodes of a new task than one
that knows nothing (Wang et al., "Pre-trained Gaussian processes for Bayesian optimization", JMLR 2024, section 4.2:
the sample mean and covariance of tasks that were all evaluated at the same inputs). Latents are whitened here: the
prior of the latent is N(0, I). Everything is NumPy in float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RANK = 24  # to which the covariance is truncated
WIDTH = 0.15  # std of the interpolation kernel, in prior stds for L = 2


class Points(NamedTuple):
    """Latents with the mean and the covariance that are expected of their scores before a task's first episode.

    :param latents: whitened latents (B, M, L)
    :param mean: expected scores (B, M)
    :param features: feature vectors, whose dot products are the part of the scores' covariance that earlier tasks have
        shown; R is 0 where nothing was learned (B, M, R)
    """

    latents: Array
    mean: Array
    features: Array

    def take(self, picks: NDArray[np.int64]) -> "Points":
        """Select some points of each task.

        :param picks: indices of the points (B, K)
        :return: K points for each task
        """
        index = picks[..., None]
        return Points(
            np.take_along_axis(self.latents, index, 1),
            np.take_along_axis(self.mean, picks, 1),
            np.take_along_axis(self.features, index, 1),
        )


@dataclass(frozen=True)
class ScorePrior:
    """Mean and covariance of scores over many tasks, known at N latents and interpolated at all others.

    :param latents: whitened latents that were tried in all tasks (N, L)
    :param mean: mean scores of these latents (N,)
    :param features: feature vectors such that the scores' covariance is ``features @ features.T`` (N, R)
    :param excess: amount by which the best return of a task typically exceeds the task's floor, in units of return
    :raises ValueError: if shapes disagree, a value is not finite, or ``excess`` is not positive
    """

    latents: Array
    mean: Array
    features: Array
    excess: float

    def __post_init__(self) -> None:
        n = len(self.latents)
        if n < 1 or self.latents.ndim != 2 or self.mean.shape != (n,) or self.features.shape[:-1] != (n,):
            shapes = [part.shape for part in (self.latents, self.mean, self.features)]
            raise ValueError(f"expected latents (N, L), mean (N,) and features (N, R), got {shapes}")
        if not all(np.isfinite(part).all() for part in (self.latents, self.mean, self.features)):
            raise ValueError("expected a finite score prior, got NaN or infinity")
        if not 0.0 < self.excess < np.inf:
            raise ValueError(f"expected the excess of good returns to be positive, got {self.excess}")

    def at(self, latents: Array) -> Points:
        """Interpolate mean and features at any latents, by a kernel-weighted mean over the latents that were tried.

        :param latents: whitened latents (B, M, L)
        :return: the points
        """
        latent_dim = self.latents.shape[1]
        flat = latents.reshape(-1, latent_dim)  # (B, M, L) -> (B M, L)
        # squared distances, up to a constant in each row
        square = np.square(self.latents).sum(axis=1) - 2.0 * flat @ self.latents.T
        # at a latent far from all of them, the nearest one gets all the weight
        square -= square.min(axis=1, keepdims=True)
        weights = np.exp(-0.5 * square / (WIDTH**2 * latent_dim / 2.0))
        weights /= weights.sum(axis=1, keepdims=True)
        shape = latents.shape[:2]  # (B M, ...) -> (B, M, ...)
        features = (weights @ self.features).reshape(*shape, self.features.shape[1])
        return Points(latents, (weights @ self.mean).reshape(shape), features)


def uninformed(latents: Array, mean: float) -> Points:
    """Build points of which nothing is known but a constant mean score.

    :param latents: whitened latents (B, M, L)
    :param mean: expected score
    :return: the points
    """
    return Points(latents, np.full(latents.shape[:2], mean), np.zeros((*latents.shape[:2], 0)))


def learn_score_prior(latents: Array, scores: Array, excess: float) -> ScorePrior:
    """Estimate mean and covariance of the scores over tasks, keeping the ``RANK`` largest components of the covariance.

    :param latents: whitened latents, the same in all tasks (N, L)
    :param scores: scores in each of J tasks (J, N)
    :param excess: amount by which the best return of a task typically exceeds the task's floor, in units of return
    :return: the prior
    :raises ValueError: for fewer than two tasks, or if the shapes disagree
    """
    if scores.ndim != 2 or len(scores) < 2 or scores.shape[1] != len(latents):
        raise ValueError(f"expected scores of at least 2 tasks, (J, {len(latents)}), got {scores.shape}")
    mean = scores.mean(axis=0)
    _, size, directions = np.linalg.svd((scores - mean) / np.sqrt(len(scores)), full_matrices=False)
    return ScorePrior(latents, mean, directions[:RANK].T * size[:RANK], excess)
