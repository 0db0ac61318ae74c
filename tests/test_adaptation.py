"""Rounds of adaptation: what the rule sees, what is recorded, and what happens to diverged episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.adaptation import rounds
from sb3_maesn.common.adaptation.learners import LatentLearner
from sb3_maesn.common.adaptation.rounds import AdaptationResult, adapt_to_tasks
from sb3_maesn.common.adaptation.rule import AdaptationRule, AdaptationState
from sb3_maesn.common.baselines import estimate_advantages
from sb3_maesn.common.type_aliases import Rollout, StepSizes
from sb3_maesn.envs import make_vec
from tests.toy import ThirdParty

STEPS = StepSizes(th.tensor([0.5, 1.5]), th.tensor([0.25, 2.0]), th.tensor(0.0), {})


def make_model(env: Any = None, **kwargs: Any) -> MAESN:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", 12)) if env is None else env
    kwargs = {"policy_kwargs": {"net_arch": [8], "ortho_init": False}} | kwargs
    return MAESN("LatentMlpPolicy", env, meta_batch_size=3, n_episodes=4, seed=0, **kwargs)


class Spy(AdaptationRule):
    """Proposes latents at ``offset`` and moves the distribution by 1 after each round; notes what it is told."""

    offset = 100.0

    def __init__(self) -> None:
        self.told: list[tuple[np.ndarray, ...]] = []

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> np.ndarray:
        return super().propose(state, n_episodes, rng) + self.offset

    def update(
        self,
        state: AdaptationState,
        latents: np.ndarray,
        returns: np.ndarray,
        advantages: np.ndarray,
        rng: np.random.Generator,
        valid: np.ndarray | None = None,
    ) -> AdaptationState:
        known, n = super().update(state, latents, returns, advantages, rng, valid), latents.shape[1]
        self.told.append((latents, known.returns[:, -n:], known.advantages[:, -n:]))
        return known

    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return state.mean + 1.0, state.log_std - 0.5


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, Rollout]]:
    """Latents and rollouts of all rounds."""
    record: list[tuple[np.ndarray, Rollout]] = []
    play = rounds.play

    def noting(agent: Any, env: Any, tasks: Any, latents: np.ndarray, rng: Any, theta: Any) -> Rollout:
        rollout = play(agent, env, tasks, latents, rng, theta)
        record.append((latents, rollout))
        return rollout

    monkeypatch.setattr(rounds, "play", noting)
    return record


def test_the_rule_sees_its_own_episodes_and_no_others(played: list[tuple[np.ndarray, Rollout]]) -> None:
    model, rule = make_model(), Spy()
    assert model.env is not None
    tasks = model.env.task_set("test")[:3]
    result, ((mean, log_std), _) = adapt_to_tasks(
        model.agent(), model.env, tasks, LatentLearner(rule), 2, 5, np.random.default_rng(0), n_eval_episodes=40
    )
    assert (len(played), len(rule.told)) == (3, 2)
    for r, (latents, rollout) in enumerate(played):
        own, fresh = latents[:, :5], latents[:, 5:]
        assert fresh.shape == (3, 40, 2)
        # the fresh ones come from the distribution that adaptation would return, the others from the rule
        assert own.mean() == pytest.approx(100.0 + r, abs=1.0)
        assert fresh.mean() == pytest.approx(r, abs=0.3)
        assert fresh.std() == pytest.approx(np.exp(-0.5 * r), rel=0.2)
        assert (result.mean[r] == r).all()
        assert (result.log_std[r] == -0.5 * r).all()
        assert np.allclose(result.latents[r], own)
        assert np.allclose(result.returns[r], rollout.returns[:, :5])
        assert np.allclose(result.eval_returns[r], rollout.returns[:, 5:])
        assert (result.eval_success[r] == rollout.success[:, 5:]).all()
    for r, (latents, returns, advantages) in enumerate(rule.told):
        assert np.allclose(latents, result.latents[r])
        assert (returns == result.returns[r]).all()
        seen = played[r][1].first_episodes(5)
        batch = estimate_advantages(seen, model.gamma, model.gae_lambda)
        assert np.allclose(advantages, batch.episode_advantages)
    assert (mean == 2.0).all()
    assert (log_std == -1.0).all()


def test_the_baseline_is_that_of_meta_training() -> None:
    model, rule = make_model(baseline="critic"), Spy()
    model.learn(1)
    assert model.env is not None
    adapt_to_tasks(
        model.agent(), model.env, model.env.task_set("test")[:1], LatentLearner(rule), 1, 5, np.random.default_rng(0)
    )
    latents, _, advantages = rule.told[0]
    start = th.zeros(5, 2)
    values = model.policy.predict_values(start, th.as_tensor(latents[0], dtype=th.float32)).detach().numpy()[:, 0]
    rewards = advantages[0] + values  # the discounted returns: near minus the sum of 20 discounted distances
    assert (rewards < -5.0).all()
    assert (rewards > -60.0).all()


def test_a_round_too_small_for_a_baseline_is_judged_by_its_returns() -> None:
    """A baseline that is fitted to four episodes explains most of what tells them apart."""
    model, rule = make_model(), Spy()
    assert model.env is not None
    adapt_to_tasks(
        model.agent(), model.env, model.env.task_set("test")[:2], LatentLearner(rule), 1, 4, np.random.default_rng(0)
    )
    _, returns, advantages = rule.told[0]
    for own, judged in zip(returns, advantages, strict=True):
        assert np.corrcoef(own, judged)[0, 1] > 0.95
    assert (advantages > returns).all()  # discounted


@pytest.mark.parametrize(
    ("eval_rounds", "with_episodes"), [(None, [0, 1, 2]), ([], []), ({0, 2}, [0, 2]), (np.arange(2), [0, 1])]
)
def test_fresh_episodes_in_some_rounds(eval_rounds: Any, with_episodes: list[int]) -> None:
    model = make_model()
    assert model.env is not None
    result, _ = adapt_to_tasks(
        model.agent(),
        model.env,
        model.env.task_set("test")[:2],
        LatentLearner(Spy()),
        2,
        3,
        np.random.default_rng(0),
        4,
        eval_rounds,
    )
    assert result.eval_returns.shape == result.eval_success.shape == (3, 2, 4)
    finite = [r for r in range(3) if np.isfinite(result.eval_returns[r]).all()]
    assert finite == with_episodes
    assert np.isnan(result.eval_returns).sum() == 8 * (3 - len(with_episodes))


def test_the_last_round_can_be_left_out() -> None:
    model = make_model()
    assert model.env is not None
    task = model.env.task_set("test")[:1]
    results = [
        adapt_to_tasks(
            model.agent(), model.env, task, LatentLearner(Spy()), 2, 3, np.random.default_rng(0), last_round=last
        )
        for last in (True, False)
    ]
    assert [len(result.returns) for result, _ in results] == [3, 2]
    assert (results[0][0].returns[:2] == results[1][0].returns).all()
    assert bool((results[0][1].omega.mean == results[1][1].omega.mean).all())


class Unstable(ThirdParty):
    """One in two episodes of task -2 diverges, and all of task -3."""

    def end_info(self, member: int) -> dict[str, Any]:
        task = self.tasks[member]
        return {"is_success": False, "diverged": bool(task == -3.0 or (task == -2.0 and member % 2))}


def test_a_diverged_episode_is_as_good_as_the_worst() -> None:
    """Dropped rewards add up to 0, which would be the best return of all in these tasks."""
    tasks = [-1.0, -2.0, -3.0]
    env, rule = MultiTaskVecEnv(Unstable(12, 5), horizon=5, train_tasks=tasks), Spy()
    model = make_model(env)
    result, _ = adapt_to_tasks(model.agent(), env, tasks, LatentLearner(rule), 1, 4, np.random.default_rng(0))
    assert result.returns[0].tolist() == [[-5.0] * 4, [-10.0] * 4, [-10.0] * 4]
    assert result.lengths[0].tolist() == [[5.0] * 4, [5.0, 0.0] * 2, [0.0] * 4]
    _, returns, advantages = rule.told[0]
    assert (returns[:2] == result.returns[0, :2]).all()
    assert returns[2].tolist() == [0.0] * 4  # a rule does not look at other tasks; equal returns tell it nothing
    assert np.isfinite(advantages).all()
    assert advantages[1, 1] == advantages[1, [0, 2]].min()
    everything, _ = adapt_to_tasks(model.agent(), env, [-3.0], LatentLearner(Spy()), 1, 4, np.random.default_rng(0))
    assert np.isnan(everything.returns).all()


def test_an_episode_that_diverged_is_no_better_than_those_of_earlier_rounds() -> None:
    rule, rng = Spy(), np.random.default_rng(0)
    state = rule.start(np.zeros((2, 2)), np.zeros((2, 2)))
    valid = np.array([[True, False], [False, False]])
    for returns in ([[-9.0, 0.0], [0.0, 0.0]], [[-1.0, 0.0], [-3.0, 0.0]]):
        state = rule.update(state, np.zeros((2, 2, 2)), np.array(returns), np.array(returns) - 1.0, rng, valid)
        valid = np.array([[True, False], [True, False]])
    assert state.returns.tolist() == [[-9.0, -9.0, -1.0, -9.0], [-3.0, -3.0, -3.0, -3.0]]
    assert state.advantages.tolist() == [[-10.0, -10.0, -2.0, -10.0], [-4.0, -4.0, -4.0, -4.0]]
    nothing = np.full((2, 2), np.nan)  # of episodes that diverged, which does not count
    after = rule.update(state, np.zeros((2, 2, 2)), nothing, nothing, rng, np.zeros((2, 2), dtype=bool))
    assert after.returns[:, 4:].tolist() == [[-9.0] * 2, [-3.0] * 2]


def test_diverged_episodes_are_compared_with_those_that_the_rule_sees() -> None:
    """Fresh episodes stay out of what the rule is told, even as the worst ones."""
    env, rule = MultiTaskVecEnv(Unstable(6, 5), horizon=5, train_tasks=[-2.0, 1.0, 2.0]), Spy()
    model = make_model(env)
    result, _ = adapt_to_tasks(
        model.agent(), env, [-2.0], LatentLearner(rule), 1, 1, np.random.default_rng(0), n_eval_episodes=5
    )
    assert result.returns[0].tolist() == [[-10.0]]
    assert np.isfinite(result.eval_returns).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((2.0, 3, 0, None), r"n_rounds must be an integer, got 2\.0"),
        ((2, 3, 1, [3]), r"eval_rounds must be among the rounds \[0, 1, 2\], got \[3\]"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(numbers: tuple[Any, ...], message: str) -> None:
    model, (n_rounds, n_episodes, n_eval_episodes, eval_rounds) = make_model(), numbers
    assert model.env is not None
    task, rng = model.env.task_set("test")[:1], np.random.default_rng(0)
    with pytest.raises(ValueError, match=message):
        adapt_to_tasks(
            model.agent(),
            model.env,
            task,
            LatentLearner(Spy()),
            n_rounds,
            n_episodes,
            rng,
            n_eval_episodes,
            eval_rounds,
        )


# Numbers


def result_of(success: Any, returns: Any) -> AdaptationResult:
    success, returns = np.asarray(success, dtype=float), np.asarray(returns, dtype=float)
    n_rounds, n_tasks, _ = success.shape
    latent = np.zeros((n_rounds, n_tasks, 2))
    return AdaptationResult(returns, success, returns, np.zeros((*success.shape, 2)), latent, latent, returns, success)


def test_summaries() -> None:
    success = [[[0, 0, 0, 1], [0, 0, 1, 1]], [[1, 1, 1, 0], [0, 1, 0, 0]]]  # 2 rounds, 2 tasks, 4 episodes
    result = result_of(success, np.arange(16).reshape(2, 2, 4))
    assert result.success_rate.tolist() == [3 / 8, 4 / 8]
    assert result.mean_return.tolist() == [3.5, 11.5]
    assert result.solved.tolist() == [[False, True], [True, False]]  # half of the episodes are enough
    assert result.solved_rate.tolist() == [0.5, 0.5]


def test_success_that_is_known_of_some_episodes_only() -> None:
    nan = np.nan
    result = result_of([[[0, 1, nan, 1], [nan] * 4], [[nan] * 4, [nan] * 4]], np.zeros((2, 2, 4)))
    np.testing.assert_array_equal(result.success_rate, [2 / 3, nan])
    assert result.solved.tolist() == [[True, False], [False, False]]
    np.testing.assert_array_equal(result.solved_rate, [1.0, nan])


class Silent(ThirdParty):
    """An episode of member 1 diverges and does not say whether it succeeded."""

    def end_info(self, member: int) -> dict[str, Any]:
        return {"diverged": True} if member == 1 else {"is_success": True}


def test_an_episode_that_diverged_without_a_word_failed() -> None:
    env = MultiTaskVecEnv(Silent(4, 5), horizon=5, train_tasks=[1.0] * 3)
    result, _ = adapt_to_tasks(
        make_model(env).agent(), env, [1.0], LatentLearner(Spy()), 0, 4, np.random.default_rng(0)
    )
    assert result.success[0, 0].tolist() == [1.0, 0.0, 1.0, 1.0]


def test_a_saved_result_comes_back(tmp_path: Path) -> None:
    result = result_of(np.full((2, 1, 3), np.nan), np.arange(6).reshape(2, 1, 3))
    result.save(tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["result.npz"]
    loaded = AdaptationResult.load(tmp_path / "result")
    assert (loaded.returns == result.returns).all()
    assert np.isnan(loaded.success).all()
    assert vars(loaded).keys() == vars(result).keys()


def test_a_policy_without_a_latent_has_nothing_to_adapt() -> None:
    model = make_model(policy_kwargs={"latent_dim": 0, "net_arch": [8]})
    assert model.env is not None
    task = model.env.task_set("test")[:1]
    with pytest.raises(ValueError, match=r"adapts a latent, but the policy has latent_dim=0: .* got n_rounds=1"):
        adapt_to_tasks(model.agent(), model.env, task, LatentLearner(Spy()), 1, 3, np.random.default_rng(0))
    result, _ = adapt_to_tasks(model.agent(), model.env, task, LatentLearner(Spy()), 0, 3, np.random.default_rng(0))
    assert result.returns.shape == (1, 1, 3)
