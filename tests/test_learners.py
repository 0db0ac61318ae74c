"""Learners of the tasks at hand: which one a model and a rule make, and what the inner update does at test time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_maesn import MAESN, MAML, MetaOnPolicyAlgorithm, MultiTaskVecEnv
from sb3_maesn.common.adaptation.learners import (
    DEFAULT_RULE,
    InnerLearner,
    LatentLearner,
    Round,
    TaskLearner,
    make_learner,
    make_rule,
)
from sb3_maesn.common.adaptation.rounds import adapt_to_tasks, play
from sb3_maesn.common.adaptation.rules import RULES, KernelRule, PolicyGradientRule, step_scale
from sb3_maesn.common.inner_update import inner_update
from sb3_maesn.common.type_aliases import Adapted, StepSizes
from sb3_maesn.envs import make_vec

STEPS = StepSizes(th.tensor([0.5, 1.5]), th.tensor([0.25, 2.0]), th.tensor(0.0), {})
SMALL: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "seed": 0}


def make_env() -> MultiTaskVecEnv:
    return MultiTaskVecEnv(make_vec("PointGoal-v0", 12))


def maesn(**kwargs: Any) -> MAESN:
    return MAESN("LatentMlpPolicy", make_env(), policy_kwargs={"net_arch": [8], "ortho_init": False}, **SMALL, **kwargs)


def maml() -> MAML:
    return MAML("MlpPolicy", make_env(), policy_kwargs={"net_arch": [8]}, **SMALL)


@pytest.mark.parametrize(
    ("model", "rule", "kind"),
    [
        (maml(), None, InnerLearner),
        (maml(), "policy_gradient", InnerLearner),
        (maml(), "kernel", LatentLearner),  # which then asks for a latent
        (maesn(), None, LatentLearner),
        (maesn(), "policy_gradient", LatentLearner),
        (maesn(adapt_policy=True), None, LatentLearner),
        (maesn(adapt_policy=True), "policy_gradient", InnerLearner),
        (maesn(adapt_policy=True), KernelRule(), LatentLearner),
    ],
)
def test_what_adapts(model: MetaOnPolicyAlgorithm, rule: Any, kind: type[TaskLearner]) -> None:
    assert type(make_learner(rule, model.agent())) is kind


@pytest.mark.parametrize("kwargs", [{}, {"inner_update": "reparameterised"}, {"inner_update": "reward_weighted"}])
def test_the_update_is_meta_trainings_own(kwargs: dict[str, Any]) -> None:
    """Theta and latent move as one inner update of all tasks at once would move them, the step sizes scaled."""
    model, rng = maesn(adapt_policy=True, **kwargs), np.random.default_rng(0)
    assert model.env is not None
    agent, learner, tasks = model.agent(), InnerLearner(), model.env.task_set("test")[:12]
    state = learner.start(agent, len(tasks))
    for n_rounds in (1, 2, 3):
        latents = learner.propose(state, 5, rng)
        rollout = play(agent, model.env, tasks, latents, rng, learner.adapted(state).theta)
        mean, log_std = state.adapted.omega
        noise = (th.as_tensor(latents, dtype=th.float32) - mean.unsqueeze(1)) / log_std.exp().unsqueeze(1)
        batch = agent.judge(replace(rollout, noise=noise))
        steps = agent.step_sizes.scaled(step_scale(n_rounds))
        expected = inner_update(agent.spec, agent.actor, agent.theta, steps, state.adapted, batch)
        state = learner.update(state, agent, Round(rollout, latents, np.zeros((12, 5))), rng)
        for got, wanted in zip(flat(state.adapted), flat(expected), strict=True):
            assert th.allclose(got, wanted, rtol=1e-4, atol=1e-6)
            assert not got.requires_grad
    assert state.history.n_rounds == 3


def flat(adapted: Adapted) -> list[th.Tensor]:
    assert adapted.theta is not None
    return [*adapted.omega, *adapted.theta.values()]


def test_draws_come_from_the_tasks_own_latent_distributions() -> None:
    learner, rng = InnerLearner(), np.random.default_rng(0)
    state = learner.start(maesn(adapt_policy=True).agent(), 2)
    state.adapted.omega.mean[1] += 3.0
    draws = learner.propose(state, 500, rng)
    assert draws.mean(axis=1)[0] == pytest.approx(0.0, abs=0.2)
    assert draws.mean(axis=1)[1] == pytest.approx(3.0, abs=0.2)
    assert draws.std(axis=1) == pytest.approx(1.0, abs=0.1)


def test_rounds_of_one_episode_move_the_latent_too() -> None:
    model = maesn(adapt_policy=True)
    assert model.env is not None
    task, rng = model.env.task_set("test")[:1], np.random.default_rng(0)
    result, _ = adapt_to_tasks(model.agent(), model.env, task, InnerLearner(), 4, 1, rng)
    assert (result.mean[:2] == 0.0).all()  # the first episode has nothing to be compared with
    assert all(np.abs(result.mean[r] - result.mean[r - 1]).max() > 1e-3 for r in (2, 3, 4))


@pytest.mark.parametrize("n_episodes", [2, 3, 4])
def test_small_rounds_learn_from_their_returns_and_not_from_the_errors_of_a_baseline(n_episodes: int) -> None:
    model, tasks = maesn(adapt_policy=True), make_env().task_set("test")[:2]
    assert model.env is not None
    latents = np.random.default_rng(0).standard_normal((2, n_episodes, 2))
    batch = model.agent().judge(play(model.agent(), model.env, tasks, latents, np.random.default_rng(1)))
    for advantages in (batch.episode_advantages, batch.advantages[0]):
        for own, returns in zip(advantages.tolist(), batch.discounted_returns[0].tolist(), strict=True):
            assert np.argsort(own).tolist() == np.argsort(returns).tolist()
            assert np.ptp(own) == pytest.approx(np.ptp(returns), rel=1e-4)


def test_the_gradient_rules_have_the_std_floor_of_training() -> None:
    for name in ("policy_gradient", "natural_gradient"):
        learner = make_learner(name, maesn(inner_std_floor=3.0).agent())
        assert isinstance(learner, LatentLearner)
        assert isinstance(learner.rule, PolicyGradientRule)
        assert learner.rule.std_floor == 3.0


@pytest.mark.parametrize("name", RULES)
def test_rules_by_name(name: str) -> None:
    rule = make_rule(name, STEPS)
    assert type(rule) is RULES[name]
    if isinstance(rule, PolicyGradientRule):  # with the step sizes of meta-training
        assert rule.step_size_mean.tolist() == [0.5, 1.5]
        assert rule.step_size_log_std.tolist() == [0.25, 2.0]


def test_other_rules() -> None:
    own = KernelRule(width=0.1)
    assert make_rule(own, STEPS) is own
    assert type(make_rule(None, STEPS)) is RULES[DEFAULT_RULE]
    with pytest.raises(ValueError, match=r"rule must be one of policy_gradient, .*, got 'newton'"):
        make_rule("newton", STEPS)
    with pytest.raises(ValueError, match=r"expected a rule, got the class KernelRule: pass KernelRule\(\)"):
        make_rule(KernelRule, STEPS)  # type: ignore[arg-type]  # as users do
    with pytest.raises(ValueError, match=r"or an AdaptationRule, got 3"):
        make_rule(3, STEPS)  # type: ignore[arg-type]  # no rule at all


def test_step_scale() -> None:
    assert [step_scale(n) for n in (1, 2, 3, 4, 5)] == [1.0, 1.0, 0.5, 0.25, 0.125]


def test_tasks_do_not_learn_from_each_other() -> None:
    """What a task's theta becomes depends on its own episodes alone."""
    model, rng = maml(), np.random.default_rng(0)
    assert model.env is not None
    agent, learner = model.agent(), InnerLearner()
    rollout = play(agent, model.env, model.env.task_set("test")[:3], np.zeros((3, 4, 0)), rng)
    played = Round(rollout, np.zeros((3, 4, 0)), np.zeros((3, 4)))
    start = learner.start(agent, 3)
    first = learner.update(start, agent, played, rng).adapted
    rollout.rewards[:, 1] += th.randn(20, 4)
    second = learner.update(start, agent, played, rng).adapted
    for before, after in zip(flat(first), flat(second), strict=True):
        assert th.allclose(before[[0, 2]], after[[0, 2]])
        assert before.numel() == 0 or not th.allclose(before[1], after[1])


def test_a_round_in_which_all_episodes_of_a_task_diverged_moves_nothing() -> None:
    model, rng = maml(), np.random.default_rng(0)
    assert model.env is not None
    agent, learner = model.agent(), InnerLearner()
    rollout = play(agent, model.env, model.env.task_set("test")[:2], np.zeros((2, 4, 0)), rng)
    rollout.mask[:, 0] = 0.0
    rollout.rewards[:, 0] = 0.0
    start = learner.start(agent, 2)
    after = learner.update(start, agent, Round(rollout, np.zeros((2, 4, 0)), np.zeros((2, 4))), rng).adapted
    assert after.theta is not None
    for name, value in after.theta.items():
        assert th.equal(value[0], agent.theta[name])
        assert not th.equal(value[1], agent.theta[name])


def test_the_history_has_the_latents_of_a_model_that_adapts_both() -> None:
    model = maesn(adapt_policy=True)
    assert model.env is not None
    agent = model.agent()
    task, rng = model.env.task_set("test")[:1], np.random.default_rng(0)
    result, adapted = adapt_to_tasks(agent, model.env, task, InnerLearner(), 2, 6, rng)
    assert result.mean.shape == (3, 1, 2)
    assert np.allclose(result.mean[2, 0], adapted.omega.mean[0])
    assert not np.allclose(result.mean[0], result.mean[1])
