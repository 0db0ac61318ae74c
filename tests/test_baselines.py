"""Advantages against a plain loop, the linear baseline against numpy's least squares, the critic by what it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.adaptation.rounds import play
from sb3_maesn.common.baselines import (
    RIDGE,
    discounted_sums,
    estimate_advantages,
    explained_variance,
    linear_features,
    linear_values,
    mean_values,
)
from sb3_maesn.common.critic import critic_values, fit_critic
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.type_aliases import MetaBatch, Rollout, Tasks
from tests.toy import ThirdParty

STEPS, TASKS, EPISODES, SIZE = 12, 2, 7, 3


def make_rollout(dtype: th.dtype = th.float64) -> Rollout:
    """Random episodes, one of them short and one invalid; what lies past an end is random too."""
    generator = th.Generator().manual_seed(0)
    shape = (STEPS, TASKS, EPISODES)
    mask = th.ones(shape, dtype=dtype)
    mask[8:, 0, 2] = 0.0
    mask[:, 1, 5] = 0.0
    observations = th.randn(*shape, SIZE, generator=generator, dtype=dtype)
    rewards = (observations.sum(dim=-1) + th.randn(shape, generator=generator, dtype=dtype)) * mask
    zeros = th.zeros(*shape, 2, dtype=dtype)
    latents = th.randn(TASKS, EPISODES, 2, generator=generator, dtype=dtype)
    return Rollout(
        observations,
        zeros,
        DiagGaussian(zeros, zeros[:1, :1, :1]),
        zeros[..., 0],
        rewards,
        mask,
        latents,
        latents,
        np.zeros((TASKS, EPISODES)),
    )


def no_values(rollout: Rollout, _: th.Tensor) -> th.Tensor:
    return th.zeros_like(rollout.rewards)


def test_discounted_sums_equal_a_plain_loop() -> None:
    rewards = make_rollout().rewards
    got = discounted_sums(rewards, 0.9)
    for t in range(STEPS):
        expected = sum(0.9 ** (s - t) * rewards[s] for s in range(t, STEPS))
        assert th.allclose(got[t], th.as_tensor(expected))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.8, 1.0])
def test_generalised_advantages_equal_a_plain_loop(gae_lambda: float) -> None:
    rollout, gamma = make_rollout(), 0.95
    values = th.randn(rollout.rewards.shape, generator=th.Generator().manual_seed(1), dtype=th.float64)
    batch = estimate_advantages(rollout, gamma, gae_lambda, lambda *_: values)
    for task in range(TASKS):
        for episode in range(EPISODES):
            length = int(rollout.mask[:, task, episode].sum())
            advantage = 0.0
            for t in reversed(range(length)):
                following = values[t + 1, task, episode].item() if t + 1 < length else 0.0
                reward, value = rollout.rewards[t, task, episode].item(), values[t, task, episode].item()
                advantage = reward + gamma * following - value + gamma * gae_lambda * advantage
                assert batch.advantages[t, task, episode].item() == pytest.approx(advantage)
            assert bool((batch.advantages[length:, task, episode] == 0).all())


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_an_episode_is_judged_as_a_whole_whatever_the_lambda_of_its_steps(gae_lambda: float) -> None:
    rollout = make_rollout()
    got = estimate_advantages(rollout, 0.9, gae_lambda, lambda rollout, returns: 0.5 * returns)
    for task, episode in np.ndindex(TASKS, EPISODES):
        expected = sum(0.5 * 0.9**t * rollout.rewards[t, task, episode] for t in range(STEPS))
        assert got.episodes.advantages[task, episode] == pytest.approx(float(expected))


def test_episodes_that_are_equally_good_give_no_advantages() -> None:
    """What a fit makes of them are its errors, which normalisation would blow up."""
    rollout = make_rollout(th.float32)
    rewards = th.full_like(rollout.rewards, -0.3) * rollout.mask
    rewards[:, 1] = th.linspace(-1.0, 0.5, STEPS).unsqueeze(1) * rollout.mask[:, 1]  # equal episodes of unequal steps
    batch = estimate_advantages(replace(rollout, rewards=rewards), 0.99, 1.0)
    assert batch.advantages[:, 0].abs().max() > 0.0  # an episode of this task is short
    assert (batch.advantages[:, 1] == 0.0).all()
    one = replace(rollout.at_tasks(slice(1, 2)).first_episodes(1), rewards=rewards[:, 1:, :1])
    assert estimate_advantages(one, 0.99, 1.0, no_values).advantages.abs().max() > 0.0  # nothing to compare with


def test_values_of_small_rounds_are_means_over_episodes() -> None:
    rollout = make_rollout()
    returns = discounted_sums(rollout.rewards, 0.9)
    values = mean_values(rollout, returns)
    known = rollout.mask[3, 0] > 0
    assert values[3, 0, 0].item() == pytest.approx(returns[3, 0][known].mean().item())
    assert (values[rollout.mask == 0] == 0.0).all()
    one = rollout.first_episodes(1)
    assert (mean_values(one, returns[:, :, :1]) == 0.0).all()


def test_linear_features() -> None:
    observations = th.tensor([[[1.0, -20.0]], [[2.0, 0.5]]])  # (T, N, O), one value beyond the clip
    features = linear_features(observations)
    assert features.shape == (2, 1, 8)
    expected = [1.0, -10.0, 1.0, 100.0, 0.01, 0.01**2, 0.01**3, 1.0]
    assert features[0, 0].tolist() == pytest.approx(expected)
    assert features[1, 0, 4:].tolist() == pytest.approx([0.02, 0.02**2, 0.02**3, 1.0])


def test_linear_values_equal_regularised_least_squares_on_the_valid_steps() -> None:
    rollout = make_rollout()
    returns = discounted_sums(rollout.rewards, 0.97)
    values = linear_values(rollout, returns)
    for task in range(TASKS):
        valid = rollout.mask[:, task].numpy() > 0
        features = linear_features(rollout.observations[:, task]).numpy()[valid][:, :-1]  # the last one is constant
        features = (features - features.mean(axis=0)) / features.std(axis=0)
        targets = returns[:, task].numpy()[valid]
        # least squares with one more row for each feature is ridge regression
        ridge = np.sqrt(RIDGE * len(targets)) * np.eye(features.shape[1])
        rows = np.concatenate([features, ridge]), np.concatenate([targets - targets.mean(), np.zeros(len(ridge))])
        solution, *_ = np.linalg.lstsq(*rows, rcond=None)
        assert np.allclose(values[:, task].numpy()[valid], features @ solution + targets.mean())
        assert (values[:, task].numpy()[~valid] == 0).all()


def test_linear_values_ignore_what_lies_past_an_end() -> None:
    rollout = make_rollout()
    returns = discounted_sums(rollout.rewards, 0.97)
    changed = replace(rollout, observations=rollout.observations.clone())
    changed.observations[rollout.mask == 0] = 9.0
    assert th.allclose(linear_values(rollout, returns), linear_values(changed, returns))


def test_each_task_has_a_fit_of_its_own() -> None:
    rollout = make_rollout()
    returns = discounted_sums(rollout.rewards, 0.97)
    other = returns.clone()
    other[:, 1] *= -3.0
    assert th.equal(linear_values(rollout, returns)[:, 0], linear_values(rollout, other)[:, 0])


def test_constant_features_and_float32_do_no_harm() -> None:
    rollout = make_rollout(th.float32)
    rollout.observations[..., 0] = 1e-3
    values = linear_values(rollout, discounted_sums(rollout.rewards, 0.97))
    assert bool(th.isfinite(values).all())


def test_explained_variance() -> None:
    mask, returns = make_rollout().mask, make_rollout().rewards
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(th.zeros_like(returns), returns, mask) == pytest.approx(0.0)
    assert np.isnan(explained_variance(returns, th.ones_like(returns), mask))
    assert np.isnan(explained_variance(returns, returns, th.zeros_like(mask)))  # nothing valid


# The critic


@pytest.fixture
def policy() -> LatentActorCriticPolicy:
    th.manual_seed(0)
    return LatentActorCriticPolicy(
        spaces.Box(-np.inf, np.inf, (SIZE,), np.float64),
        spaces.Box(-1.0, 1.0, (2,), np.float32),
        lambda _: 1e-2,
        net_arch=[16],
    )


def test_critic_values_are_those_of_the_policy(policy: LatentActorCriticPolicy) -> None:
    rollout = make_rollout(th.float32)
    values = critic_values(policy, rollout)
    for t, task, episode in [(0, 0, 0), (5, 1, 3), (11, 1, 6)]:
        observation = rollout.observations[t, task, episode][None]
        expected = policy.predict_values(observation, rollout.latents[task, episode][None])
        assert values[t, task, episode].item() == pytest.approx(expected.item(), abs=1e-6)


def test_fitting_the_critic_lowers_its_loss_and_touches_nothing_else(policy: LatentActorCriticPolicy) -> None:
    batch = estimate_advantages(make_rollout(th.float32), 0.9, 1.0, no_values)
    meta_batch = MetaBatch(Tasks(np.arange(TASKS), [0, 1]), (batch.episodes,), batch)
    critic = {id(parameter) for parameter in policy.critic_parameters()}
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    losses = [fit_critic(policy, meta_batch, 20) for _ in range(5)]
    assert losses[-1] < 0.8 * losses[0]
    for name, value in policy.named_parameters():
        assert th.equal(value, before[name]) == (id(value) not in critic), name


def test_advantages_keep_no_graph_of_the_critic(policy: LatentActorCriticPolicy) -> None:
    batch = estimate_advantages(make_rollout(th.float32), 0.9, 1.0, lambda rollout, _: critic_values(policy, rollout))
    assert not batch.advantages.requires_grad


def test_observations_too_large_for_a_linear_fit_are_refused() -> None:
    env = MultiTaskVecEnv(ThirdParty(4, 5), horizon=5, train_tasks=[1.0])
    model = MAESN("LatentMlpPolicy", env, meta_batch_size=1, n_episodes=4, policy_kwargs={"net_arch": [4]})
    rollout = play(model.agent(), env, [1.0], np.zeros((1, 4, 2)), np.random.default_rng(0))
    large = replace(rollout, observations=rollout.observations.expand(-1, -1, -1, 1001))
    with pytest.raises(
        ValueError, match="at most 1000 numbers for the linear baseline, got 1001: wrap the environment"
    ):
        linear_values(large, large.rewards)
