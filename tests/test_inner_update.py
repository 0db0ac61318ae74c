"""The inner update: estimators against closed forms and known gradients, masks, one step for training and test."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.adaptation.rounds import play
from sb3_maesn.common.adaptation.rules import PolicyGradientRule
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import (
    INNER_UPDATES,
    InnerUpdate,
    inner_update,
    likelihood_ratio_gradient,
    reward_weighted_target,
    sample_z,
    whole,
)
from sb3_maesn.common.objectives import normalise_episodes
from sb3_maesn.common.type_aliases import Adapted, EpisodeBatch, NamedParameters, Rollout, StepSizes, TaskBatch
from sb3_maesn.envs import make_vec
from tests.toy import MetaProblem, unadapted


def normal(*shape: int, seed: int = 0) -> th.Tensor:
    return th.randn(shape, generator=th.Generator().manual_seed(seed), dtype=th.float64)


def unit_steps(latent_dim: int, log_temperature: float = 0.0) -> StepSizes:
    one = th.ones(latent_dim, dtype=th.float64)
    return StepSizes(one, one, th.tensor(log_temperature, dtype=th.float64), {})


def no_actor(theta: NamedParameters, observations: th.Tensor, latents: th.Tensor) -> Any:
    raise AssertionError("the actor has no part in this update")


def episodes(latents: DiagGaussian, n: int, mask: th.Tensor | None = None, seed: int = 1) -> EpisodeBatch:
    n_tasks, latent_dim = latents.mean.shape
    noise = normal(n_tasks, n, latent_dim, seed=seed)
    mask = th.ones(n_tasks, n, dtype=th.float64) if mask is None else mask
    return EpisodeBatch(sample_z(latents, noise), noise, normal(n_tasks, n, seed=seed + 1), mask)


# Likelihood ratio


def test_likelihood_ratio_gradient_equals_autograd_of_the_mean_weighted_log_density() -> None:
    latents = DiagGaussian(normal(3, 2).requires_grad_(), (0.3 * normal(3, 2, seed=5)).requires_grad_())
    batch = episodes(DiagGaussian(*(part.detach() for part in latents)), 6)
    got = likelihood_ratio_gradient(latents, batch.latents, batch.advantages, batch.mask)
    density = th.distributions.Normal(latents.mean[:, None], latents.log_std.exp()[:, None])
    objective = (batch.advantages * density.log_prob(batch.latents).sum(dim=-1)).mean(dim=1).sum()
    for mine, autograd in zip(got, th.autograd.grad(objective, list(latents)), strict=True):
        assert th.allclose(mine, autograd, rtol=1e-12)


def test_likelihood_ratio_gradient_by_hand() -> None:
    latents = DiagGaussian(th.tensor([[1.0]]), th.tensor([[math.log(2.0)]]))
    z, advantages = th.tensor([[[3.0], [-3.0]]]), th.tensor([[1.0, -1.0]])
    got = likelihood_ratio_gradient(latents, z, advantages, th.ones(1, 2))
    # (z - mean) / std^2 = 1/2, -1, times 1, -1, averaged; ((z - mean) / std)^2 - 1 = 0, 3 likewise
    assert got.mean.item() == pytest.approx(0.75)
    assert got.log_std.item() == pytest.approx(-1.5)


def linear_problem(n: int, mean: float, log_std: float) -> tuple[Any, TaskBatch]:
    """Two steps, a_t = 0.7 z + 0.5 e_t, reward -(a_t - 2)^2: E[R] = -2 ((0.7 mean - 2)^2 + 0.49 std^2 + 0.25)."""

    def actor(theta: NamedParameters, observations: th.Tensor, latents: th.Tensor) -> DiagGaussian:
        return DiagGaussian(0.7 * latents, th.tensor(math.log(0.5), dtype=th.float64).expand(1, 1, 1, 1))

    noise = normal(1, n, 1, seed=11)
    z = sample_z(DiagGaussian(th.tensor([[mean]]).double(), th.tensor([[log_std]]).double()), noise)
    distribution = actor({}, z, z.expand(2, 1, n, 1))
    actions = distribution.sample(th.Generator().manual_seed(12))
    rewards = -(actions[..., 0] - 2.0).square()
    to_go = th.stack([rewards.sum(dim=0), rewards[1]])  # (T, B, K): what follows each step
    ones = th.ones(2, 1, n, dtype=th.float64)
    rollout = Rollout(
        actions, actions, distribution, distribution.log_prob(actions), rewards, ones, z, noise, np.zeros((1, n))
    )
    advantages = to_go - to_go.mean(dim=2, keepdim=True)
    return actor, TaskBatch(rollout, advantages, to_go, advantages[0], rollout.mask[0], 0.0)


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "reparameterised"])
def test_both_gradients_have_the_known_mean(estimator: str) -> None:
    mean, log_std = 0.4, -0.3
    actor, batch = linear_problem(400_000, mean, log_std)
    before = unadapted(th.tensor([[mean]]).double(), th.tensor([[log_std]]).double())
    after = inner_update(InnerUpdate(estimator), actor, {}, unit_steps(1), before, batch)
    scale = batch.advantages[0].std(correction=0).item()  # both estimators divide by it
    got_mean = (after.omega.mean - before.omega.mean).item() * scale
    got_log_std = (after.omega.log_std - before.omega.log_std).item() * scale
    assert got_mean == pytest.approx(-4 * 0.7 * (0.7 * mean - 2.0), rel=0.02)
    assert got_log_std == pytest.approx(-4 * 0.49 * math.exp(2 * log_std), rel=0.05)


def test_the_step_at_test_time_is_the_step_of_meta_training() -> None:
    latents = DiagGaussian(normal(3, 2), 0.3 * normal(3, 2, seed=5))
    batch = episodes(latents, 8)
    steps = StepSizes(th.tensor([0.5, 0.2]).double(), th.tensor([0.1, 0.4]).double(), th.tensor(0.0).double(), {})
    after = inner_update(InnerUpdate(), no_actor, {}, steps, Adapted(latents, None), batch).omega
    rule, rng = PolicyGradientRule([0.5, 0.2], [0.1, 0.4]), np.random.default_rng(0)
    state = rule.start(latents.mean.numpy(), latents.log_std.numpy())
    state = rule.update(state, batch.latents.numpy(), batch.advantages.numpy(), batch.advantages.numpy(), rng)
    assert np.allclose(state.mean, after.mean.detach().numpy(), rtol=1e-12)
    assert np.allclose(state.log_std, after.log_std.detach().numpy(), rtol=1e-12)


def test_a_reparameterised_update_of_equal_episodes_moves_nothing() -> None:
    """Rounding errors of the steps' advantages would be divided by next to nothing."""
    problem = MetaProblem()
    batch = whole(problem.batch_of.pre[0])
    ids = th.as_tensor(problem.batch_of.tasks.ids)
    before = unadapted(problem.params.omega.mean[ids], problem.params.omega.log_std[ids])
    equal = replace(batch, episode_advantages=th.full_like(batch.episode_advantages, -445.0))
    equal.episode_advantages[2] += th.linspace(0.0, 1.0, 5).double()
    spec = InnerUpdate("reparameterised")
    args = (spec, problem.actor, problem.params.theta, problem.params.step_sizes, before)
    after = inner_update(*args, equal)
    assert th.equal(after.omega.mean[:2], before.omega.mean[:2])
    assert bool(th.isfinite(after.omega.mean).all())
    assert not th.equal(after.omega.mean[2], before.omega.mean[2])


@pytest.mark.parametrize("estimator", INNER_UPDATES)
def test_equal_returns_give_no_advantage_over_a_fitted_baseline(estimator: str) -> None:
    """The baseline's errors differ between the episodes; they must not look like advantages."""
    env = MultiTaskVecEnv(make_vec("PointGoalSparse-v0", 40))
    model = MAESN("LatentMlpPolicy", env, meta_batch_size=2, inner_update=estimator, seed=0)
    agent, tasks = model.agent(), env.task_set("train")[:2]
    rollout = play(agent, env, tasks, np.random.default_rng(0).standard_normal((2, 20, 2)), np.random.default_rng(1))
    rollout.rewards[:] = -1.0
    batch = agent.judge(rollout)
    assert bool(batch.advantages.eq(0.0).all())
    assert bool(batch.episode_advantages.eq(0.0).all())
    before = unadapted(th.zeros(2, 2), th.zeros(2, 2))
    after = inner_update(agent.spec, agent.actor, agent.theta, agent.step_sizes, before, batch).omega
    plain = DiagGaussian(batch.rollout.noise.mean(dim=1), th.zeros(2, 2)) if estimator == "reward_weighted" else None
    assert th.allclose(after.mean, before.omega.mean if plain is None else plain.mean, atol=1e-6)


def test_equal_values_are_not_normalised() -> None:
    values, mask = th.full((1, 20), -19.999), th.ones(1, 20)
    assert bool(normalise_episodes(values, mask).eq(0.0).all())


# Reward weighted


def test_reward_weighted_target_is_the_weighted_mean_and_std() -> None:
    latents = DiagGaussian(normal(2, 3), 0.3 * normal(2, 3, seed=5))
    batch = episodes(latents, 5)
    temperature = 0.7
    got = reward_weighted_target(latents, batch.noise, batch.advantages / temperature, batch.mask)
    for task in range(2):
        weights = np.exp(batch.advantages[task].numpy() / temperature)
        mean = np.average(batch.latents[task].numpy(), axis=0, weights=weights)
        variance = np.average((batch.latents[task].numpy() - mean) ** 2, axis=0, weights=weights)
        assert np.allclose(got.mean[task], mean)
        assert np.allclose(got.log_std[task].exp(), np.sqrt(variance + 0.05**2))


def test_a_cold_reward_weighted_step_goes_to_the_best_episode() -> None:
    latents = DiagGaussian(normal(2, 3), th.zeros(2, 3).double())
    batch = episodes(latents, 5)
    after = inner_update(
        InnerUpdate("reward_weighted"), no_actor, {}, unit_steps(3, math.log(1e-3)), Adapted(latents, None), batch
    )
    best = batch.latents[th.arange(2), batch.advantages.argmax(dim=1)]
    assert th.allclose(after.omega.mean, best)
    assert th.allclose(after.omega.log_std.exp(), th.tensor(0.05).double())  # the least std


def test_balance_changes_the_reward_weighted_update_of_shared_episodes_only() -> None:
    latents = DiagGaussian(th.zeros(3, 2).double(), th.zeros(3, 2).double())
    own = episodes(latents, 6)
    shared = replace(own, groups=th.zeros(3, dtype=th.int64))

    def step(batch: EpisodeBatch, balance: bool) -> th.Tensor:
        spec = InnerUpdate("reward_weighted", balance=balance)
        return inner_update(spec, no_actor, {}, unit_steps(2), Adapted(latents, None), batch).omega.mean

    assert th.equal(step(own, balance=True), step(own, balance=False))
    assert not th.allclose(step(shared, balance=True), step(shared, balance=False))


# Masks


@pytest.mark.parametrize("estimator", ["likelihood_ratio", "reward_weighted"])
def test_an_invalid_episode_is_as_if_it_had_not_been_played(estimator: str) -> None:
    latents = DiagGaussian(normal(2, 2), 0.3 * normal(2, 2, seed=5))
    mask = th.ones(2, 6, dtype=th.float64)
    mask[:, 4] = 0.0
    batch = episodes(latents, 6, mask)
    batch.advantages[:, 4] = 1e6
    kept = [0, 1, 2, 3, 5]
    fewer = EpisodeBatch(*(part[:, kept] for part in (batch.latents, batch.noise, batch.advantages, batch.mask)))
    results = [
        inner_update(InnerUpdate(estimator), no_actor, {}, unit_steps(2), Adapted(latents, None), part).omega
        for part in (batch, fewer)
    ]
    for with_invalid, without in zip(*results, strict=True):
        assert th.allclose(with_invalid, without)


@pytest.mark.parametrize("estimator", INNER_UPDATES)
def test_a_task_without_a_valid_episode_stays_where_it_was(estimator: str) -> None:
    problem = MetaProblem()
    batch = problem.batch_of.pre[0]
    assert isinstance(batch, TaskBatch)
    batch.rollout.mask[:, 1] = 0.0
    batch.advantages[:, 1] = 0.0
    params, ids = problem.params, problem.batch_of.tasks.ids
    latents = DiagGaussian(*(part[ids].clone().requires_grad_() for part in params.omega))
    after = inner_update(
        InnerUpdate(estimator), problem.actor, params.theta, params.step_sizes, Adapted(latents, None), batch
    )
    for old, new in zip(latents, after.omega, strict=True):
        assert th.allclose(new[1], old[1])
        assert not th.allclose(new[0], old[0])
        (gradient,) = th.autograd.grad(new.sum(), old, retain_graph=True)
        assert bool(th.isfinite(gradient).all())


def test_std_floor_keeps_small_differences_small() -> None:
    latents = DiagGaussian(th.zeros(1, 1).double(), th.zeros(1, 1).double())
    batch = episodes(latents, 20)
    tiny = replace(batch, advantages=0.01 * batch.advantages)

    def shift(part: EpisodeBatch, floor: float) -> float:
        spec = InnerUpdate(std_floor=floor)
        return inner_update(spec, no_actor, {}, unit_steps(1), Adapted(latents, None), part).omega.mean.item()

    assert shift(tiny, 1e-8) == pytest.approx(shift(batch, 1e-8))
    assert shift(tiny, 3.0) == pytest.approx(0.01 * shift(batch, 3.0))


# Theta


def test_each_task_adapts_its_own_theta_by_its_own_gradient() -> None:
    problem = MetaProblem(adapt_policy=True)
    params, ids, batch = problem.params, problem.batch_of.tasks.ids, problem.batch_of.pre[0]
    before = unadapted(params.omega.mean[ids], params.omega.log_std[ids])
    spec = InnerUpdate(adapt_policy=True)
    after = inner_update(spec, problem.actor, params.theta, params.step_sizes, before, batch)
    assert after.theta is not None
    assert isinstance(batch, TaskBatch)
    rollout = batch.rollout
    for task in range(problem.batch):
        theta = {name: value.clone().requires_grad_() for name, value in params.theta.items()}
        z = rollout.latents[None, task].expand(problem.steps, *rollout.latents[task].shape)
        log_prob = problem.actor(theta, rollout.observations[:, task], z).log_prob(rollout.actions[:, task])
        mask = rollout.mask[:, task]
        advantages = batch.advantages[:, task][mask > 0]
        normalised = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
        objective = (log_prob[mask > 0] * normalised).mean()
        for name, gradient in zip(theta, th.autograd.grad(objective, list(theta.values())), strict=True):
            step = params.step_sizes.theta[name] * gradient
            assert th.allclose(after.theta[name][task], params.theta[name] + step, atol=1e-12), name


def test_the_update_needs_no_graph_around_it() -> None:
    problem = MetaProblem(n_inner_steps=2, adapt_policy=True)
    params, ids = problem.params, problem.batch_of.tasks.ids
    adapted = unadapted(params.omega.mean[ids], params.omega.log_std[ids])
    spec = InnerUpdate("reparameterised", adapt_policy=True)
    with th.no_grad():
        for batch in problem.batch_of.pre:
            adapted = inner_update(spec, problem.actor, params.theta, params.step_sizes, adapted, batch)
    assert not adapted.omega.mean.requires_grad
    assert all(not leaf.requires_grad for leaf in params.leaves())  # and leaves its arguments alone


# Refusals


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match=r"inner_update must be one of likelihood_ratio.*got 'reinforce'"):
        InnerUpdate("reinforce")


def test_shared_episodes_cannot_be_differentiated_through_the_policy() -> None:
    latents = DiagGaussian(normal(2, 2), normal(2, 2))
    with pytest.raises(ValueError, match="n_prior_episodes must be None"):
        inner_update(
            InnerUpdate("reparameterised"), no_actor, {}, unit_steps(2), Adapted(latents, None), episodes(latents, 4)
        )
