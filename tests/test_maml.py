"""MAML: what it adapts, and that it learns to."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.nn.utils import parameters_to_vector

from sb3_maesn import MAML, LatentMlpPolicy, MlpPolicy, MultiTaskVecEnv
from sb3_maesn.callbacks import MetaEvalCallback
from sb3_maesn.envs import make_vec
from sb3_maesn.evaluation import evaluate_adaptation
from tests.tiny import ITERATION, POINT, assert_same, differ, log_of, state
from tests.toy import Walk

GOAL = np.array([-0.8, 0.6])
SETTINGS: dict[str, dict[str, Any]] = {
    "first order": {"first_order": True, "baseline": "critic"},
    "two inner steps": {"n_inner_steps": 2, "learn_step_sizes": True},
    "E-MAML": {"exploration_coef": 1.0},
    "ProMP": {"low_variance_curvature": True, "meta_step": "ppo", "inner_kl_coef": 5e-4},
    "ProMP with a critic and learned step sizes": {
        "low_variance_curvature": True,
        "meta_step": "ppo",
        "inner_kl_coef": 5e-4,
        "n_inner_steps": 2,
        "learn_step_sizes": True,
        "baseline": "critic",
    },
}


def tiny(env: Any = None, **kwargs: Any) -> MAML:
    defaults: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return MAML("MlpPolicy", MultiTaskVecEnv(make_vec(POINT, 12)) if env is None else env, **{**defaults, **kwargs})


def learned(**variant: Any) -> MAML:
    """Twelve meta-iterations, with discounts for episodes of 20 steps and larger steps for a short training."""
    sizes = {"meta_batch_size": 10, "n_episodes": 10, "policy_kwargs": {"net_arch": [32]}}
    short = {"gamma": 0.9, "gae_lambda": 0.95, "target_kl": 0.03, "learning_rate": 1e-2}
    model = MAML("MlpPolicy", POINT, seed=0, **{**sizes, **short, **variant})
    return model.learn(12 * model.timesteps_per_iteration)


@pytest.fixture(scope="module")
def trained() -> MAML:
    return learned()


def theta(model: MAML) -> dict[str, th.Tensor]:
    return {name: value.detach().clone() for name, value in model._actor.named_parameters()}


# Learning and adaptation


def test_a_step_on_dense_reward_beats_the_policy_it_starts_from(trained: MAML) -> None:
    assert trained.env is not None
    tasks = trained.env.task_set("validation")[:30]
    result = evaluate_adaptation(trained, POINT, tasks, n_rounds=1, n_episodes=20, seed=0, n_eval_episodes=5)
    assert result.mean_return[1] > result.mean_return[0] + 3.0
    assert result.success_rate[1] > result.success_rate[0] + 0.3
    # the fresh episodes are those of the adapted policies, too
    assert result.eval_returns[1].mean() == pytest.approx(result.mean_return[1], abs=1.0)
    assert result.latents.shape == (2, 30, 20, 0)


@pytest.mark.parametrize("name", ["E-MAML", "ProMP"])
def test_a_step_of_the_variants_beats_the_policy_they_start_from(name: str) -> None:
    model = learned(**SETTINGS[name])
    assert model.env is not None
    tasks = model.env.task_set("validation")[:30]
    result = evaluate_adaptation(model, POINT, tasks, n_rounds=1, n_episodes=20, seed=0)
    assert result.mean_return[1] > result.mean_return[0] + 3.0


def test_evaluating_many_tasks_is_adapting_to_each(trained: MAML) -> None:
    """All tasks at once, each with its own theta: a task adapts as if it were alone, whatever the others do."""
    near, far = np.array([0.8, 0.6]), GOAL
    together = evaluate_adaptation(trained, POINT, [far, near] * 8, n_rounds=1, n_episodes=40, seed=1)
    alone = [trained.adapt(POINT, task=far, n_rounds=1, n_episodes=40, seed=seed) for seed in (2, 3, 4, 5)]
    scores = [evaluate_policy(one, at_goal(far), n_eval_episodes=50, deterministic=False, warn=False) for one in alone]
    # one update's outcome has a standard deviation of 0.8; before it, the return is -21
    assert together.returns[1, ::2].mean() == pytest.approx(np.mean([mean for mean, _ in scores]), abs=1.5)
    assert (together.returns[1].mean(axis=1) > together.returns[0].mean(axis=1) + 1.0).all()


def at_goal(goal: np.ndarray) -> Any:
    env = make_vec(POINT, 50)
    env.env_method("set_task", goal)
    env.seed(1)
    th.manual_seed(1)
    return env


def test_adapt_returns_a_better_model_and_leaves_the_old_one_as_it_was(trained: MAML, tmp_path: Path) -> None:
    before = theta(trained)
    adapted = trained.adapt(task=GOAL, n_rounds=2, n_episodes=20)
    assert all(th.equal(value, before[name]) for name, value in theta(trained).items())
    assert all(bool((value != before[name]).any()) for name, value in theta(adapted).items())
    adapted.save(tmp_path / "adapted")
    loaded = MAML.load(tmp_path / "adapted")
    models = (trained, adapted, loaded)
    means = [evaluate_policy(m, at_goal(GOAL), 50, deterministic=False, warn=False)[0] for m in models]
    assert means[1] > means[0] + 3.0  # type: ignore[operator]  # floats, as no list was asked for
    assert means[2] == means[1]
    assert adapted.adaptation is not None
    assert adapted.adaptation.returns.shape == (2, 1, 20)
    assert trained.adaptation is None


def test_step_sizes_halve_from_the_third_round_on() -> None:
    """On the same episodes, an update is proportional to its step size."""
    model = tiny(first_order=True)
    moves = []
    for scale in (1.0, 0.5):
        model.task_latents.policy_steps[0].data.fill_(0.1 * scale)
        adapted = model.adapt(task=GOAL, n_rounds=1, n_episodes=4)
        name = next(iter(theta(model)))
        moves.append(theta(adapted)[name] - theta(model)[name])
    assert th.allclose(moves[0], 2.0 * moves[1], rtol=1e-4, atol=1e-8)


def test_rules_for_latents_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match=r"adapts a latent, but the policy has latent_dim=0: .* got n_rounds=3"):
        model.adapt(task=GOAL, rule="kernel")
    by_name = model.adapt(task=GOAL, rule="policy_gradient", n_episodes=4)
    assert not differ(by_name, model.adapt(task=GOAL, n_episodes=4))


def test_discrete_actions() -> None:
    env = MultiTaskVecEnv(DummyVecEnv([Walk] * 8))
    net = {"net_arch": [16], "ortho_init": False}
    sizes = {"meta_batch_size": 4, "n_episodes": 10, "policy_step_size_init": 1.0}
    model = MAML("MlpPolicy", env, gamma=0.9, target_kl=0.1, policy_kwargs=net, seed=0, **sizes)  # type: ignore[arg-type]  # of many types
    model.learn(2 * model.timesteps_per_iteration)
    result = evaluate_adaptation(model, env, [-1.0, 1.0] * 4, 1, 20, seed=0)
    assert result.mean_return[1] > result.mean_return[0] + 3.0


# The meta step


def test_the_inner_update_is_differentiated_in_full_unless_told_otherwise() -> None:
    models = [tiny(first_order=first_order).learn(ITERATION) for first_order in (False, True)]
    assert differ(*models)
    assert models[0].num_timesteps == models[1].num_timesteps


def test_the_meta_step_is_that_of_one_thread() -> None:
    """Threads that shared an actor would differentiate each other's theta."""
    n_threads = th.get_num_threads()
    models = []
    try:
        for n in (1, 4, 4):
            th.set_num_threads(n)
            models.append(tiny(meta_batch_size=8).learn(1))
    finally:
        th.set_num_threads(n_threads)
    first, second, third = (parameters_to_vector(model._actor.parameters()) for model in models)
    assert th.allclose(first, second, atol=1e-3)  # collection rounds differently
    assert th.equal(second, third)


@pytest.mark.parametrize(("learn_step_sizes", "changed"), [(False, False), (True, True)])
def test_step_sizes_are_learned_if_asked_for(learn_step_sizes: bool, changed: bool) -> None:
    model = tiny(learn_step_sizes=learn_step_sizes, policy_step_size_init=0.2).learn(ITERATION)
    steps = th.cat([step.flatten() for step in model.task_latents.policy_steps])
    assert bool((steps != 0.2).any()) == changed
    assert len(model.task_latents.policy_steps) == len(theta(model))


@pytest.mark.parametrize(
    "variant",
    [
        {"low_variance_curvature": True},
        {"exploration_coef": 1.0},
        {"meta_step": "ppo"},
        {"meta_step": "ppo", "n_epochs": 1},
        {"meta_step": "ppo", "clip_range": 0.001},
        {"meta_step": "ppo", "inner_kl_coef": 10.0},
        {"meta_step": "ppo", "learning_rate": 1e-2},
    ],
)
def test_every_option_of_the_variants_takes_effect(variant: dict[str, Any]) -> None:
    plain = {key: value for key, value in variant.items() if key == "meta_step" and len(variant) > 1}
    assert differ(tiny(**variant).learn(ITERATION), tiny(**plain).learn(ITERATION))


def test_ppo_leaves_the_critic_alone_but_for_its_own_regression() -> None:
    model = tiny(meta_step="ppo")
    before = [value.detach().clone() for value in model.policy.critic_parameters()]
    model.learn(ITERATION)
    assert all(th.equal(*pair) for pair in zip(before, model.policy.critic_parameters(), strict=True))


def test_an_adapted_model_goes_on_with_step_sizes_of_its_own() -> None:
    model = tiny(meta_step="ppo", learn_step_sizes=True).learn(ITERATION)
    steps = [value.detach().clone() for value in model.task_latents.policy_steps]
    adapted = model.adapt(task=GOAL, n_rounds=1, n_episodes=4).learn(ITERATION, reset_num_timesteps=False)
    assert all(th.equal(*pair) for pair in zip(steps, model.task_latents.policy_steps, strict=True))
    assert not any(th.equal(*pair) for pair in zip(steps, adapted.task_latents.policy_steps, strict=True))


def test_log_of_ppo_speaks_of_no_line_search() -> None:
    rows = log_of(tiny(meta_step="ppo"), 2)
    assert "train/n_backtracks" not in rows[-1]
    assert rows[-1]["train/kl_divergence"] > 0
    assert rows[-1]["train/learning_rate"] == 1e-3


def test_log() -> None:
    rows = log_of(tiny(), 2)  # the first step is logged with the second rollout
    assert 0 < rows[-1]["train/kl_divergence"] <= 0.01
    assert rows[-1]["train/step_size_policy"] == pytest.approx(0.1)
    assert "train/latent_std" not in rows[-1]


# SB3's surface


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_resumed_is_the_run_that_was_never_stopped(tmp_path: Path, name: str, safe: bool) -> None:
    whole, half = tiny(**SETTINGS[name]), tiny(**SETTINGS[name])
    steps, env = whole.timesteps_per_iteration, MultiTaskVecEnv(make_vec(POINT, 12))
    whole.learn(2 * steps)
    half.learn(steps)
    if safe:
        half.save_checkpoint(tmp_path / "half")
        resumed = MAML.load_checkpoint(tmp_path / "half", env=env)
    else:
        half.save(tmp_path / "half")
        resumed = MAML.load(tmp_path / "half", env=env)
    assert vars(resumed).items() >= {key: vars(half)[key] for key in SETTINGS[name]}.items()
    assert_same(resumed, half)
    resumed.learn(steps, reset_num_timesteps=False)
    assert_same(resumed, whole)


def test_predict_is_that_of_a_policy_without_state(tmp_path: Path) -> None:
    model = tiny()
    actions, carried = model.predict(np.zeros((5, 2)), deterministic=True)
    assert actions.shape == (5, 2)
    assert carried is None
    model.policy.save(str(tmp_path / "policy"))
    again, _ = MlpPolicy.load(str(tmp_path / "policy")).predict(np.zeros((5, 2)), deterministic=True)
    assert (again == actions).all()


def test_the_callback_evaluates_what_adapts(tmp_path: Path) -> None:
    model = tiny()
    callback = MetaEvalCallback(POINT, [GOAL, -GOAL], 1, n_rounds=1, n_episodes=3, best_model_save_path=tmp_path)
    rows = log_of(model, 2, callback=callback)
    assert [row for row in rows if "eval/return_round_1" in row]
    assert isinstance(MAML.load(tmp_path / "best_model"), MAML)


def test_tensorboard_has_the_algorithms_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")  # an optional dependency of SB3
    tiny(tensorboard_log=str(tmp_path)).learn(ITERATION)
    assert list(tmp_path.glob("MAML_1/events*"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MAML, "MlpPolicy", "CartPole-v1"), r"this environment has no tasks: expected members with"),
        (partial(MAML, "LatentMlpPolicy", POINT), "Policy LatentMlpPolicy unknown"),
        (partial(MAML, LatentMlpPolicy, POINT), "expected a subclass of PlainActorCriticPolicy, got LatentActor"),
        (partial(tiny, policy_kwargs={"latent_dim": 2}), r"without a latent \(latent_dim=0\), got latent_dim=2"),
        (partial(tiny, adapt_policy=False), "MAML is the algorithm with adapt_policy=True, got False"),
        (partial(tiny, inner_update="reward_weighted"), "inner_update='likelihood_ratio', got 'reward_weighted'"),
        (partial(tiny, n_prior_episodes=5), "n_prior_episodes=None, got 5"),
        (partial(tiny, step_size_init=0.5), "no latent, which step_size_init .*got 0.5; .*is policy_step_size_init"),
        (partial(tiny, step_size_max=1.0), "no latent, which step_size_max is about: leave it out"),
        (partial(tiny, temperature_init=0.5), "no latent, which temperature_init is about"),
        (partial(tiny, latent_mean_init_std=0.0), "no latent, which latent_mean_init_std is about"),
        (partial(tiny, inner_std_floor=0.1), "no latent, which inner_std_floor is about"),
        (partial(tiny, n_epochs=1.5), r"n_epochs must be a whole number, got 1\.5"),
        (partial(tiny, exploration_coef=None), "exploration_coef must be a number, got None"),
        (partial(tiny, first_order=True, low_variance_curvature=True), "expected one of them, got both"),
        (partial(tiny, policy_step_size_init=0.0), r"policy_step_size_init must be positive, got 0\.0"),
        (partial(tiny, meta_step="sgd"), "meta_step must be one of trpo, ppo, got 'sgd'"),
        (partial(tiny, exploration_coef=-1.0), r"exploration_coef must be at least 0, got -1\.0"),
        (partial(tiny, inner_kl_coef=float("nan")), "inner_kl_coef must be at least 0, got nan"),
        (partial(tiny, n_epochs=0), "n_epochs must be at least 1, got 0"),
        (partial(tiny, clip_range=1.0), r"clip_range must be above 0 and below 1, got 1\.0"),
        (partial(tiny, exploration_coef=1.0, n_inner_steps=0), "go with an inner update, got n_inner_steps=0"),
    ],
)
def test_what_is_not_maml_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_go_in_and_out() -> None:
    model, other = tiny().learn(ITERATION), tiny(seed=1)
    other.set_parameters(model.get_parameters(), exact_match=True)  # type: ignore[arg-type]  # what SB3 itself returns
    mine, theirs = state(model), state(other)
    assert all(th.equal(mine[name], theirs[name]) for name in mine if name != "counters")
