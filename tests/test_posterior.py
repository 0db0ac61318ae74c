"""The model behind the rule ``posterior``: scores, points of the prior, Gaussian process, and the choice of a batch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.posterior import (
    choose_batch,
    fit_scores,
    hit_scores,
    prior_points,
    prior_radius,
    random_rotations,
    representative_points,
    weighted_quantile,
)
from sb3_maesn.common.adaptation.score_prior import Points, uninformed

Array = NDArray[np.float64]


def test_weighted_quantile() -> None:
    values, weights = np.array([[3.0, 1.0, 2.0]]), np.array([[1.0, 1.0, 1.0]])
    assert weighted_quantile(values, weights, 0.5)[0, 0] == 2.0
    assert weighted_quantile(values, np.array([[5.0, 1.0, 1.0]]), 0.5)[0, 0] == 3.0


def test_hit_scores_see_hits_and_not_noise() -> None:
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((100, 20, 2)), rng.normal(-400.0, 3.0, (100, 20))
    assert np.mean(hit_scores(latents, noise)[1] > 0.5) < 0.1
    noise[:, 3] += 150.0
    scores, evidence = hit_scores(latents, noise)
    np.testing.assert_array_equal(evidence, 1.0)
    np.testing.assert_array_equal(scores.argmax(axis=1), 3)
    assert np.delete(scores, 3, axis=1).max() < 0.15


def test_rounding_is_no_hit() -> None:
    latents = np.random.default_rng(0).standard_normal((1, 20, 2))
    returns = np.full((1, 20), -381.486176)
    returns[0, :3] += 3e-5  # as sums of the same float32 rewards differ
    assert hit_scores(latents, returns)[1] == 0.0


def test_many_episodes_at_a_hit_do_not_become_the_floor() -> None:
    rng = np.random.default_rng(1)
    latents = np.concatenate([rng.standard_normal((10, 8, 2)), 1.5 + 0.05 * rng.standard_normal((10, 40, 2))], axis=1)
    returns = np.where(np.arange(48) < 8, -400.0, -250.0) + rng.normal(0.0, 3.0, (10, 48))
    scores, _ = hit_scores(latents, returns)
    assert scores[:, 8:].min() > 0.8


def test_prior_points_and_representative_points_stand_for_the_prior() -> None:
    for latent_dim in (1, 2, 4):
        points = prior_points(512, np.random.default_rng(0).random(latent_dim))
        np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=0.03)
        np.testing.assert_allclose(points.std(axis=0), 1.0, atol=0.05)
        radii = np.linalg.norm(np.random.default_rng(1).standard_normal((20000, latent_dim)), axis=1)
        assert 0.94 < np.mean(radii < prior_radius(latent_dim)) < 0.97
    np.testing.assert_allclose(representative_points(1, 2), 0.0, atol=0.05)
    two = representative_points(2, 1)[:, 0]  # of N(0, 1), at its quartiles by symmetry of the energy distance
    np.testing.assert_allclose(np.sort(two), [-0.6745, 0.6745], atol=0.05)
    nearest = np.linalg.norm(
        representative_points(20, 2)[:, None] - representative_points(20, 2), axis=-1
    ) + 9.0 * np.eye(20)
    assert nearest.min() > 0.4


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_rotations_are_orthogonal_and_of_no_preferred_direction(latent_dim: int) -> None:
    matrices = random_rotations(4000, latent_dim, np.random.default_rng(0))
    assert np.allclose(matrices @ matrices.transpose(0, 2, 1), np.eye(latent_dim))
    assert np.allclose(matrices.mean(axis=0), 0.0, atol=0.05)
    assert 0.45 < (np.linalg.det(matrices) > 0.0).mean() < 0.55


def test_score_model_is_gaussian_process_regression() -> None:
    rng = np.random.default_rng(0)
    seen, query = (
        Points(rng.standard_normal((2, n, 2)), rng.random((2, n)), rng.standard_normal((2, n, 3))) for n in (6, 4)
    )
    scores = rng.random((2, 6))
    model = fit_scores(seen, scores, np.array([0.7]), 0.4, 0.2)
    mean, explained = model.predict(query)
    for b in range(2):
        covariance = model.kernel(seen, seen)[b] + 0.2**2 * np.eye(6)
        cross, own = model.kernel(seen, query)[b], model.kernel(query, query)[b]
        expected = query.mean[b] + cross.T @ np.linalg.solve(covariance, scores[b] - seen.mean[b])
        np.testing.assert_allclose(mean[b], expected)
        np.testing.assert_allclose(explained[b].T @ explained[b], cross.T @ np.linalg.solve(covariance, cross))
        np.testing.assert_allclose(model.prior_variance(query)[b], np.diagonal(own))
        shared = query.features[b] @ query.features[b].T
        assert (np.abs(own - shared) <= 0.4**2 + 1e-12).all()  # what the features do not explain


def test_length_scale_follows_the_data() -> None:
    latents = np.random.default_rng(0).uniform(-2.0, 2.0, (1, 60, 2))
    for period, expected in ((8.0, 1.6), (1.5, 0.35)):
        scores = 0.5 + 0.5 * np.sin(2.0 * np.pi * latents[..., 0] / period)
        assert fit_scores(uninformed(latents, 0.1), scores, np.array([0.35, 1.6]), 0.4, 0.1).length_scale[0] == expected


def test_batches_are_diverse_without_a_hit_and_gather_at_a_hit() -> None:
    rng = np.random.default_rng(0)
    latents = representative_points(5, 2)[None]
    candidates = uninformed(prior_points(300, rng.random(2))[None], 0.05)
    for scores, gathered in ((np.zeros((1, 5)), 0), (np.array([[0.0, 1.0, 0.0, 0.0, 0.0]]), 3)):
        model = fit_scores(uninformed(latents, 0.05), scores, np.array([0.6]), 0.4, 0.2)
        picks = choose_batch(model, candidates, 5, 1.5)
        apart = np.linalg.norm(picks[0][:, None] - picks[0], axis=-1) + 9.0 * np.eye(5)
        assert apart.min() > (0.02 if gathered else 0.5)
        assert np.sum(np.linalg.norm(picks[0] - latents[0, 1], axis=-1) < 0.6) >= gathered
