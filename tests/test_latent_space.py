"""LatentSpace: trained without adaptation, adapted all the same."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_maesn import LatentSpace, MultiTaskVecEnv
from sb3_maesn.envs import make_vec
from sb3_maesn.evaluation import evaluate_adaptation
from tests.tiny import POINT, assert_same, differ, log_of

SPARSE = "PointGoalSparse-v0"
GOAL = np.array([-0.8, 0.6])


def tiny(env: Any = None, **kwargs: Any) -> LatentSpace:
    defaults: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    env = MultiTaskVecEnv(make_vec(POINT, 12)) if env is None else env
    return LatentSpace("LatentMlpPolicy", env, **{**defaults, **kwargs})


@pytest.fixture(scope="module")
def trained() -> LatentSpace:
    """Forty iterations, with discounts for episodes of 20 steps and larger steps for a short training."""
    model = LatentSpace("LatentMlpPolicy", POINT, gamma=0.9, gae_lambda=0.95, target_kl=0.05, n_episodes=10, seed=0)
    return model.learn(40 * model.timesteps_per_iteration)


def test_each_training_task_has_a_latent_that_solves_it(trained: LatentSpace) -> None:
    row = trained.logger.name_to_value
    assert row["rollout/ep_rew_mean"] > -15.0  # never moving gives -20
    assert bool((trained.task_latents.mean.std(dim=0) > 0.1).all())
    assert trained.timesteps_per_iteration == 20 * 10 * 20  # no episodes before an inner update


def test_adaptation_finds_goals_in_the_latent_space(trained: LatentSpace) -> None:
    assert trained.env is not None
    tasks = trained.env.task_set("validation")[:40]
    for rule in ("policy_gradient", None):
        result = evaluate_adaptation(trained, SPARSE, tasks, n_rounds=3, n_episodes=20, rule=rule, seed=0)
        assert result.success_rate[3] > result.success_rate[0] + 0.05, rule


def test_the_test_time_step_sizes_are_the_initial_ones() -> None:
    small, large = (tiny(step_size_init=step).learn(1) for step in (0.5, 1.0))
    assert not differ(small, large)  # training knows nothing of them
    assert (large.task_latents.mean_step == 1.0).all()
    adapt = {"env": POINT, "task": GOAL, "n_rounds": 1, "n_episodes": 10, "rule": "policy_gradient"}
    half, whole = (model.adapt(**adapt).policy.latent_mean for model in (small, large))  # type: ignore[arg-type]  # of many types
    assert th.allclose(whole, 2.0 * half)
    assert (whole != 0).all()


def test_a_run_resumed_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    whole, half = tiny(), tiny()
    steps = whole.timesteps_per_iteration
    whole.learn(2 * steps)
    half.learn(steps).save(tmp_path / "half")
    resumed = LatentSpace.load(tmp_path / "half", env=MultiTaskVecEnv(make_vec(POINT, 12)))
    assert_same(resumed, half)
    resumed.learn(steps, reset_num_timesteps=False)
    assert_same(resumed, whole)


def test_sb3s_loop_draws_a_latent_an_episode() -> None:
    model = tiny()
    actions, carried = model.predict(np.zeros((5, 2)))
    assert actions.shape == (5, 2)
    assert carried is not None
    assert carried[0].shape == (5, 2)
    mean, _ = evaluate_policy(model, make_vec(POINT, 4), n_eval_episodes=8, warn=False)
    assert np.isfinite(mean)


def test_log() -> None:
    rows = log_of(tiny(), 2)  # the first step is logged with the second rollout
    assert "rollout/pre_ep_rew_mean" not in rows[-1]
    assert rows[-1]["train/prior_kl"] > 0.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(LatentSpace, "LatentMlpPolicy", "CartPole-v1"),
            "this environment has no tasks: expected members with",
        ),
        (partial(tiny, n_inner_steps=1), "LatentSpace is the algorithm with n_inner_steps=0, got 1"),
        (partial(tiny, learn_step_sizes=True), "learn_step_sizes=False, got True"),
        (partial(tiny, n_prior_episodes=10), "n_prior_episodes=None, got 10"),
        (partial(tiny, step_size_init=-1.0), r"step_size_init must be positive, got -1\.0"),
    ],
)
def test_what_is_not_latent_space_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
