"""The Bayesian network: closed forms against torch's own, derivatives against automatic ones, and a known posterior."""

import math

import pytest
import torch as th
from torch.distributions import Independent, Normal, kl_divergence

from sb3_maesn.common.bayesian_network import (
    WeightPosterior,
    expected_log_likelihood,
    initial_posterior,
    n_weights,
    predict,
    prior,
    variational_loss,
)

SIZES = (3, 5, 4, 2)


def generator() -> th.Generator:
    return th.Generator().manual_seed(3)


def posterior(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> WeightPosterior:
    source = th.Generator().manual_seed(seed)
    return WeightPosterior(*(th.randn(n_weights(sizes), generator=source, dtype=th.float64) for _ in range(2)))


def normal(q: WeightPosterior) -> Independent:
    return Independent(Normal(q.mean, q.std), 1)


def test_predictions_are_those_of_torchs_layers() -> None:
    weights = posterior().mean
    layers: list[th.nn.Module] = []
    start = 0
    for n_in, n_out in ((3, 5), (5, 4), (4, 2)):
        layer = th.nn.Linear(n_in, n_out, dtype=th.float64)
        matrix, bias = weights[start:].split([n_in * n_out, n_out, len(weights) - start - (n_in + 1) * n_out])[:2]
        layer.weight.data, layer.bias.data = matrix.view(n_in, n_out).T, bias
        start += (n_in + 1) * n_out
        layers += [layer, th.nn.ReLU()]
    inputs = th.randn(7, 3, generator=generator(), dtype=th.float64)
    assert start == n_weights(SIZES)
    got = predict(SIZES, th.stack([weights, 2.0 * weights]), inputs)
    assert got.shape == (2, 7, 2)
    assert th.allclose(got[0], th.nn.Sequential(*layers[:-1])(inputs))


def test_kl_is_torchs() -> None:
    q, p = posterior(0), posterior(1)
    assert th.allclose(q.kl(p), kl_divergence(normal(q), normal(p)))
    assert q.kl(q).abs() < 1e-12


def test_curvature_is_the_kls_hessian() -> None:
    q = posterior(sizes=(1, 2))
    n = n_weights((1, 2))

    def kl_from_q(flat: th.Tensor) -> th.Tensor:
        return WeightPosterior(flat[:n], flat[n:]).kl(q)

    hessian = th.autograd.functional.hessian(kl_from_q, th.cat(q))
    assert th.allclose(hessian, th.diag(th.cat(q.kl_curvature())))


def test_prior_has_its_standard_deviation_and_the_initial_posterior_too() -> None:
    like = th.zeros(4, dtype=th.float64)
    assert th.allclose(prior(like, 0.3).std, th.full_like(like, 0.3))
    start = initial_posterior(SIZES, 0.5, generator())
    assert th.allclose(start.std, th.full((n_weights(SIZES),), 0.5))
    assert th.equal(start.mean, initial_posterior(SIZES, 0.5, generator()).mean)


def test_likelihood_is_the_mean_over_the_draws_of_the_weights() -> None:
    q = posterior()
    inputs = th.randn(6, 3, generator=generator(), dtype=th.float64)
    targets = th.randn(6, 2, generator=generator(), dtype=th.float64)
    noise = th.randn(4, n_weights(SIZES), generator=generator(), dtype=th.float64)
    outputs = predict(SIZES, q.mean + q.std * noise, inputs)
    expected = Normal(outputs, 0.7).log_prob(targets).sum(dim=-1).mean(dim=0)
    assert th.allclose(expected_log_likelihood(q, SIZES, inputs, targets, noise, 0.7), expected)


def test_a_linear_networks_posterior_is_found() -> None:
    """With inputs that are orthogonal the exact posterior of y = w x + b + noise is fully factorised."""
    inputs = th.tensor([[-1.0], [1.0], [-2.0], [2.0]], dtype=th.float64)
    targets = 0.8 * inputs + th.tensor([[0.5], [0.1], [-0.2], [0.3]], dtype=th.float64)
    prior_std, likelihood_std = 0.9, 0.6
    features = th.cat([inputs, th.ones_like(inputs)], dim=1)
    precision = features.T @ features / likelihood_std**2 + th.eye(2, dtype=th.float64) / prior_std**2
    mean = th.linalg.solve(precision, features.T @ targets / likelihood_std**2).flatten()

    corners = th.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=th.float64)  # exact where the loss is quadratic
    q = [th.zeros(2, dtype=th.float64, requires_grad=True) for _ in range(2)]
    optimizer = th.optim.LBFGS(q, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> th.Tensor:
        optimizer.zero_grad()
        loss = variational_loss(WeightPosterior(*q), (1, 1), inputs, targets, corners, likelihood_std, prior_std, 4)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = WeightPosterior(*(part.detach() for part in q))
    assert th.allclose(found.mean, mean, atol=1e-5)
    assert th.allclose(found.std, precision.diagonal().rsqrt(), atol=1e-5)


@pytest.mark.parametrize("n_data", [1, 100])
def test_loss_weighs_the_prior_by_the_number_of_data(n_data: int) -> None:
    q, noise = posterior(), th.zeros(1, n_weights(SIZES), dtype=th.float64)
    inputs, targets = th.zeros(2, 3, dtype=th.float64), th.zeros(2, 2, dtype=th.float64)
    targets += predict(SIZES, q.mean[None], inputs)[0]  # a perfect fit leaves the normalising constant
    fit = -2.0 * math.log(0.5 * math.sqrt(2.0 * math.pi))
    expected = q.kl(prior(q.mean, 0.4)) / n_data - fit
    assert th.allclose(variational_loss(q, SIZES, inputs, targets, noise, 0.5, 0.4, n_data), expected)
