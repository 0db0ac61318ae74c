"""MetaOnPolicyAlgorithm as an SB3 algorithm: files, callbacks, logs, counters, exact resume, refusals."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.meta_parameters import read_parameters
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.progress import StepsProgressBar
from sb3_maesn.common.type_aliases import EpisodeBatch
from sb3_maesn.envs import make_vec
from tests.tiny import ITERATION, assert_same, differ, log_of, state, tiny
from tests.toy import ThirdParty, Walk

POINT = "PointGoal-v0"
SETTINGS: dict[str, dict[str, Any]] = {
    "likelihood_ratio": {},
    "two inner steps": {"n_inner_steps": 2},
    "reparameterised": {"inner_update": "reparameterised"},
    "reward_weighted": {"inner_update": "reward_weighted"},
    "shared": {"inner_update": "reward_weighted", "n_prior_episodes": 10, "balance_episodes": True},
    "critic": {"baseline": "critic"},
    "adapted theta": {"adapt_policy": True, "n_inner_steps": 2},
    "no adaptation": {"n_inner_steps": 0},
}


def walk(n: int = 6, **kwargs: Any) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(DummyVecEnv([partial(Walk, **kwargs)] * n))


class Watch(BaseCallback):
    """Calls functions with the model at the ends of rollouts, and stops after some steps.

    :param at_rollout_end: called at the end of each rollout
    :param stop_after: environment calls after which to stop the training
    """

    def __init__(self, at_rollout_end: Callable[[Any], None] = lambda model: None, stop_after: int = 10**9):
        super().__init__()
        self.at_rollout_end, self.stop_after = at_rollout_end, stop_after

    def _on_step(self) -> bool:
        return self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.at_rollout_end(self.model)


# One meta-iteration


@pytest.mark.parametrize("members", [12, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_was_collected_fits_the_parameters_that_collected_it(name: str, members: int) -> None:
    """At the parameters that acted, every ratio is 1: the meta-step sees the data as the collection made them."""
    model = tiny(MultiTaskVecEnv(make_vec(POINT, members)), **SETTINGS[name])
    values = []

    def evaluate(_: Any) -> None:
        assert model._meta_batch is not None
        params = read_parameters(model._actor, model.task_latents)
        objective = MetaObjective(model._inner_spec, model._actor_function, model._meta_batch, model.kl_coef)
        values.append(objective(params))

    model.learn(2 * model.timesteps_per_iteration, Watch(evaluate))
    assert len(values) == 2
    for value in values:
        assert abs(value.surrogate.item()) < 1e-5
        assert abs(value.kl.item()) < 1e-6


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_changes_what_it_should_and_keeps_its_bound(name: str) -> None:
    model = tiny(**SETTINGS[name])
    before = {key: value.clone() for key, value in state(model).items()}
    (row,) = log_of(model, 1)
    assert row["step"] == model.num_timesteps
    values = model.logger.name_to_value
    assert values["train/is_line_search_success"] == 1.0
    assert 0 < values["train/kl_divergence"] <= 0.01
    after = state(model)
    changed = {key for key in before if not th.equal(before[key], after[key])}
    assert "policy.action_net.weight" in changed
    assert ("policy.value_net.weight" in changed) == (name == "critic")
    assert ("task_latents.mean" in changed) == (name != "shared")  # shared episodes are the prior's
    assert ("task_latents.mean_step" in changed) == (name != "no adaptation")
    assert ("task_latents.log_temperature" in changed) == ("reward_weighted" in str(SETTINGS[name]))
    assert ("task_latents.policy_steps.0" in changed) == (name == "adapted theta")
    moved = (before["task_latents.mean"] != after["task_latents.mean"]).any(dim=1)
    assert moved.sum() == (0 if name == "shared" else 3)  # tasks that were not in the batch stay


@pytest.mark.parametrize(("inner_update", "n_iterations"), [("likelihood_ratio", 4), ("reward_weighted", 6)])
def test_learned_step_sizes_have_a_bound(inner_update: str, n_iterations: int) -> None:
    free = tiny(inner_update=inner_update, target_kl=0.5)
    bounded = tiny(inner_update=inner_update, target_kl=0.5, step_size_max=0.9)
    for model in (free, bounded):
        model.learn(n_iterations * ITERATION)
    free_steps, bounded_steps = (
        th.cat([model.task_latents.mean_step, model.task_latents.log_std_step]).detach() for model in (free, bounded)
    )
    assert free_steps.max() > 0.9
    assert bounded_steps.max() == pytest.approx(0.9)
    assert bounded_steps.min() < 0.9  # which still learns


def test_the_steps_of_the_log_std_can_have_a_bound_of_their_own() -> None:
    model = tiny(inner_update="reward_weighted", target_kl=0.1, log_std_step_size_max=0.4).learn(6 * ITERATION)
    assert model.task_latents.log_std_step.max().item() == pytest.approx(0.4)
    assert model.task_latents.mean_step.max().item() > 0.9


@pytest.mark.parametrize("learn_step_sizes", [False, True])
@pytest.mark.parametrize(
    ("kwargs", "bounds"),
    [({"step_size_max": 0.5}, (0.5, 0.5)), ({"step_size_max": 2.0, "log_std_step_size_max": 0.5}, (1.0, 0.5))],
)
def test_bounds_hold_for_the_initial_step_sizes(
    kwargs: dict[str, Any], bounds: tuple[float, float], learn_step_sizes: bool
) -> None:
    model = tiny(learn_step_sizes=learn_step_sizes, **kwargs)
    steps = [model.task_latents.mean_step, model.task_latents.log_std_step]
    assert [step.tolist() for step in steps] == [[bound] * 2 for bound in bounds]
    model.learn(ITERATION)
    if not learn_step_sizes:
        assert [step.tolist() for step in steps] == [[bound] * 2 for bound in bounds]
    assert steps[1].max() <= 0.5


def test_a_bound_that_a_loaded_model_gets_holds_for_step_sizes_that_are_not_learned() -> None:
    buffer = io.BytesIO()
    model = tiny(learn_step_sizes=False)
    model.save(buffer)
    loaded = MAESN.load(buffer, env=model.env, step_size_max=0.5).learn(1)
    assert loaded.task_latents.mean_step.tolist() == [0.5] * 2


def test_the_trust_region_follows_a_schedule_over_the_budget(tmp_path: Path) -> None:
    """... and where a run stops half-way, a resumed one goes on with the rest of it, bit for bit."""
    whole, stopped = (tiny(target_kl=LinearSchedule(0.04, 0.0, 1.0)) for _ in range(2))
    rows = [*log_of(whole, 4)[1:], whole.logger.name_to_value]  # a row has the step before it
    assert [row["train/target_kl"] for row in rows] == pytest.approx([0.04, 0.03, 0.02, 0.01])
    stopped.learn(4 * ITERATION, Watch(stop_after=2 * 2 * 20 + 5))  # in the third iteration
    stopped.save(tmp_path / "stopped.zip")
    resumed = MAESN.load(tmp_path / "stopped.zip", env=stopped.env)
    resumed.learn(2 * ITERATION, reset_num_timesteps=False)
    assert_same(resumed, whole)
    assert differ(whole, tiny(target_kl=0.04).learn(4 * ITERATION))


def test_a_schedule_may_be_a_function_and_a_budget_a_part_of_an_iteration() -> None:
    model = tiny(target_kl=lambda left: 0.04 * left).learn(int(2.5 * ITERATION))
    assert model.logger.name_to_value["train/target_kl"] == pytest.approx(0.04 * 0.5 / 2.5)
    before = model.policy.log_std.detach().clone()
    model.learn(1, reset_num_timesteps=False)  # less than an iteration is one
    assert not th.equal(model.policy.log_std, before)


def test_a_schedule_that_goes_below_zero_is_named_where_it_does() -> None:
    model = tiny(target_kl=lambda left: abs(left - 0.5) - 0.1)
    with pytest.raises(ValueError, match=r"target_kl must be .*, got -0\.1 where 0\.5 of the training is left"):
        model.learn(2 * ITERATION)


def test_policy_rounds_of_adaptation_take_steps_after_a_schedule_has_ended(tmp_path: Path) -> None:
    model = tiny(target_kl=LinearSchedule(0.04, 0.0, 1.0)).learn(2 * ITERATION)
    model.save(tmp_path / "model.zip")
    model.save_checkpoint(tmp_path / "model")
    adapted = [
        each.adapt(POINT, task=[0.0, 1.0], n_rounds=0, n_policy_rounds=2, n_episodes=4, seed=0)
        for each in (model, MAESN.load(tmp_path / "model.zip"), MAESN.load_checkpoint(tmp_path / "model"))
    ]
    assert differ(adapted[0], model)
    assert not differ(adapted[0], adapted[1])
    assert not differ(adapted[0], adapted[2])


def test_tasks_with_latents_of_their_own_start_from_the_prior_once_they_share_episodes(tmp_path: Path) -> None:
    model = tiny(inner_update="reward_weighted", latent_mean_init_std=3.0).learn(ITERATION)
    model.save(tmp_path / "own.zip")
    shared = MAESN.load(tmp_path / "own.zip", env=model.env, n_prior_episodes=10)
    assert (shared.task_latents.mean != 0).any()
    shared.learn(1, reset_num_timesteps=False)
    assert (shared.task_latents.mean == 0).all()
    assert (shared.task_latents.log_std == 0).all()


@pytest.mark.parametrize("latent_dim", [0, 1, 5])
@pytest.mark.parametrize("name", ["likelihood_ratio", "reparameterised", "reward_weighted", "adapted theta"])
def test_latent_dimensions(name: str, latent_dim: int) -> None:
    model = tiny(policy_kwargs={"latent_dim": latent_dim, "net_arch": [8]}, **SETTINGS[name]).learn(1)
    assert model.task_latents.mean.shape == (100, latent_dim)
    assert all(bool(th.isfinite(value).all()) for value in state(model).values())


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize("baseline", ["linear", "critic"])
def test_any_spaces(discrete: bool, image: bool, baseline: str) -> None:
    model = tiny(walk(discrete=discrete, image=image), baseline=baseline)
    rows = log_of(model, 2)
    assert all(bool(th.isfinite(value).all()) for value in state(model).values())
    assert -6 <= rows[-1]["rollout/ep_rew_mean"] <= 6


def test_the_seed_decides() -> None:
    th.manual_seed(5)
    first = tiny().learn(1)
    th.manual_seed(6)
    np.random.seed(6)  # noqa: NPY002  # the global state on purpose: it must not matter
    assert_same(first, tiny().learn(1))
    assert differ(first, tiny(seed=1).learn(1))


@pytest.mark.parametrize("members", [1, 5, 12, 30])
def test_the_number_of_members_only_changes_the_draws(members: int) -> None:
    model = tiny(MultiTaskVecEnv(make_vec(POINT, members))).learn(1)
    assert model.num_timesteps == ITERATION


@pytest.mark.parametrize("name", SETTINGS)
def test_memory_is_released(name: str) -> None:
    model = tiny(**SETTINGS[name])
    pre: list[Any] = []
    model.learn(1, Watch(lambda _: pre.extend(model._meta_batch.pre)))  # type: ignore[union-attr]  # there at the end of a rollout
    assert model._meta_batch is None
    steps_needed = name in ("reparameterised", "critic", "adapted theta")
    assert all(isinstance(batch, EpisodeBatch) != steps_needed for batch in pre)


class Unstable(ThirdParty):
    """The simulation of task 2 always diverges, and leaves NaN behind."""

    def reward(self, member: int) -> float:
        return np.nan if self.tasks[member] == 2.0 else super().reward(member)

    def end_info(self, member: int) -> dict[str, Any]:
        return {"diverged": bool(self.tasks[member] == 2.0)}


@pytest.mark.parametrize("name", ["likelihood_ratio", "reparameterised", "reward_weighted", "critic", "adapted theta"])
def test_diverged_simulations_are_counted_and_poison_nothing(name: str) -> None:
    env = MultiTaskVecEnv(Unstable(12, 5, {2.0: 2}), horizon=5, train_tasks=[1.0, 2.0, 3.0])
    model = tiny(env, **SETTINGS[name])
    rows = log_of(model, 2)
    n_rollouts = model.n_inner_steps + 1
    assert rows[-1]["rollout/n_diverged"] == 4 * n_rollouts
    assert 5.0 <= rows[-1]["rollout/ep_rew_mean"] <= 15.0
    assert rows[-1]["rollout/ep_len_mean"] == 5.0
    assert all(bool(th.isfinite(value).all()) for value in state(model).values())


# Counters, logs, callbacks


@pytest.mark.parametrize(
    ("kwargs", "episodes"),
    [
        ({}, 24),
        ({"n_inner_steps": 0}, 12),
        ({"n_inner_steps": 3}, 48),
        ({"inner_update": "reward_weighted", "n_prior_episodes": 5}, 17),
    ],
)
@pytest.mark.parametrize("members", [12, 8])
def test_steps_are_counted(kwargs: dict[str, Any], episodes: int, members: int) -> None:
    model = tiny(MultiTaskVecEnv(make_vec(POINT, members)), **kwargs)
    assert model.timesteps_per_iteration == 20 * episodes
    model.learn(2 * 20 * episodes - 1)
    assert model.num_timesteps == 2 * 20 * episodes
    assert model._n_updates == 2
    assert model._episode_num == 2 * episodes


def test_steps_of_several_banks_are_counted() -> None:
    env = MultiTaskVecEnv(make_vec("PusherBlock-v0", 6, n_threads=1))
    kwargs: dict[str, Any] = {"inner_update": "reward_weighted", "n_prior_episodes": 3, "meta_batch_size": 6}
    model = tiny(env, n_episodes=2, **kwargs)
    assert model.timesteps_per_iteration == 100 * (6 * 2 + 2 * 3)  # six tasks are of two layouts
    assert model.learn(1).num_timesteps == model.timesteps_per_iteration


def test_learn_without_arguments_runs_the_reference_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(OnPolicyAlgorithm, "learn", lambda self, total_timesteps, *rest: asked.append(total_timesteps))
    MAESN("LatentMlpPolicy", POINT).learn()
    assert asked == [300 * 20 * 20 * 2 * 20]


def test_learning_twice() -> None:
    whole = tiny().learn(4 * ITERATION)
    in_parts = tiny().learn(2 * ITERATION).learn(2 * ITERATION, reset_num_timesteps=False)
    assert_same(whole, in_parts)
    again = tiny().learn(2 * ITERATION).learn(2 * ITERATION)  # the counters begin anew, the training goes on
    assert again.num_timesteps == 2 * ITERATION
    assert not differ(whole, again)


def test_log_keys_and_interval() -> None:
    model = tiny(inner_update="reward_weighted")
    rows = log_of(model, 4, log_interval=2)
    assert [row["step"] for row in rows] == [2 * ITERATION, 4 * ITERATION]
    expected = """rollout/ep_rew_mean rollout/ep_len_mean rollout/success_rate rollout/pre_ep_rew_mean
        rollout/pre_success_rate rollout/n_diverged time/iterations time/fps time/time_elapsed time/total_timesteps
        time/collect_seconds time/train_seconds train/surrogate train/kl_divergence train/prior_kl
        train/is_line_search_success train/n_backtracks train/explained_variance train/std train/latent_std
        train/latent_mean_norm train/step_size_mean train/step_size_log_std train/temperature train/target_kl
        train/n_updates"""
    assert set(rows[-1]) == {*expected.split(), "step"}
    assert rows[-1]["rollout/ep_len_mean"] == 20.0
    assert -60.0 < rows[-1]["rollout/ep_rew_mean"] < 0.0


def test_episode_statistics_are_those_of_the_last_episodes_after_adaptation() -> None:
    returns: list[float] = []
    model = tiny(stats_window_size=12)
    watch = Watch(lambda _: returns.append(model._meta_batch.post.rollout.returns.mean().item()))  # type: ignore[union-attr]  # collected by then
    rows = log_of(model, 3, callback=watch)
    assert [row["rollout/ep_rew_mean"] for row in rows] == pytest.approx(returns)


def test_a_callback_stops_the_training_and_the_iteration_is_done_again() -> None:
    stopped = tiny().learn(3 * ITERATION, Watch(stop_after=50))
    assert stopped.num_timesteps == 50 * 12
    assert stopped._n_updates == 1
    stopped.learn(2 * ITERATION, reset_num_timesteps=False)
    assert_same(stopped, tiny().learn(3 * ITERATION))


def test_a_stop_within_the_first_iteration_is_made_up_for(tmp_path: Path) -> None:
    whole = tiny(target_kl=lambda left: 0.04 * left).learn(3 * ITERATION)
    stopped = tiny(target_kl=lambda left: 0.04 * left)
    stopped.learn(3 * ITERATION, [CheckpointCallback(5, str(tmp_path), "first"), Watch(stop_after=10)])
    assert (stopped.num_timesteps, stopped._n_updates) == (120, 0)
    loaded = MAESN.load(tmp_path / "first_60_steps", env=stopped.env)
    for model in (stopped, loaded):
        model.learn(3 * ITERATION, reset_num_timesteps=False)
        assert_same(model, whole)


def test_a_stop_within_the_first_iteration_of_a_second_training() -> None:
    model = tiny().learn(ITERATION)
    model.learn(ITERATION, Watch(stop_after=10))
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.num_timesteps == ITERATION
    assert not differ(model, tiny().learn(2 * ITERATION))


def test_episodes_are_counted_by_callbacks_of_sb3() -> None:
    short = {1.0: 1, 2.0: 2}  # members whose episode is over begin others until the wave ends
    env = MultiTaskVecEnv(ThirdParty(16, 5, short), horizon=5, train_tasks=[1.0, 2.0, 3.0])
    ended: list[int] = []
    model = tiny(env).learn(1, lambda local, _: not ended.append(local["dones"].sum()))  # type: ignore[func-returns-value]  # None
    assert sum(ended) == model._episode_num == 24  # 3 tasks, 4 episodes, before and after; 4 members are idle
    model = tiny(env).learn(10**4, StopTrainingOnMaxEpisodes(3))  # 3 * 16 episodes are two iterations
    assert model._n_updates == 1  # the last step of the second one ends the training
    assert model._episode_num == 24


def test_callbacks_of_sb3(tmp_path: Path) -> None:
    with_callbacks = tiny().learn(
        2 * ITERATION,
        [CheckpointCallback(30, str(tmp_path), "half"), StopTrainingOnMaxEpisodes(1000)],
    )
    assert_same(with_callbacks, tiny().learn(2 * ITERATION))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half_360_steps.zip", "half_720_steps.zip"]
    calls: list[int] = []
    tiny().learn(ITERATION, lambda local, _: not calls.append(local["self"].num_timesteps))  # type: ignore[func-returns-value]  # None
    assert calls == list(range(12, ITERATION + 1, 12))


def test_a_model_saved_within_an_iteration_does_it_again(tmp_path: Path) -> None:
    whole = tiny().learn(2 * ITERATION, CheckpointCallback(60, str(tmp_path), "half"))
    half = MAESN.load(tmp_path / "half_720_steps", env=MultiTaskVecEnv(make_vec(POINT, 12)))
    half.learn(ITERATION, reset_num_timesteps=False)
    assert_same(half, whole)


@pytest.mark.parametrize("kwargs", [{}, {"inner_update": "reward_weighted", "n_prior_episodes": 5}])
@pytest.mark.parametrize("callback", [None, Watch(), [Watch()], lambda local, _: True])
def test_the_progress_bar_counts_the_steps(
    monkeypatch: pytest.MonkeyPatch, callback: Any, kwargs: dict[str, Any]
) -> None:
    pytest.importorskip("tqdm")  # an optional dependency of SB3
    pytest.importorskip("rich")  # an optional dependency of SB3
    counts: list[tuple[int, int]] = []
    end = StepsProgressBar._on_training_end

    def note(self: StepsProgressBar) -> None:
        counts.append((self.pbar.n, self.pbar.total))
        end(self)

    monkeypatch.setattr(StepsProgressBar, "_on_training_end", note)
    model = tiny(**kwargs)
    model.learn(2 * model.timesteps_per_iteration, callback, progress_bar=True)
    assert counts == [(2 * model.timesteps_per_iteration,) * 2]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")  # an optional dependency of SB3
    tiny(tensorboard_log=str(tmp_path)).learn(ITERATION)
    assert list(tmp_path.glob("MAESN_1/events*"))


# Files


@pytest.mark.parametrize("name", ["likelihood_ratio", "shared", "critic", "adapted theta"])
def test_a_saved_model_comes_back(tmp_path: Path, name: str) -> None:
    model = tiny(**SETTINGS[name]).learn(ITERATION)
    model.save(tmp_path / "deep" / "model")
    loaded = MAESN.load(tmp_path / "deep" / "model.zip")
    assert_same(model, loaded)
    for setting in (*SETTINGS[name], "gamma", "meta_batch_size", "seed", "entropy", "n_train_tasks"):
        assert getattr(loaded, setting) == getattr(model, setting)
    assert loaded.env is None
    latent = (np.ones((2, 2), dtype=np.float32),)
    obs = np.zeros((2, 2))
    actions = [one.predict(obs, latent, deterministic=True)[0] for one in (model, loaded)]
    assert (actions[0] == actions[1]).all()
    assert loaded.device == th.device("cpu")


def test_a_saved_model_is_small(tmp_path: Path) -> None:
    model = tiny(MultiTaskVecEnv(make_vec(POINT, 1000))).learn(1)
    model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").stat().st_size < 60_000  # and holds no observations of 1000 members


def test_saving_to_a_buffer() -> None:
    model, buffer = tiny().learn(ITERATION), io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    assert_same(model, MAESN.load(buffer))


def test_an_interrupted_save_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny().learn(ITERATION)
    model.save(tmp_path / "model")
    old = MAESN.load(tmp_path / "model")

    def interrupted(self: Any, file: Any, *_: Any) -> None:
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(OnPolicyAlgorithm, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(ITERATION, reset_num_timesteps=False).save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert_same(old, MAESN.load(tmp_path / "model"))


def test_parameters_go_in_and_out() -> None:
    model, other = tiny().learn(ITERATION), tiny(seed=1)
    assert set(model.get_parameters()) == {"policy", "policy.optimizer", "task_latents"}
    other.set_parameters(model.get_parameters(), exact_match=True)  # type: ignore[arg-type]  # what SB3 itself returns
    mine, theirs = state(model), state(other)
    assert all(th.equal(mine[name], theirs[name]) for name in mine if name != "counters")
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        other.set_parameters({"policy": model.get_parameters()["policy"]})  # type: ignore[dict-item]  # likewise


def test_a_loaded_model_needs_an_environment_to_learn() -> None:
    buffer = io.BytesIO()
    tiny().learn(ITERATION).save(buffer)
    loaded = MAESN.load(buffer)
    with pytest.raises(ValueError, match="expected an environment to learn from, got none: call set_env first"):
        loaded.learn(ITERATION)
    loaded.set_env(make_vec(POINT, 7))  # another number of members
    assert loaded.get_env() is loaded.env
    assert loaded.learn(ITERATION).num_timesteps == ITERATION


# Environments


@pytest.mark.parametrize("env", [POINT, make_vec(POINT, 2), VecMonitor(make_vec(POINT, 12)), Walk()])
def test_environments(env: Any) -> None:
    model = tiny(env).learn(1)
    assert isinstance(model.env, MultiTaskVecEnv)
    returns, _ = evaluate_policy(model, model.env, n_eval_episodes=3, warn=False)
    assert np.isfinite(returns)


def test_members_that_need_a_task_before_their_first_reset() -> None:
    class TaskFirst(Walk):
        def __init__(self) -> None:
            super().__init__()
            del self.next_task

    assert tiny(MultiTaskVecEnv(DummyVecEnv([TaskFirst] * 4))).learn(1).num_timesteps == 3 * 4 * 2 * 6


def test_initial_weights_do_not_depend_on_the_number_of_threads() -> None:
    """Orthogonal ones would, by rounding, and with them every digit of a training."""
    n_threads, weights = th.get_num_threads(), []
    try:
        for n in (1, 2):
            th.set_num_threads(n)
            weights.append(tiny(policy_kwargs={}).policy.state_dict())
    finally:
        th.set_num_threads(n_threads)
    for name, value in weights[0].items():
        assert th.equal(value, weights[1][name]), name


def test_logged_returns_are_those_of_the_monitor() -> None:
    """As in SB3: what VecNormalize makes of the rewards is not logged."""
    normalised = VecNormalize(VecMonitor(make_vec(POINT, 12)), gamma=0.9)
    model = tiny(MultiTaskVecEnv(normalised)).learn(ITERATION)
    assert model.ep_info_buffer is not None
    returns = np.array([episode["r"] for episode in model.ep_info_buffer])
    assert (returns < -5.0).all()  # 20 steps about 1 away from the goal


def test_a_resumed_run_with_normalised_observations_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    def make() -> VecNormalize:
        return VecNormalize(MultiTaskVecEnv(make_vec(POINT, 12)))

    whole = tiny(make()).learn(2 * ITERATION)
    first = tiny(make()).learn(ITERATION)
    first.save(tmp_path / "model")
    first.env.save(str(tmp_path / "statistics"))  # type: ignore[union-attr]  # a MultiTaskVecEnv around a VecNormalize
    env = VecNormalize.load(str(tmp_path / "statistics"), MultiTaskVecEnv(make_vec(POINT, 12)))
    second = MAESN.load(tmp_path / "model", env).learn(ITERATION, reset_num_timesteps=False)
    assert_same(whole, second)


def test_normalised_observations() -> None:
    for env in (VecNormalize(make_vec(POINT, 12)), VecNormalize(MultiTaskVecEnv(make_vec(POINT, 12)))):
        model = tiny(env).learn(1)
        assert model.get_vec_normalize_env() is env
        assert env.obs_rms.count > 100  # type: ignore[attr-defined]  # no Dict
        with pytest.raises(ValueError, match=r"without wrappers that change observations or rewards, got VecNormalize"):
            tiny(env, inner_update="reward_weighted", n_prior_episodes=5)


def other_spaces() -> VecEnv:
    return MultiTaskVecEnv(DummyVecEnv([Walk]))


def other_tasks() -> VecEnv:
    return MultiTaskVecEnv(make_vec(POINT, 4), n_tasks=7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_spaces, r"Observation spaces do not match: Box\(.*\) != Box\(.*\)"),
        (other_tasks, "expected an environment with 100 training tasks, got 7"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(make: Callable[[], VecEnv], message: str) -> None:
    model, buffer = tiny(), io.BytesIO()
    model.save(buffer)
    with pytest.raises(ValueError, match=message):
        model.set_env(make())
    assert model.n_steps == 20
    buffer.seek(0)
    with pytest.raises(ValueError, match=message):
        MAESN.load(buffer, env=make())


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"meta_batch_size": 0}, "meta_batch_size must be at least 1, got 0"),
        ({"meta_batch_size": 101}, r"meta_batch_size \(101\) must not exceed the number of training tasks \(100\)"),
        ({"meta_batch_size": 5.5}, r"meta_batch_size must be a whole number, got 5\.5"),
        ({"meta_batch_size": "5"}, "meta_batch_size must be a whole number, got '5'"),
        ({"n_episodes": 1}, "n_episodes must be at least 2, got 1"),
        ({"n_inner_steps": -1}, "n_inner_steps must be at least 0, got -1"),
        ({"fisher_subsampling": 0}, "fisher_subsampling must be at least 1, got 0"),
        ({"n_critic_updates": 0}, "n_critic_updates must be at least 1, got 0"),
        ({"kl_coef": -0.1}, r"kl_coef must be at least 0, got -0\.1"),
        ({"target_kl": 0.0}, r"target_kl must be positive, got 0\.0"),
        ({"target_kl": None}, "target_kl must be a number or a schedule, got None"),
        (
            {"target_kl": LinearSchedule(0.0, 0.0, 1.0)},
            r"target_kl must not be 0 all the time, .* from 0\.0 to 0\.0",
        ),
        ({"target_kl": LinearSchedule(0.1, -0.1, 1.0)}, r"at least 0 at all times, got -0\.1 where 0 of the training"),
        ({"target_kl": lambda left: str(left)}, r"target_kl must be a number of at least 0 .*, got '1\.0'"),
        ({"target_kl": np.nan}, "target_kl must be positive, got nan"),
        ({"temperature_init": -1.0}, r"temperature_init must be positive, got -1\.0"),
        ({"gamma": 1.5}, r"gamma must be between 0 and 1, got 1\.5"),
        ({"gae_lambda": -0.5}, r"gae_lambda must be between 0 and 1, got -0\.5"),
        ({"line_search_shrinking_factor": 0.0}, r"line_search_shrinking_factor must be above 0 and below 1, got 0\.0"),
        ({"line_search_shrinking_factor": 1}, "line_search_shrinking_factor must be above 0 and below 1, got 1"),
        ({"inner_update": "sgd"}, "inner_update must be one of likelihood_ratio, .*got 'sgd'"),
        ({"baseline": "zero"}, "baseline must be one of linear, critic, got 'zero'"),
        ({"n_prior_episodes": 10.5}, r"n_prior_episodes must be a whole number or null, got 10\.5"),
        ({"n_prior_episodes": 1}, "n_prior_episodes must be at least 2"),
        ({"n_prior_episodes": 5, "n_inner_steps": 2}, "n_prior_episodes .* got n_prior_episodes=5, n_inner_steps=2"),
        ({"n_prior_episodes": 5, "adapt_policy": True}, "n_prior_episodes .* adapt_policy=True"),
        ({"n_prior_episodes": 5, "inner_update": "reparameterised"}, "n_prior_episodes .*'reparameterised'"),
        ({"balance_episodes": True}, "balance_episodes goes with n_prior_episodes"),
        ({"device": "meta"}, "expected device 'cpu' or 'auto', got 'meta'"),
        ({"policy_kwargs": {"use_sde": True}}, "expected use_sde=False"),
    ],
)
def test_bad_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_prior_episodes_need_a_family_that_can_share_them() -> None:
    kwargs: dict[str, Any] = {"n_prior_episodes": 5, "meta_batch_size": 3, "n_episodes": 4}
    message = r"n_prior_episodes needs a task family whose observations determine the reward .*, got Bandit-v0"
    with pytest.raises(ValueError, match=message):
        MAESN("LatentMlpPolicy", "Bandit-v0", **kwargs)
    buffer = io.BytesIO()
    MAESN("LatentMlpPolicy", "Bandit-v0", **{**kwargs, "n_prior_episodes": None}).save(buffer)
    model = MAESN.load(buffer, n_prior_episodes=5)
    with pytest.raises(ValueError, match=message):
        model.set_env(make_vec("Bandit-v0", 2))


def test_numbers_of_numpy_are_numbers() -> None:
    settings = {"meta_batch_size": np.int64(3), "n_episodes": np.int32(4), "target_kl": np.float32(0.01), "gamma": 1}
    tiny(**settings).learn(1)


def test_bad_settings_of_a_loaded_model() -> None:
    buffer = io.BytesIO()
    tiny().save(buffer)
    with pytest.raises(ValueError, match=r"gamma must be between 0 and 1, got 2\.0"):
        MAESN.load(buffer, gamma=2.0)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("PointGaol-v0", r"unknown task family 'PointGaol-v0'; did you mean PointGoal-v0"),
        ("CartPole-v1", r"this environment has no tasks: expected members with `sample_tasks\(n\)`"),
        (gym.make("CartPole-v1"), "this environment has no tasks"),
    ],
)
def test_bad_environments(env: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MAESN("LatentMlpPolicy", env)


@pytest.mark.parametrize("seed", [None, 0])
def test_no_environment(seed: int | None) -> None:
    with pytest.raises(ValueError, match="expected an environment, got None"):
        MAESN("LatentMlpPolicy", None, seed=seed)


def test_bad_policies() -> None:
    with pytest.raises(ValueError, match="Policy MlpPolicy unknown: MAESN has LatentMlpPolicy"):
        MAESN("MlpPolicy", make_vec(POINT, 2))
    from stable_baselines3.ppo import MlpPolicy

    with pytest.raises(ValueError, match="expected a subclass of LatentActorCriticPolicy, got ActorCriticPolicy"):
        MAESN(MlpPolicy, make_vec(POINT, 2))


def test_a_policy_class_of_ones_own() -> None:
    class Own(LatentActorCriticPolicy):
        pass

    assert isinstance(MAESN(Own, make_vec(POINT, 2)).policy, Own)


# Exact resume

RESUME = """
import json, sys
import torch as th
from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.envs import make_vec
th.set_num_threads(1)
for source, target, members, steps in json.loads(sys.argv[1]):
    model = MAESN.load(source, env=MultiTaskVecEnv(make_vec("PointGoal-v0", members)))
    model.learn(steps, reset_num_timesteps=False)
    model.save(target)
"""


def test_a_run_resumed_in_an_environment_of_the_same_id_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    """The environment that loading makes of an id has more members than the constructor's."""
    net: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "policy_kwargs": {"net_arch": [8]}}
    whole, half = (MAESN("LatentMlpPolicy", "PointGoal-v0", seed=0, **net) for _ in range(2))
    whole.learn(2 * ITERATION)
    half.learn(ITERATION)
    half.save(tmp_path / "half")
    half.save_checkpoint(tmp_path / "checkpoint.zip")
    for load, name in ((MAESN.load, "half"), (MAESN.load_checkpoint, "checkpoint.zip")):
        resumed = load(tmp_path / name, env="PointGoal-v0")
        resumed.learn(ITERATION, reset_num_timesteps=False)
        assert_same(resumed, whole)


def test_a_new_seed_starts_new_randomness(tmp_path: Path) -> None:
    tiny().learn(ITERATION).save(tmp_path / "model")
    loaded = [MAESN.load(tmp_path / "model", env=tiny().env, **kwargs) for kwargs in ({}, {"seed": 5}, {})]
    loaded[2].set_random_seed(5)
    for model in loaded:
        model.learn(ITERATION, reset_num_timesteps=False)
    assert_same(loaded[1], loaded[2])
    assert differ(loaded[0], loaded[1])
    loaded[2].save(tmp_path / "model")
    assert MAESN.load(tmp_path / "model").entropy == 5


def test_a_run_resumed_in_another_process_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    cases = {name: (12, kwargs) for name, kwargs in SETTINGS.items()}
    cases["waves"] = (5, {"inner_update": "reward_weighted", "baseline": "critic", "learning_rate": 1e-2})
    jobs, whole = [], {}
    for name, (members, kwargs) in cases.items():
        runs = [tiny(MultiTaskVecEnv(make_vec(POINT, members)), **kwargs) for _ in range(2)]
        steps = 2 * runs[0].timesteps_per_iteration
        whole[name] = runs[0].learn(2 * steps)
        source, target = str(tmp_path / f"{name}.zip"), str(tmp_path / f"{name} resumed.zip")
        runs[1].learn(steps).save(source)
        jobs.append((source, target, members, steps))
    subprocess.run([sys.executable, "-c", RESUME, json.dumps(jobs)], check=True)
    for name, model in whole.items():
        assert_same(MAESN.load(tmp_path / f"{name} resumed.zip"), model)
