"""What training tasks tell about a new one: moments against numpy's, the episodes it saves, and that files keep it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sb3_maesn import MAESN, MAML
from sb3_maesn.common.adaptation import training_scores
from sb3_maesn.common.adaptation.learners import make_rule
from sb3_maesn.common.adaptation.posterior import excess_over_floor, hit_scores, prior_points
from sb3_maesn.common.adaptation.rounds import play
from sb3_maesn.common.adaptation.rules import PosteriorRule
from sb3_maesn.common.adaptation.score_prior import ScorePrior, learn_score_prior, uninformed
from sb3_maesn.common.type_aliases import Rollout
from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.evaluation import evaluate_adaptation
from sb3_maesn.tasks import tasks_of
from tests.test_adaptation_rules import HalfCircle, run
from tests.tiny import POINT, tiny

Array = NDArray[np.float64]
SPARSE = "PointGoalSparse-v0"
FAR_APART = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [-2.0, 1.0]])


def random_scores(n_tasks: int = 9) -> Array:
    return np.random.default_rng(0).random((n_tasks, len(FAR_APART)))


def half_circle(n_tasks: int, seed: int) -> HalfCircle:
    """Tasks in which a latent leads to one of two places, whatever the task."""
    return HalfCircle(np.random.default_rng(seed).uniform(0.0, np.pi, n_tasks), np.full(n_tasks, 0.3))


def prior_of_half_circle() -> ScorePrior:
    tasks, latents = half_circle(60, 5), prior_points(200, np.full(2, 0.2))
    everywhere = np.repeat(latents[None], 60, axis=0)
    returns, _ = tasks.play(everywhere, np.random.default_rng(3))
    excess = excess_over_floor(everywhere, returns)
    return learn_score_prior(latents, excess / excess.max(axis=1, keepdims=True), float(np.median(excess.max(axis=1))))


def test_moments_are_those_of_the_tasks() -> None:
    scores = random_scores()
    points = learn_score_prior(FAR_APART, scores, 1.0).at(FAR_APART[None])
    np.testing.assert_allclose(points.mean[0], scores.mean(axis=0))
    covariance = np.cov(scores, rowvar=False, bias=True)
    np.testing.assert_allclose(points.features[0] @ points.features[0].T, covariance, atol=1e-12)


def test_other_latents_are_interpolated_and_far_ones_are_as_the_nearest() -> None:
    prior = learn_score_prior(FAR_APART, random_scores(), 1.0)
    between, far = prior.at(np.array([[[1.0, 0.0], [9.0, 0.5]]])).mean[0]
    assert between == pytest.approx(prior.mean[:2].mean())
    assert far == pytest.approx(prior.mean[1])


def test_the_floor_of_a_task_that_most_latents_solve_is_none_of_its_hits() -> None:
    latents = prior_points(20, np.full(2, 0.5))[None]
    returns = np.full((1, 20), -200.0)
    returns[0, ::3] = -400.0
    assert excess_over_floor(latents, returns)[0, 1] == pytest.approx(200.0)


def test_scores_are_on_the_scale_of_the_training_tasks() -> None:
    prior = ScorePrior(FAR_APART, np.zeros(4), np.zeros((4, 1)), excess=100.0)
    latents, returns = FAR_APART[None], np.array([[-400.0, -400.0, -380.0, -400.0]])
    scores, evidence = hit_scores(latents, returns, prior)
    np.testing.assert_allclose(scores, [[0.0, 0.0, 0.2, 0.0]])
    assert evidence[0] == pytest.approx(0.2)
    assert hit_scores(latents, returns)[0].max() > 0.5  # where nothing is known, the best is a hit


def test_before_the_first_episode_there_is_nothing_to_score() -> None:
    scores, evidence = hit_scores(np.zeros((3, 0, 2)), np.zeros((3, 0)))
    assert scores.shape == (3, 0)
    assert (evidence == 0.0).all()


def test_points_without_knowledge() -> None:
    points = uninformed(FAR_APART[None], 0.3)
    assert (points.mean == 0.3).all()
    assert points.features.shape == (1, 4, 0)


def test_it_saves_episodes() -> None:
    tasks = half_circle(200, 8)
    blind, _ = run(PosteriorRule(), tasks, 2, 5)
    knowing, _ = run(PosteriorRule(prior=prior_of_half_circle()), tasks, 2, 5)
    assert knowing[1] > blind[1] + 0.02
    assert knowing[2] > blind[2] + 0.03


def test_the_first_picks_are_apart() -> None:
    rule = PosteriorRule(prior=prior_of_half_circle())
    zeros = np.zeros((2, 2))
    picks = rule.propose(rule.start(zeros, zeros), 5, np.random.default_rng(0))
    apart = np.linalg.norm(picks[:, :, None] - picks[:, None], axis=-1) + 9.0 * np.eye(5)
    assert apart.min() > 0.3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean": np.zeros(3)},
            r"expected latents \(N, L\), mean \(N,\) and features \(N, R\), got \[\(4, 2\), \(3,\)",
        ),
        ({"latents": np.zeros((0, 2))}, "expected latents"),
        ({"features": np.full((4, 1), np.nan)}, "expected a finite score prior"),
        ({"excess": 0.0}, "expected the excess of good returns to be positive, got 0"),
    ],
)
def test_what_is_no_prior_is_refused(change: dict[str, Any], message: str) -> None:
    good = {"latents": FAR_APART, "mean": np.zeros(4), "features": np.zeros((4, 1)), "excess": 1.0}
    with pytest.raises(ValueError, match=message):
        ScorePrior(**{**good, **change})


def test_a_prior_of_other_latents_is_refused() -> None:
    rule = PosteriorRule(prior=prior_of_half_circle())
    with pytest.raises(ValueError, match="score prior of latents of 5 dimensions, got one of 2"):
        rule.start(np.zeros((1, 5)), np.zeros((1, 5)))


def test_one_task_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"expected scores of at least 2 tasks, \(J, 4\), got \(1, 4\)"):
        learn_score_prior(FAR_APART, random_scores(1), 1.0)


# -- of a model


def test_shared_episodes_tell_what_episodes_of_each_task_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MAESN.from_pretrained("maesn-WheeledGoal-v0")
    env = MultiTaskVecEnv(make_vec("WheeledGoalSparse-v0", 200))
    tasks, latents = env.task_set("train")[:8], prior_points(25, np.full(2, 0.5))
    shared = training_scores._returns(model.agent(), env, tasks, latents, np.random.default_rng(0))
    monkeypatch.setattr(MultiTaskVecEnv, "shares_episodes", False)
    own = training_scores._returns(model.agent(), env, tasks, latents, np.random.default_rng(0))
    assert shared.shape == own.shape == (8, 25)
    assert np.corrcoef(shared.ravel(), own.ravel())[0, 1] > 0.9
    env.close()


@pytest.mark.parametrize("shared", [True, False])
def test_a_latent_whose_simulation_diverges_scores_worst(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MAESN.from_pretrained("maesn-WheeledGoal-v0")
    env = MultiTaskVecEnv(make_vec("WheeledGoalSparse-v0", 40))
    tasks, latents = env.task_set("train")[:4], prior_points(10, np.full(2, 0.5))

    def diverging(*args: Any) -> Rollout:
        rollout = play(*args)
        rollout.mask[:, :, 3] = 0.0
        rollout.rewards[:, :, 3] = 0.0
        return rollout

    monkeypatch.setattr(training_scores, "play", diverging)
    monkeypatch.setattr(MultiTaskVecEnv, "shares_episodes", shared)
    returns = training_scores._returns(model.agent(), env, tasks, latents, np.random.default_rng(0))
    np.testing.assert_array_equal(returns[:, 3], np.delete(returns, 3, axis=1).min(axis=1))
    env.close()


def test_a_model_learns_it_keeps_it_and_uses_it(tmp_path: Path) -> None:
    model = tiny()
    before = [value.clone() for value in model.policy.parameters()]
    model.learn_score_prior(SPARSE, n_latents=30, n_tasks=20)
    prior = model.score_prior
    assert prior is not None
    assert prior.latents.shape == (30, 2)
    assert all(bool((old == new).all()) for old, new in zip(before, model.policy.parameters(), strict=True))
    rule = make_rule(None, model.agent().step_sizes, model.agent().score_prior)
    assert isinstance(rule, PosteriorRule)
    assert rule.prior is prior
    model.save(tmp_path / "sb3")
    model.save_checkpoint(tmp_path / "agent", contents="agent")
    model.save_checkpoint(tmp_path / "all.zip")
    again = [MAESN.load_checkpoint(tmp_path / name).score_prior for name in ("agent", "all.zip")]
    for kept in (MAESN.load(tmp_path / "sb3").score_prior, *again):
        assert kept is not None
        points, expected = kept.at(prior.latents[None]), prior.at(prior.latents[None])
        np.testing.assert_allclose(points.mean, expected.mean, atol=1e-6)
        covariance, wanted = (part.features[0] @ part.features[0].T for part in (points, expected))
        np.testing.assert_allclose(covariance, wanted, atol=1e-6)
        assert kept.excess == pytest.approx(prior.excess)
    assert model.adapt(SPARSE, task=[0.0, 1.0], n_rounds=1, n_episodes=3).score_prior is None
    assert model.score_prior is prior


def test_a_model_that_solves_nothing_does_not_take_noise_for_hits() -> None:
    model = MAESN("LatentMlpPolicy", "WheeledGoal-v0", meta_batch_size=2, n_episodes=2, seed=0)
    model.learn_score_prior("WheeledGoalSparse-v0", n_latents=64, n_tasks=20)
    tasks = tasks_of("WheeledGoalSparse-v0", "validation", 10)
    result = evaluate_adaptation(model, "WheeledGoalSparse-v0", tasks, n_rounds=0, n_episodes=10)
    assert result.success.sum() == 0.0
    _, evidence = hit_scores(result.latents[0], result.returns[0], model.score_prior)
    assert (evidence >= 0.5).sum() <= 2


def test_an_adapted_model_learns_about_the_latents_that_it_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model, played = tiny(), []

    def spy(*args: Any) -> Rollout:
        played.append(args[3])
        return play(*args)

    monkeypatch.setattr(training_scores, "play", spy)
    model.policy.set_latent_distribution(np.array([3.0, 0.0]), np.log([0.5, 2.0]))
    model.learn_score_prior(SPARSE, n_latents=200, n_tasks=3)
    assert np.allclose(played[0][0].mean(axis=0), [3.0, 0.0], atol=0.1)
    assert np.allclose(played[0][0].std(axis=0), [0.5, 2.0], rtol=0.1)
    assert model.score_prior is not None
    assert np.allclose(model.score_prior.latents.mean(axis=0), 0.0, atol=0.1)  # in units of the model's distribution


def test_training_discards_it() -> None:
    model = tiny()
    model.learn_score_prior(SPARSE, n_latents=10, n_tasks=5)
    model.set_env(MultiTaskVecEnv(make_vec(POINT, 12)))
    model.learn(1, reset_num_timesteps=False)
    assert model.score_prior is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env": SPARSE, "n_latents": 1}, "expected at least 2 latents and 2 tasks, got n_latents=1, n_tasks=100"),
        ({"env": SPARSE, "n_tasks": 1}, "expected at least 2 latents and 2 tasks"),
        ({"env": SPARSE, "seed": -1}, "seed must be at least 0, got -1"),
        ({"env": "WheeledGoal-v0"}, "Observation spaces do not match"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny().learn_score_prior(**arguments)


def test_a_policy_without_a_latent_has_none() -> None:
    model = MAML("MlpPolicy", POINT, meta_batch_size=2, n_episodes=2)
    with pytest.raises(ValueError, match="expected a policy with a latent"):
        model.learn_score_prior()
