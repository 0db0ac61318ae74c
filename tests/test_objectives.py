"""Surrogate, KLs and normalisation by hand, with masks."""

import numpy as np
import pytest
import torch as th

from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.objectives import (
    episode_std,
    normalise_episodes,
    normalise_steps,
    policy_kl,
    prior_kl,
    standardised_task_rewards,
    surrogate,
    task_mean,
)

STEPS, TASKS, EPISODES = 5, 3, 4


@pytest.fixture
def mask() -> th.Tensor:
    """Task 0 whole, task 1 with a short and an invalid episode, task 2 without any."""
    mask = th.ones(STEPS, TASKS, EPISODES, dtype=th.float64)
    mask[3:, 1, 0] = 0.0
    mask[:, 1, 2] = 0.0
    mask[:, 2] = 0.0
    return mask


def values(seed: int = 0) -> th.Tensor:
    return th.randn(STEPS, TASKS, EPISODES, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def test_every_task_weighs_the_same(mask: th.Tensor) -> None:
    x = values()
    by_task = [x[:, task][mask[:, task] > 0].mean().item() for task in (0, 1)]
    assert task_mean(x, mask).item() == pytest.approx(np.mean([*by_task, 0.0]))  # a task without steps counts as 0


def test_steps_are_normalised_within_each_task(mask: th.Tensor) -> None:
    got = normalise_steps(3.0 * values() + 7.0, mask)
    for task in (0, 1):
        valid = got[:, task][mask[:, task] > 0]
        assert valid.mean().item() == pytest.approx(0.0, abs=1e-12)
        assert valid.std(correction=0).item() == pytest.approx(1.0)
    assert bool((got[mask == 0] == 0).all())
    assert bool(th.isfinite(normalise_steps(th.ones_like(mask), mask)).all())  # equal advantages


def test_episodes_are_normalised_within_each_task(mask: th.Tensor) -> None:
    x = 3.0 * values()[0] + 7.0
    got = normalise_episodes(x, mask[0])
    for task in (0, 1):
        valid = x[task][mask[0, task] > 0]
        assert episode_std(x, mask[0])[task].item() == pytest.approx(valid.std(correction=0).item())
        assert th.allclose(got[task][mask[0, task] > 0], (valid - valid.mean()) / valid.std(correction=0))
    assert bool((got[mask[0] == 0] == 0).all())


def test_std_floor_replaces_smaller_deviations_only() -> None:
    x = th.tensor([[1.0, 3.0], [10.0, 30.0]])  # standard deviations 1 and 10
    got = normalise_episodes(x, th.ones(2, 2), std_floor=4.0)
    assert th.allclose(got, th.tensor([[-0.25, 0.25], [-1.0, 1.0]]))


def test_surrogate_weighs_advantages_by_the_ratio(mask: th.Tensor) -> None:
    new, old, advantages = values(1), values(2), values(3)
    expected = np.mean(
        [((new - old).exp() * advantages)[:, task][mask[:, task] > 0].mean().item() for task in (0, 1)] + [0.0]
    )
    assert surrogate(new, old, advantages, mask).item() == pytest.approx(expected)


def test_clipped_surrogate_gains_nothing_outside_the_range() -> None:
    """The four cases of PPO's figure 1, in one step of one episode each."""
    ratios = th.tensor([1.5, 1.5, 0.5, 0.5], dtype=th.float64).view(1, 4, 1).log().requires_grad_()
    advantages = th.tensor([2.0, -2.0, 2.0, -2.0], dtype=th.float64).view(1, 4, 1)
    value = surrogate(ratios, th.zeros_like(ratios), advantages, th.ones_like(ratios), clip_range=0.2)
    assert value.item() == pytest.approx((1.2 * 2.0 - 1.5 * 2.0 + 0.5 * 2.0 - 0.8 * 2.0) / 4)
    (gradient,) = th.autograd.grad(value, ratios)
    assert gradient.flatten().tolist() == pytest.approx([0.0, -1.5 * 2.0 / 4, 0.5 * 2.0 / 4, 0.0])


def test_task_rewards_are_standardised_over_all_steps(mask: th.Tensor) -> None:
    x = 3.0 * values() + 7.0
    valid = x[mask > 0]
    expected = [((x[:, i][mask[:, i] > 0] - valid.mean()) / valid.std(correction=0)).mean().item() for i in (0, 1)]
    x[mask == 0] = 100.0
    assert standardised_task_rewards(x, mask).tolist() == pytest.approx([*expected, 0.0])
    assert standardised_task_rewards(th.ones_like(mask), mask).abs().max() < 1e-6  # equal rewards


def test_policy_kl_is_the_kl_from_old_to_new(mask: th.Tensor) -> None:
    shape = (STEPS, TASKS, EPISODES, 2)
    generator = th.Generator().manual_seed(0)
    old = DiagGaussian(th.randn(shape, generator=generator, dtype=th.float64), th.full((1, 1, 1, 2), -0.5).double())
    new = DiagGaussian(th.randn(shape, generator=generator, dtype=th.float64), th.full((1, 1, 1, 2), 0.3).double())
    kl = th.distributions.kl_divergence(
        th.distributions.Normal(old.mean, old.log_std.exp()), th.distributions.Normal(new.mean, new.log_std.exp())
    ).sum(dim=-1)
    assert policy_kl(old, new, mask).item() == pytest.approx(task_mean(kl, mask).item())


def test_prior_kl_is_the_kl_from_the_standard_normal() -> None:
    mean, log_std = th.tensor([[0.0, 0.0], [1.0, -2.0]]), th.tensor([[0.0, 0.0], [0.5, -0.5]])
    expected = th.distributions.kl_divergence(
        th.distributions.Normal(mean, log_std.exp()), th.distributions.Normal(th.zeros(2, 2), th.ones(2, 2))
    ).sum(dim=1)
    assert expected[0].item() == 0.0
    assert prior_kl(DiagGaussian(mean, log_std)).item() == pytest.approx(expected.mean().item())
    assert prior_kl(DiagGaussian(th.zeros(3, 0), th.zeros(3, 0))).item() == 0.0  # no latent, no KL
