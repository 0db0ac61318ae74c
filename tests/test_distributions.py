"""Distributions as values, against torch.distributions."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_maesn.common.distributions import Categorical, DiagGaussian, check_action_space


def gaussians(seed: int) -> tuple[DiagGaussian, th.distributions.Independent]:
    generator = th.Generator().manual_seed(seed)
    mean = th.randn(4, 3, 2, generator=generator, dtype=th.float64)
    log_std = 0.5 * th.randn(1, 3, 2, generator=generator, dtype=th.float64)  # broadcast over the first dimension
    reference = th.distributions.Normal(mean, log_std.exp().expand_as(mean))
    return DiagGaussian(mean, log_std), th.distributions.Independent(reference, 1)


def categoricals(seed: int) -> tuple[Categorical, th.distributions.Categorical]:
    logits = 2.0 * th.randn(4, 3, 5, generator=th.Generator().manual_seed(seed), dtype=th.float64)
    return Categorical(logits), th.distributions.Categorical(logits=logits)


@pytest.mark.parametrize("make", [gaussians, categoricals])
def test_log_prob_and_kl(make: type) -> None:
    (mine, theirs), (other, their_other) = make(0), make(1)
    value = theirs.sample()
    assert mine.log_prob(value).shape == (4, 3)
    assert th.allclose(mine.log_prob(value), theirs.log_prob(value))
    assert th.allclose(mine.kl(other), th.distributions.kl_divergence(theirs, their_other))
    assert th.allclose(mine.kl(mine), th.zeros(4, 3).double(), atol=1e-12)


def test_gaussian_samples_have_its_moments() -> None:
    wide = DiagGaussian(th.tensor([[1.0, -2.0]]).expand(200_000, 2), th.tensor([[0.5, -1.0]]))
    draws = wide.sample(th.Generator().manual_seed(0))
    assert th.allclose(draws.mean(dim=0), th.tensor([1.0, -2.0]), atol=0.02)
    assert th.allclose(draws.std(dim=0), th.tensor([0.5, -1.0]).exp(), rtol=0.02)


def test_categorical_samples_have_its_frequencies() -> None:
    probabilities = th.tensor([0.5, 0.3, 0.2])
    draws = Categorical(probabilities.log().expand(2, 50_000, 3)).sample(th.Generator().manual_seed(0))
    assert draws.shape == (2, 50_000)
    frequencies = th.bincount(draws.flatten(), minlength=3) / draws.numel()
    assert th.allclose(frequencies, probabilities, atol=0.01)


@pytest.mark.parametrize("make", [gaussians, categoricals])
def test_samples_follow_their_generator(make: type) -> None:
    mine, _ = make(0)
    first, again, other = (mine.sample(th.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert th.equal(first, again)
    assert not th.equal(first, other)


@pytest.mark.parametrize("space", [spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(3)])
def test_spaces_with_a_distribution(space: spaces.Space) -> None:
    check_action_space(space)


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3)])
def test_spaces_without_one(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"expected a Box or Discrete action space, got Multi"):
        check_action_space(space)


def test_discrete_space_that_does_not_start_at_zero() -> None:
    with pytest.raises(ValueError, match="starts at 0, got Discrete"):
        check_action_space(spaces.Discrete(3, start=1))
