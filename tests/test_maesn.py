"""MAESN learns to explore: what it is for, on tasks small enough for a test."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.adaptation.rules import RULES
from sb3_maesn.envs import make_env, make_vec
from sb3_maesn.evaluation import evaluate_adaptation
from tests.toy import Walk

DENSE, SPARSE = "PointGoal-v0", "PointGoalSparse-v0"
GOAL = np.array([-0.8, 0.6])


@pytest.fixture(scope="module")
def trained() -> MAESN:
    """Forty meta-iterations in which the tasks share the prior's episodes: about four seconds."""
    model = MAESN(
        "LatentMlpPolicy",
        DENSE,
        n_episodes=10,
        n_prior_episodes=50,
        balance_episodes=True,
        inner_update="reward_weighted",
        temperature_init=0.15,
        gae_lambda=0.97,
        target_kl=0.03,
        seed=0,
    )
    return model.learn(40 * model.timesteps_per_iteration)


def mean_return(model: MAESN, env_id: str = SPARSE) -> float:
    """Over 100 episodes by SB3's own loop."""
    env = make_vec(env_id, 50)
    env.env_method("set_task", GOAL)
    env.seed(1)
    th.manual_seed(1)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=100, deterministic=False, warn=False)
    assert isinstance(mean, float)
    return mean


def snapshot(model: MAESN) -> dict[str, Any]:
    return {
        name: value.clone()
        for name, value in [*model.policy.state_dict().items(), *model.task_latents.state_dict().items()]
    }


# Learning


def test_shared_prior_episodes_teach_to_find_goals_from_sparse_reward(trained: MAESN) -> None:
    assert trained.env is not None
    tasks = trained.env.task_set("validation")[:50]
    result = evaluate_adaptation(trained, SPARSE, tasks, n_rounds=3, n_episodes=10, seed=0)
    assert result.success_rate[0] < 0.3
    assert result.success_rate[3] > 0.7
    assert result.solved_rate[3] > 0.7
    assert result.mean_return[3] > result.mean_return[0] + 5.0


def test_the_papers_algorithm_and_rule_teach_it_too() -> None:
    # discounts for episodes of 20 steps, larger steps for a short training
    model = MAESN(
        "LatentMlpPolicy", DENSE, gamma=0.9, gae_lambda=0.95, target_kl=0.03, latent_mean_init_std=0.0, seed=0
    )
    model.learn(40 * model.timesteps_per_iteration)
    assert model.env is not None
    tasks = model.env.task_set("validation")[:50]
    adapt = partial(evaluate_adaptation, model, tasks=tasks, n_rounds=3, n_episodes=50, rule="policy_gradient", seed=0)
    dense, sparse = adapt(env=DENSE), adapt(env=SPARSE)
    assert dense.mean_return[1] > dense.mean_return[0] + 3.0
    assert dense.success_rate[3] > dense.success_rate[0] + 0.3
    assert sparse.success_rate[1] > sparse.success_rate[0] + 0.05
    assert sparse.success_rate[3] > sparse.success_rate[0] + 0.1
    assert (model.task_latents.mean_step != 1.0).all()


@pytest.mark.parametrize("inner_update", ["likelihood_ratio", "reward_weighted"])
def test_discrete_actions(inner_update: str) -> None:
    env = MultiTaskVecEnv(DummyVecEnv([Walk] * 8))
    model = MAESN(
        "LatentMlpPolicy",
        env,
        meta_batch_size=8,
        n_episodes=10,
        inner_update=inner_update,
        latent_mean_init_std=0.0,
        target_kl=0.1,
        gamma=0.9,
        fisher_subsampling=1,
        policy_kwargs={"latent_dim": 1, "net_arch": [16], "ortho_init": False},
        seed=3,
    )
    model.learn(15 * model.timesteps_per_iteration)
    result = evaluate_adaptation(model, env, [-1.0, 1.0] * 8, 1, 20, rule="policy_gradient", seed=0)
    assert abs(result.mean_return[0]) < 1.0  # which side pays is not known
    assert result.mean_return[1] > result.mean_return[0] + 1.0


# Adaptation of one model to one task


def test_adapt_returns_a_better_model_and_leaves_the_old_one_as_it_was(trained: MAESN, tmp_path: Path) -> None:
    before = snapshot(trained)
    steps, updates = trained.num_timesteps, trained._n_updates
    adapted = trained.adapt(SPARSE, task=GOAL, n_rounds=3, n_episodes=20)
    assert mean_return(adapted) > mean_return(trained) + 5.0
    assert all(th.equal(value, before[name]) for name, value in snapshot(trained).items())
    assert (trained.num_timesteps, trained._n_updates, trained.adaptation) == (steps, updates, None)
    assert adapted.adaptation is not None
    assert adapted.adaptation.returns.shape == (3, 1, 20)
    assert not np.allclose(adapted.policy.latent_mean, 0.0)
    adapted.save(tmp_path / "adapted")
    assert mean_return(MAESN.load(tmp_path / "adapted")) == mean_return(adapted)


def test_the_adapted_model_shares_no_parameters(trained: MAESN) -> None:
    before = snapshot(trained)
    adapted = trained.adapt(SPARSE, task=GOAL, n_rounds=1, n_episodes=2)
    with th.no_grad():
        for parameter in [*adapted.policy.parameters(), *adapted.task_latents.parameters()]:
            parameter.add_(1.0)
    adapted.policy.set_latent_distribution(np.ones(2), np.ones(2))
    assert all(th.equal(value, before[name]) for name, value in snapshot(trained).items())
    weight = dict(adapted._actor.named_parameters())["action_net.weight"]
    assert weight is adapted.policy.action_net.weight  # its actor is that of its own policy


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("n_episodes", [1, 2])
def test_every_rule_works_from_one_episode_a_round(trained: MAESN, rule: str | None, n_episodes: int) -> None:
    adapted = trained.adapt(SPARSE, task=GOAL, n_rounds=4, n_episodes=n_episodes, rule=rule)
    assert adapted.adaptation is not None
    assert adapted.adaptation.returns.shape == (4, 1, n_episodes)
    assert bool(th.isfinite(adapted.policy.latent_mean).all())


def weights(model: MAESN) -> th.Tensor:
    return model.policy.state_dict()["action_net.weight"]


def test_theta_goes_on_after_the_latent(trained: MAESN) -> None:
    adapt = partial(trained.adapt, DENSE, task=GOAL, n_rounds=1, n_episodes=20)
    latent_only, further = adapt(), adapt(n_policy_rounds=8)
    assert len(further.policy_adaptation) == 8
    assert mean_return(further, DENSE) > mean_return(latent_only, DENSE) - 0.2  # there is little left to improve
    assert th.equal(further.policy.latent_mean, latent_only.policy.latent_mean)
    assert not th.equal(weights(further), weights(latent_only))
    assert th.equal(weights(trained), weights(latent_only))


def test_theta_alone_can_be_adapted() -> None:
    fresh = MAESN("LatentMlpPolicy", DENSE, target_kl=0.03, fisher_subsampling=2, seed=0)
    adapted = fresh.adapt(task=GOAL, n_rounds=0, n_episodes=20, n_policy_rounds=20)
    assert (adapted.policy.latent_mean == 0).all()
    assert adapted.adaptation is not None
    assert adapted.adaptation.returns.shape == (1, 1, 20)
    assert adapted.policy_adaptation[-1] > adapted.policy_adaptation[0] + 8.0
    assert mean_return(adapted, DENSE) > mean_return(fresh, DENSE) + 8.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: make_env(SPARSE),
        lambda: make_vec(SPARSE, 3),
        lambda: DummyVecEnv([partial(make_env, SPARSE)] * 2),
    ],
)
def test_adapt_takes_any_environment(trained: MAESN, make: Callable[[], Any]) -> None:
    adapted = trained.adapt(make(), task=GOAL, n_rounds=2, n_episodes=4)
    assert adapted.adaptation is not None
    assert adapted.adaptation.lengths.tolist() == [[[20.0] * 4]] * 2


def test_the_seed_of_an_adaptation_decides(trained: MAESN) -> None:
    means = [trained.adapt(SPARSE, task=GOAL, n_episodes=5, seed=s).policy.latent_mean for s in (1, 1, 2)]
    assert th.equal(means[0], means[1])
    assert not th.equal(means[0], means[2])


def test_an_adapted_model_is_where_the_next_adaptation_starts(trained: MAESN) -> None:
    once = trained.adapt(SPARSE, task=GOAL, n_rounds=2, n_episodes=10)
    twice = once.adapt(SPARSE, task=GOAL, n_rounds=1, n_episodes=10)
    assert twice.adaptation is not None
    assert np.allclose(twice.adaptation.mean[0, 0], once.policy.latent_mean)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task": None}, "expected a task .*, got None"),
        ({"task": [np.nan, 0.0]}, "finite"),
        ({"task": [5.0, 0.0]}, r"must lie in \[-2, 2\]"),
        ({"n_rounds": -1}, "n_rounds must not be negative, got -1"),
        ({"n_episodes": 0}, "n_episodes must be at least 1, got 0"),
        ({"n_policy_rounds": -1}, "n_policy_rounds must be at least 0, got -1"),
        ({"eta": 0.1}, r"eta goes with n_policy_rounds of at least 1, got eta=0\.1, n_policy_rounds=0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"task": [1.0]}, r"a task of PointGoalSparse must have shape \(2,\), got \(1,\)"),
        ({"rule": "guess"}, "rule must be one of policy_gradient.*got 'guess'"),
        ({"env": "PusherBlock-v0"}, "Observation spaces do not match"),
        ({"env": "Nowhere-v0"}, "unknown task family 'Nowhere-v0'"),
    ],
)
def test_bad_arguments_of_adapt(trained: MAESN, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained.adapt(**{"env": SPARSE, "task": GOAL, **kwargs})


def test_adapt_without_any_environment(trained: MAESN, tmp_path: Path) -> None:
    trained.save(tmp_path / "model")
    with pytest.raises(ValueError, match="expected an environment, got none: pass env"):
        MAESN.load(tmp_path / "model").adapt(task=GOAL)
