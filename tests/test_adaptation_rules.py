"""Adaptation rules: closed forms, invariances, bad input, and the episodes they need on a synthetic sparse task."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.rule import AdaptationRule, AdaptationState
from sb3_maesn.common.adaptation.rules import (
    RULES,
    CrossEntropyRule,
    KernelRule,
    NaturalGradientRule,
    PolicyGradientRule,
    PosteriorRule,
    RewardWeightedRule,
)

Array = NDArray[np.float64]


def make_rule(name: str, latent_dim: int = 2) -> AdaptationRule:
    if name.endswith("gradient"):
        return RULES[name](np.ones(latent_dim), np.ones(latent_dim))  # type: ignore[call-arg]  # a subclass's arguments
    return RULES[name]()


def started(rule: AdaptationRule, n_tasks: int = 3, latent_dim: int = 2) -> AdaptationState:
    return rule.start(np.zeros((n_tasks, latent_dim)), np.zeros((n_tasks, latent_dim)))


def updated(
    rule: AdaptationRule, state: AdaptationState, latents: Array, returns: Array, seed: int = 0
) -> AdaptationState:
    advantages = returns - returns.mean()
    return rule.update(state, latents, returns, advantages, np.random.default_rng(seed))


@dataclass(frozen=True)
class HalfCircle:
    """Sparse goals on a half circle of radius 2, with returns as in WheeledGoal.

    A latent leads to an angle: by the normal distribution function along a direction of latent space (even tasks) or
    by its own angle, folded (odd tasks).

    :param goals: angle of each task's goal (B,)
    :param directions: angle of each task's direction in latent space (B,)
    """

    goals: Array
    directions: Array

    @classmethod
    def sample(cls, n_tasks: int, seed: int) -> "HalfCircle":
        rng = np.random.default_rng(seed)
        return cls(rng.uniform(0.0, np.pi, n_tasks), rng.uniform(0.0, 2.0 * np.pi, n_tasks))

    def play(self, latents: Array, rng: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
        """Returns and success (B, K) of latents (B, K, 2)."""
        cos, sin = np.cos(self.directions)[:, None], np.sin(self.directions)[:, None]
        x, y = cos * latents[..., 0] + sin * latents[..., 1], cos * latents[..., 1] - sin * latents[..., 0]
        even = (np.arange(len(self.goals)) % 2 == 0)[:, None]
        angle = np.where(even, np.pi * th.special.ndtr(th.as_tensor(x)).numpy(), np.abs(np.arctan2(y, x)))
        radius = np.where(even, 2.0, 2.0 * np.minimum(1.0, np.hypot(x, y) / 0.4))
        angle = angle + (rng.random(angle.shape) < 0.1) * rng.normal(0.0, 0.8, angle.shape)  # some episodes go astray
        end = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1) + rng.normal(0.0, 0.15, (*angle.shape, 2))
        goal = 2.0 * np.stack([np.cos(self.goals), np.sin(self.goals)], -1)[:, None]
        travelled = np.minimum(1.0, np.arange(1, 201) / 150.0)[:, None]
        distance = np.linalg.norm(end[:, :, None] * travelled - goal[:, :, None], axis=-1)  # (B, K, T)
        returns = -np.where(distance > 0.8, 2.0, distance).sum(-1)
        control_cost = np.clip(7.0 + 4.0 * latents.sum(-1), 0.0, 15.0) + rng.normal(0.0, 2.0, angle.shape)
        return returns - control_cost, distance[..., -1] < 0.8


def run(
    rule: AdaptationRule, tasks: HalfCircle, n_rounds: int, n_episodes: int, seed: int = 0
) -> tuple[list[float], list[float]]:
    """Success of fresh episodes of the adapted policy, and share of tasks solved, after 0, 1, ... rounds."""
    rng, world = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    state = started(rule, len(tasks.goals))
    fresh, solved = [], []
    for _ in range(n_rounds + 1):
        mean, log_std = state.mean, state.log_std
        noise = world.standard_normal((len(mean), 20, mean.shape[1]))
        fresh.append(float(tasks.play(mean[:, None] + np.exp(log_std)[:, None] * noise, world)[1].mean()))
        latents = rule.propose(state, n_episodes, rng)
        returns, success = tasks.play(latents, world)
        solved.append(float((success.mean(axis=1) >= 0.5).mean()))
        state = updated(rule, state, latents, returns)
    return fresh, solved


# -- every rule


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("n_episodes", "latent_dim"), [(1, 1), (1, 2), (2, 5), (7, 3)])
def test_shapes_and_finite_values_from_one_episode_up(name: str, n_episodes: int, latent_dim: int) -> None:
    rule, rng = make_rule(name, latent_dim), np.random.default_rng(1)
    state = started(rule, 4, latent_dim)
    for _ in range(6):
        latents = rule.propose(state, n_episodes, rng)
        assert latents.shape == (4, n_episodes, latent_dim)
        state = updated(rule, state, latents, rng.normal(-400.0, 5.0, (4, n_episodes)))
        mean, log_std = state.mean, state.log_std
        assert mean.shape == log_std.shape == (4, latent_dim)
        assert np.isfinite(mean).all()
        assert np.isfinite(log_std).all()
    assert state.latents.shape == (4, 6 * n_episodes, latent_dim)
    assert state.n_rounds == 6


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n_episodes", [1, 5])
def test_equal_returns_do_not_end_exploration(name: str, n_episodes: int) -> None:
    rule, rng = make_rule(name), np.random.default_rng(2)
    state = started(rule, 50)
    for _ in range(20 // n_episodes):
        latents = rule.propose(state, n_episodes, rng)
        state = updated(rule, state, latents, np.full((50, n_episodes), -400.0))
    late = state.latents[:, 10:] - state.latents[:, 10:].mean(axis=1, keepdims=True)
    assert np.sqrt(np.mean(late**2)) > 0.7


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1.0, 1e4), (1e6, -1e7)])
def test_scale_and_shift_of_the_returns_do_not_matter(name: str, scale: float, shift: float) -> None:
    tasks, rule = HalfCircle.sample(6, 0), make_rule(name)
    results = []
    for factor, offset in ((1.0, 0.0), (scale, shift)):
        rng, world, state = np.random.default_rng(3), np.random.default_rng(4), started(rule, 6)
        for _ in range(3):
            latents = rule.propose(state, 5, rng)
            state = updated(rule, state, latents, factor * tasks.play(latents, world)[0] + offset)
        results.append((state.mean, state.log_std))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"policy_gradient"}))  # whose step depends on the units
def test_rules_work_in_units_of_the_prior(name: str) -> None:
    rule, tasks = make_rule(name), HalfCircle.sample(6, 1)
    prior_mean, prior_log_std = np.array([3.0, -1.0]), np.log([2.0, 0.5])
    shifted = rule.start(np.tile(prior_mean, (6, 1)), np.tile(prior_log_std, (6, 1)))
    state, scale = started(rule, 6), np.exp(prior_log_std)
    world = np.random.default_rng(5)
    rngs = np.random.default_rng(6), np.random.default_rng(6)
    for _ in range(2):
        latents, shifted_latents = rule.propose(state, 5, rngs[0]), rule.propose(shifted, 5, rngs[1])
        np.testing.assert_allclose(shifted_latents, prior_mean + scale * latents, rtol=1e-6, atol=1e-6)
        returns, _ = tasks.play(latents, world)
        state, shifted = (
            updated(rule, state, latents, returns),
            updated(rule, shifted, shifted_latents, returns),
        )
    mean, log_std = (shifted.mean, shifted.log_std)
    np.testing.assert_allclose(mean, prior_mean + scale * state.mean, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(log_std, prior_log_std + state.log_std, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_tasks_do_not_influence_each_other(name: str) -> None:
    tasks, rule = HalfCircle.sample(20, 2), make_rule(name)
    latents = np.random.default_rng(7).standard_normal((20, 15, 2))
    returns, _ = tasks.play(latents, np.random.default_rng(8))
    together = updated(rule, started(rule, 20), latents, returns)
    for task in (0, 7, 19):
        one = slice(task, task + 1)
        advantages = returns - returns.mean()
        alone = rule.update(started(rule, 1), latents[one], returns[one], advantages[one], np.random.default_rng(0))
        np.testing.assert_allclose(alone.mean, together.mean[one], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(alone.log_std, together.log_std[one], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", RULES)
def test_no_argument_is_changed_and_runs_repeat(name: str) -> None:
    tasks, rule = HalfCircle.sample(4, 3), make_rule(name)
    latents = rule.propose(started(rule, 4), 5, np.random.default_rng(9))
    np.testing.assert_array_equal(latents, rule.propose(started(rule, 4), 5, np.random.default_rng(9)))
    returns, _ = tasks.play(latents, np.random.default_rng(10))
    state, kept = started(rule, 4), (latents.copy(), returns.copy())
    new = updated(rule, state, latents, returns)
    np.testing.assert_array_equal(latents, kept[0])
    np.testing.assert_array_equal(returns, kept[1])
    assert state.returns.shape == (4, 0)
    np.testing.assert_array_equal(state.mean, 0.0)
    np.testing.assert_array_equal(
        rule.propose(new, 3, np.random.default_rng(11)), rule.propose(new, 3, np.random.default_rng(11))
    )


@pytest.mark.parametrize("name", RULES)
def test_bad_input_is_refused(name: str) -> None:
    rule, rng = make_rule(name), np.random.default_rng(0)
    state, latents, returns = started(rule), np.zeros((3, 4, 2)), np.zeros((3, 4))
    broken = returns.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"returns must be finite, got nan at index \(1, 2\)"):
        rule.update(state, latents, broken, returns, rng)
    with pytest.raises(ValueError, match=r"latents of a round must have shape \(3, 'episodes', 2\), got \(3, 4, 5\)"):
        rule.update(state, np.zeros((3, 4, 5)), returns, returns, rng)
    with pytest.raises(ValueError, match=r"returns must have shape \(3, 4\), got \(3, 5\)"):
        rule.update(state, latents, np.zeros((3, 5)), returns, rng)
    with pytest.raises(ValueError, match="n_episodes must be at least 1, got 0"):
        rule.propose(state, 0, rng)
    with pytest.raises(ValueError, match="a round must have at least 1 episode"):
        rule.update(state, np.zeros((3, 0, 2)), np.zeros((3, 0)), np.zeros((3, 0)), rng)
    with pytest.raises(ValueError, match=r"prior_mean must have shape \(tasks, latent_dim\), got \(2,\)"):
        rule.start(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"prior_log_std must have shape \(3, 2\), got \(3, 1\)"):
        rule.start(np.zeros((3, 2)), np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RewardWeightedRule(temperature=0.0), "temperature must be between"),
        (lambda: CrossEntropyRule(elite_fraction=1.5), "elite_fraction must be between 1e-06 and 1.0, got 1.5"),
        (lambda: KernelRule(width=-1.0), "width must be between"),
        (lambda: PosteriorRule(std=0.0), "std must be between"),
        (lambda: PosteriorRule(length_scales=(0.5, -1.0)), "length_scales must be between"),
        (lambda: PosteriorRule(length_scales=()), "expected at least one of length_scales, got none"),
        (lambda: PolicyGradientRule([1.0], [1.0], std_floor=-1.0), "std_floor must be between"),
    ],
)
def test_bad_settings_are_refused(build: Callable[[], AdaptationRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# -- closed forms


def test_policy_gradient_is_the_papers_step_and_halves_from_the_third_round_on() -> None:
    rule = PolicyGradientRule([0.5, 2.0], [0.1, 0.2])
    latents, returns = np.array([[[1.0, -2.0], [0.5, 0.0]]]), np.array([[3.0, 1.0]])  # normalised advantages 1 and -1
    state = started(rule, 1)
    first = updated(rule, state, latents, returns)
    np.testing.assert_allclose(first.mean, [[0.5 * (1.0 - 0.5) / 2.0, 2.0 * (-2.0 - 0.0) / 2.0]])
    np.testing.assert_allclose(first.log_std, [[0.1 * (1.0 - 0.25) / 2.0, 0.2 * (4.0 - 0.0) / 2.0]])
    lengths = []
    for _ in range(5):  # the same episodes, as seen from the same distribution, each round
        previous, state = state, updated(rule, state, state.mean[:, None] + np.exp(state.log_std) * latents, returns)
        lengths.append((state.log_std - previous.log_std)[0, 1] / 0.2 / 2.0)
    np.testing.assert_allclose(lengths, [1.0, 1.0, 0.5, 0.25, 0.125])


def test_natural_gradient_is_the_gradient_over_the_fisher_matrix() -> None:
    latents, returns = (
        np.random.default_rng(0).normal(1.0, 2.0, (3, 6, 2)),
        np.random.default_rng(1).normal(size=(3, 6)),
    )
    mean, log_std = np.array([[0.3, -0.2]] * 3), np.log([[0.5, 2.0]] * 3)
    steps = []
    for kind in (PolicyGradientRule, NaturalGradientRule):
        rule = kind([1.0, 1.0], [1.0, 1.0])
        state = updated(rule, rule.start(mean, log_std), latents, returns)
        steps.append((state.mean - mean, state.log_std - log_std))
    np.testing.assert_allclose(steps[1][0], steps[0][0] * np.array([0.25, 4.0]))
    np.testing.assert_allclose(steps[1][1], steps[0][1] / 2.0)


def test_gradient_rules_check_their_step_sizes() -> None:
    with pytest.raises(ValueError, match=r"step_size_mean must have shape \(2,\), got \(3,\)"):
        started(PolicyGradientRule(np.ones(3), np.ones(3)))


def test_std_floor_stops_nuisance() -> None:
    latents, nuisance = (
        np.random.default_rng(0).standard_normal((1, 8, 2)),
        np.random.default_rng(1).normal(size=(1, 8)),
    )
    moved = [
        updated(r := PolicyGradientRule([1.0] * 2, [1.0] * 2, f), started(r, 1), latents, nuisance) for f in (1e-8, 1e3)
    ]
    assert np.abs(moved[0].mean).max() > 100.0 * np.abs(moved[1].mean).max()


def test_single_episode_is_compared_with_earlier_ones() -> None:
    rule = PolicyGradientRule([1.0, 1.0], [0.0, 0.0])
    state = updated(rule, started(rule, 1), np.array([[[1.0, 0.0]]]), np.array([[0.0]]))
    np.testing.assert_array_equal(state.mean, 0.0)
    state = rule.update(
        state, np.array([[[0.0, 2.0]]]), np.array([[10.0]]), np.array([[10.0]]), np.random.default_rng(0)
    )
    np.testing.assert_allclose(state.mean, [[0.0, 2.0]])  # advantages 0 and 10: the second is 1 std above the mean


def test_reward_weighted_moments() -> None:
    rule = RewardWeightedRule(temperature=0.5, prior_episodes=2.0)
    latents, returns = np.random.default_rng(0).standard_normal((1, 9, 2)), np.zeros((1, 9))
    returns[0, 4] = 100.0
    state = updated(rule, started(rule, 1), latents, returns)
    advantages = (returns[0] - returns.mean()) / returns.std()
    weights = np.exp(advantages / 0.5)
    mean = weights @ latents[0] / (weights.sum() + 2.0)
    second = (weights @ latents[0] ** 2 + 2.0) / (weights.sum() + 2.0)
    np.testing.assert_allclose(state.mean[0], mean)
    np.testing.assert_allclose(np.exp(2.0 * state.log_std[0]), second - mean**2 + 0.05**2)


def test_cross_entropy_pools_the_best_of_all_rounds() -> None:
    rule = CrossEntropyRule(elite_fraction=0.1, prior_episodes=1e-6, min_std=0.01)
    rng, state = np.random.default_rng(0), started(rule, 1)
    best = np.array([[0.7, -0.3], [0.9, -0.1]])
    for r in range(2):
        latents, returns = rng.standard_normal((1, 10, 2)), np.zeros((1, 10))
        latents[0, r], returns[0, r] = best[r], 50.0
        state = updated(rule, state, latents, returns)
    np.testing.assert_allclose(state.mean[0], best.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(np.exp(state.log_std[0]), best.std(axis=0), atol=1e-4)


def test_kernel_prefers_a_neighbourhood_of_hits_to_one_lucky_episode() -> None:
    rule = KernelRule()
    good, lucky = np.array([1.0, 0.0]) + 0.05 * np.eye(2)[[0, 1, 0, 1]], np.tile([-1.0, 0.0], (4, 1))
    elsewhere = 3.0 * np.stack([np.cos(np.arange(12.0)), np.sin(np.arange(12.0))], -1)
    latents = np.concatenate([good, lucky, elsewhere])[None]
    returns = np.array([[90.0, 88.0, 90.0, 89.0, 100.0, 0.0, 0.0, 0.0, *np.zeros(12)]])
    state = updated(rule, started(rule, 1), latents, returns)
    assert np.linalg.norm(state.mean[0] - [1.0, 0.0]) < 0.1
    np.testing.assert_allclose(state.log_std, np.log(0.3))
    again = updated(rule, state, latents, returns)
    np.testing.assert_allclose(again.log_std, np.log(0.15))


# -- the posterior rule


def test_large_rounds_exploit_a_hit_and_explore_without() -> None:
    rule, rng = PosteriorRule(), np.random.default_rng(0)
    latents = rule.propose(started(rule, 2), 50, rng)
    returns = rng.normal(-400.0, 2.0, (2, 50))
    returns[0] += 200.0 * np.exp(-0.5 * np.sum((latents[0] - [1.0, 0.5]) ** 2, axis=-1) / 0.4**2)
    state = updated(rule, started(rule, 2), latents, returns)
    near = np.linalg.norm(rule.propose(state, 50, rng) - [1.0, 0.5], axis=-1) < 0.5
    assert near[0].sum() >= 40
    assert near[1].sum() <= 15
    assert np.linalg.norm((state.mean, state.log_std)[0][0] - [1.0, 0.5]) < 0.3


# -- how many episodes they need


@pytest.mark.parametrize(
    ("name", "after_5", "after_20"),
    [
        ("policy_gradient", 0.24, 0.32),
        ("natural_gradient", 0.24, 0.34),
        ("reward_weighted", 0.54, 0.67),
        ("cross_entropy", 0.53, 0.65),
        ("kernel", 0.45, 0.70),
        ("posterior", 0.61, 0.88),
    ],
)
def test_success_after_few_episodes(name: str, after_5: float, after_20: float) -> None:
    fresh, _ = run(make_rule(name), HalfCircle.sample(100, 0), 4, 5)
    assert fresh[1] > after_5
    assert fresh[4] > after_20


@pytest.mark.parametrize(("name", "after_1", "after_3"), [("kernel", 0.90, 0.95), ("posterior", 0.95, 0.97)])
def test_tasks_solved_in_rounds_of_50_episodes(name: str, after_1: float, after_3: float) -> None:
    _, solved = run(make_rule(name), HalfCircle.sample(60, 1), 3, 50)
    assert solved[1] > after_1
    assert solved[3] > after_3
