"""RL2: memory across the episodes of a trial, adaptation, exact resume, and learning on a real bandit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import Env, spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from sb3_maesn import RL2, MultiTaskVecEnv, TrialLstmPolicy, TrialVecEnv
from sb3_maesn.config import constructor_arguments, load_entry
from sb3_maesn.envs import FAMILIES, Bandit, make_vec
from sb3_maesn.envs.bandit import bayes_optimal_return
from sb3_maesn.envs.batched import BatchedTaskVecEnv
from sb3_maesn.envs.point import PointGoal, PointPhysics
from sb3_maesn.envs.wrappers import normalizers
from sb3_maesn.evaluation import evaluate_adaptation
from tests.tiny import POINT, log_of
from tests.toy import Walk

GOAL = np.array([0.6, 0.8])
SMALL = {"lstm_hidden_size": 8, "net_arch": [8]}
ITERATION = 6 * 2 * 20  # trials, episodes, steps


def tiny(env: Any = None, **kwargs: Any) -> RL2:
    defaults: dict[str, Any] = {"meta_batch_size": 6, "n_episodes": 2, "n_epochs": 2, "batch_size": 100, "seed": 0}
    env = MultiTaskVecEnv(make_vec(POINT, 3)) if env is None else env
    return RL2("MlpLstmPolicy", env, policy_kwargs=SMALL, **{**defaults, **kwargs})


def assert_same(first: RL2, second: RL2) -> None:
    mine, theirs = first.policy.state_dict(), second.policy.state_dict()
    for name in mine:
        assert th.equal(mine[name], theirs[name]), name
    states = [model.policy.optimizer.state_dict()["state"] for model in (first, second)]
    for slot, moments in states[0].items():
        for name, value in moments.items():
            assert th.equal(value, states[1][slot][name]), (slot, name)
    counters = [(model.num_timesteps, model._n_updates, model._episode_num) for model in (first, second)]
    assert counters[0] == counters[1]


# The memory


def by_step(model: RL2, name: str) -> np.ndarray:
    """An array of the rollout buffer, which training flattens member by member, as (T, n, ...)."""
    array = getattr(model.rollout_buffer, name)
    return array.reshape(model.n_envs, model.n_steps, *array.shape[1:]).swapaxes(0, 1)


def test_hidden_states_are_kept_across_the_episodes_of_a_trial_and_reset_between_trials() -> None:
    """The states of training are those of a plain loop over an LSTM cell that forgets at trials' starts only."""
    model = tiny()  # 6 trials of 3 members: two of 40 steps of each
    weights = {name: value.clone() for name, value in model.policy.lstm_actor.state_dict().items()}
    model.learn(1)
    assert np.flatnonzero(by_step(model, "episode_starts")[:, 0]).tolist() == [
        0,
        40,
    ]  # not where episodes start, 20, 60
    observations, hidden = th.as_tensor(by_step(model, "observations")), by_step(model, "hidden_states_pi")[:, :, 0]
    cell = th.nn.LSTMCell(observations.shape[-1], 8)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in weights.items()})
    state = (th.zeros(3, 8), th.zeros(3, 8))
    with th.no_grad():
        for t in range(80):
            np.testing.assert_allclose(hidden[t], state[0], atol=1e-5)
            if t in (0, 40):
                state = (th.zeros(3, 8), th.zeros(3, 8))
            state = cell(observations[t], state)
    assert np.abs(hidden[20]).max() > 0.01  # the second episode does not begin empty


def test_advantages_run_through_a_trial_and_stop_at_its_end() -> None:
    model = tiny(gamma=0.9, gae_lambda=0.8)
    model.learn(1)
    rewards = model.rollout_buffer.rewards  # the one array that is not flattened
    values, advantages = (by_step(model, name)[..., 0] for name in ("values", "advantages"))
    expected = np.zeros((81, 3))
    for t in reversed(range(80)):
        goes_on = float(t not in (39, 79))
        following = values[t + 1] if goes_on else 0.0
        expected[t] = rewards[t] + 0.9 * following - values[t] + goes_on * 0.9 * 0.8 * expected[t + 1]
    np.testing.assert_allclose(advantages, expected[:80], atol=1e-4)


def test_sequences_are_those_of_sb3_contribs_loop() -> None:
    th.manual_seed(0)
    lstm, features = th.nn.LSTM(5, 8), th.randn(4 * 7, 5)
    states = (th.randn(1, 4, 8), th.randn(1, 4, 8))
    for starts in (th.zeros(4, 7), th.tensor([[1.0], [0.0], [1.0], [0.0]]) * th.eye(7)[0], th.eye(7)[[0, 2, 6, 3]]):
        ours = TrialLstmPolicy._process_sequence(features, states, starts.flatten(), lstm)
        theirs = RecurrentActorCriticPolicy._process_sequence(features, states, starts.flatten(), lstm)
        for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
            th.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_predict_follows_the_policy_that_trains() -> None:
    """Same states as the training's forward pass, with resets where trials start."""
    model, rng = tiny(), np.random.default_rng(0)
    observations = rng.normal(size=(12, 3, 6)).astype(np.float32)
    starts = rng.random((12, 3)) < 0.3
    starts[0] = True
    state, rnn = None, model._empty_states()
    for observation, start in zip(observations, starts, strict=True):
        observation[start, 2:] = 0.0  # nothing happened before a trial
        actions, state = model.predict(observation, state, start, deterministic=True)
        with th.no_grad():
            arguments = (th.as_tensor(observation), rnn, th.as_tensor(start, dtype=th.float32))
            expected, _, _, rnn = model.policy(*arguments, deterministic=True)
        np.testing.assert_allclose(actions, np.clip(expected.numpy(), -1, 1), atol=1e-6)
        assert state is not None
        np.testing.assert_allclose(state[0], rnn.pi[0], atol=1e-6)
    assert isinstance(rnn, RNNStates)


def test_predict_without_a_state_within_a_trial_is_refused() -> None:
    model = tiny()
    one, batch = np.zeros(6, np.float32), np.zeros((3, 6), np.float32)
    for start in (None, np.array([True, False, True])):
        with pytest.raises(ValueError, match=r"expected the state.*got None.*episode_start=numpy.ones"):
            model.predict(batch, episode_start=start)
    action, state = model.predict(one, episode_start=np.array([True]))
    assert action.shape == (2,)
    assert model.predict(one, state)[0].shape == (2,)
    with pytest.raises(ValueError, match=r"observations of size 6.*TrialVecEnv.*got shape \(3, 2\)"):
        model.predict(batch[:, :2], episode_start=np.ones(3, dtype=bool))


# Adaptation


def returns_of_episodes(model: RL2, n_episodes: int) -> list[float]:
    """A deterministic trial on one task, by SB3's recurrent convention."""
    env = TrialVecEnv(MultiTaskVecEnv(make_vec(POINT, 1)), n_episodes, split=None)
    env.set_tasks([GOAL])
    env.seed(5)
    observation, state, start = env.reset(), None, np.ones(1, dtype=bool)
    while True:
        action, state = model.predict(observation, state, start, deterministic=True)
        observation, _, start, infos = env.step(action)  # type: ignore[assignment]  # an array
        if start[0]:
            return list(infos[0]["trial"].returns)


class Still(Walk):
    """Every episode is the same, so that a trial can be cut in two."""


def walks(n: int = 1) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(DummyVecEnv([lambda: Still(discrete=False)] * n), train_tasks=[-1.0, 1.0])


def test_a_trial_goes_on_where_adaptation_stopped() -> None:
    """Two episodes of adaptation and two more are one trial of four, to the last digit of the actions."""
    model = tiny(walks(), n_episodes=4)
    model.learn(200)  # so that the memory matters
    whole = model.evaluate_trials(walks(), [1.0], n_episodes=4, deterministic=True).returns[:, 0, 0]
    adapted = model.adapt(walks(), task=1.0, n_episodes=2, deterministic=True)
    assert adapted.adaptation is not None
    np.testing.assert_array_equal(adapted.adaptation.returns[:, 0, 0], whole[:2])
    rest = adapted.evaluate_trials(walks(), [1.0], n_episodes=2, deterministic=True).returns[:, 0, 0]
    np.testing.assert_allclose(rest, whole[2:], rtol=1e-6)
    assert len(set(whole.round(5))) == 4  # the memory makes every episode different
    again = model.evaluate_trials(walks(), [1.0], n_episodes=4, deterministic=True).returns[:, 0, 0]
    np.testing.assert_array_equal(again, whole)  # the model itself stays as it was


def test_the_adapted_memory_is_saved_and_begins_every_trial(tmp_path: Path) -> None:
    adapted = tiny().adapt(POINT, task=GOAL, n_episodes=2)
    adapted.save(tmp_path / "adapted")
    loaded = RL2.load(tmp_path / "adapted")
    assert returns_of_episodes(loaded, 2) == returns_of_episodes(adapted, 2)
    assert returns_of_episodes(loaded, 2) != returns_of_episodes(tiny(), 2)
    env = TrialVecEnv(MultiTaskVecEnv(VecMonitor(make_vec(POINT, 4))), 1)
    mean, _ = evaluate_policy(adapted, env, n_eval_episodes=8)
    assert np.isfinite(mean)


def test_evaluation_is_by_episode_of_the_trial_and_does_not_depend_on_waves() -> None:
    model = tiny(walks(2))
    result = model.evaluate_trials(walks(4), [-1.0, 1.0], n_episodes=3, n_trials=2, deterministic=True)
    assert result.returns.shape == result.success.shape == (3, 2, 2)
    assert (result.lengths == 6).all()
    np.testing.assert_allclose(result.returns[..., 0], result.returns[..., 1], rtol=1e-6)  # nothing is random
    assert (result.returns[:, 0] != result.returns[:, 1]).all()  # but the tasks differ
    waves = model.evaluate_trials(walks(3), [-1.0, 1.0], n_episodes=3, n_trials=2, deterministic=True)
    np.testing.assert_allclose(waves.returns, result.returns, rtol=1e-6)


def test_evaluate_adaptation_speaks_of_rounds() -> None:
    model = tiny(walks(2))
    result = evaluate_adaptation(model, walks(4), [-1.0, 1.0], n_rounds=2, n_episodes=2, seed=3)
    same = model.evaluate_trials(walks(4), [-1.0, 1.0], n_episodes=3, n_trials=2, seed=3)
    np.testing.assert_array_equal(result.returns, same.returns)
    assert result.mean.shape == (3, 2, 0)
    wrong: list[dict[str, Any]] = [{"rule": "kernel"}, {"n_eval_episodes": 5}, {"eval_rounds": [1]}]
    for settings in wrong:
        with pytest.raises(ValueError, match="RL2 adapts by its memory"):
            evaluate_adaptation(model, walks(), [1.0], **settings)


# Training


def test_a_resumed_run_is_bit_for_bit_one_that_never_stopped(tmp_path: Path) -> None:
    whole = tiny().learn(4 * ITERATION)
    first = tiny().learn(2 * ITERATION)
    first.save(tmp_path / "half")
    second = RL2.load(tmp_path / "half", env=MultiTaskVecEnv(make_vec(POINT, 3)))
    th.manual_seed(99)  # the global generators do not matter
    second.learn(2 * ITERATION, reset_num_timesteps=False)
    assert_same(whole, second)


def test_a_policy_that_observes_rewards_sees_normalised_ones_when_it_adapts_too() -> None:
    model = tiny(VecNormalize(MultiTaskVecEnv(make_vec(POINT, 4)), norm_obs=False, gamma=0.9))
    model.learn(model.timesteps_per_iteration)
    assert model.ep_info_buffer is not None
    logged = [episode["r"] for episode in model.ep_info_buffer]
    plain = tiny(MultiTaskVecEnv(make_vec(POINT, 4)))
    plain.learn(plain.timesteps_per_iteration)
    assert plain.ep_info_buffer is not None
    assert logged != [episode["r"] for episode in plain.ep_info_buffer]  # other rewards, other actions
    assert np.mean(logged) == pytest.approx(np.mean([episode["r"] for episode in plain.ep_info_buffer]), rel=0.5)
    seen: list[float] = []
    predict = type(model.policy).predict

    def spy(policy: Any, observation: np.ndarray, *args: Any) -> Any:
        seen.extend(np.abs(observation[:, -2]).tolist())
        return predict(policy, observation, *args)

    assert model.env is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.policy), "predict", spy)
        result = model.evaluate_trials(model.env, [np.array([0.0, 1.0])], seed=0)
    scale = float(np.sqrt(normalizers(model.env)[0].ret_rms.var))
    assert max(seen) == pytest.approx(np.abs(result.returns).max() / 20 / scale, rel=0.5)
    with pytest.raises(ValueError, match="expected an environment that normalises rewards as the training"):
        model.adapt(MultiTaskVecEnv(make_vec(POINT, 1)), task=np.array([0.0, 1.0]))


@pytest.mark.parametrize("n_steps", [50, 150])  # within the first trials, and after them
def test_an_iteration_that_was_cut_short_is_done_again(n_steps: int) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < ITERATION + n_steps

    model = tiny().learn(2 * ITERATION, callback=Stop())
    assert model._n_updates == 1
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) == 6  # trials of the whole iteration
    model.learn(ITERATION, reset_num_timesteps=False)
    assert_same(model, tiny().learn(2 * ITERATION))


def test_training_leaves_the_global_generators_alone() -> None:
    model = tiny()
    np.random.seed(3)  # noqa: NPY002  # the global generator is what is tested
    th.manual_seed(3)
    model.learn(1)
    after = th.rand(1), np.random.rand()  # noqa: NPY002  # the global generator is what is tested
    np.random.seed(3)  # noqa: NPY002  # the global generator is what is tested
    th.manual_seed(3)
    assert after == (th.rand(1), np.random.rand())  # noqa: NPY002  # the global generator is what is tested


def test_another_number_of_members_and_the_models_own_environment() -> None:
    model = tiny()
    model.learn(1)
    model.set_env(make_vec(POINT, 6))
    assert (model.n_envs, model.n_steps, model.timesteps_per_iteration) == (6, 40, ITERATION)
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model._n_updates == 2
    own = model.get_env()
    assert own is not None
    model.set_env(own)
    assert model.get_env() is own
    adapted = model.adapt(task=GOAL)  # in its own environment
    assert adapted.adaptation is not None
    assert adapted.adaptation.returns.shape == (2, 1, 1)


def test_log_has_first_and_last_episodes() -> None:
    model = tiny(walks(3), n_episodes=3)
    rows = log_of(model, 2)  # type: ignore[arg-type]  # any algorithm
    for name in (
        "rollout/ep_rew_mean",
        "rollout/pre_ep_rew_mean",
        "rollout/trial_rew_mean",
        "rollout/pre_success_rate",
    ):
        assert np.isfinite(rows[0][name]), name
    assert rows[0]["rollout/ep_len_mean"] == 6
    assert rows[1]["train/n_updates"] == 1
    assert rows[1]["time/collect_seconds"] > 0
    trials = np.array([trial.returns for trial in model._trials])
    assert rows[1]["rollout/pre_ep_rew_mean"] == pytest.approx(trials[:, 0].mean())
    assert rows[1]["rollout/trial_rew_mean"] == pytest.approx(trials.sum(axis=1).mean())


class CliffPhysics(PointPhysics):
    edge = -0.2

    def step(self, controls: np.ndarray) -> np.ndarray:
        super().step(controls)
        return np.asarray(self.state["qpos"][:, 1] < self.edge)


class Cliff(PointGoal):
    """A PointGoal whose simulation diverges below the line y = -0.2."""

    def make_physics(self, n: int, n_threads: int = 0) -> CliffPhysics:
        return CliffPhysics(n)


def cliffs(n: int) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(BatchedTaskVecEnv(Cliff(), n))


def test_episodes_that_diverge_are_counted_and_left_out_of_the_statistics() -> None:
    class Watch(BaseCallback):
        n_diverged = 0

        def _on_step(self) -> bool:
            self.n_diverged += sum(info.get("diverged", False) for info in self.locals["infos"])
            return True

    model, watch = tiny(cliffs(6)), Watch()
    (row,) = log_of(model, 1, callback=watch)  # type: ignore[arg-type]  # any algorithm
    trials = model._trials
    assert row["rollout/n_diverged"] == watch.n_diverged >= sum(trial.diverged.sum() for trial in trials) > 0
    last = [trial.lengths[-1] for trial in trials if not trial.diverged[-1]]
    assert 0 < len(last) < len(trials)
    assert row["rollout/ep_len_mean"] == np.mean(last) == 20
    first = [trial.returns[0] for trial in trials if not trial.diverged[0]]
    assert row["rollout/pre_ep_rew_mean"] == pytest.approx(np.mean(first))


def test_an_iteration_in_which_everything_diverges_goes_on() -> None:
    class Chasm(Cliff):
        def make_physics(self, n: int, n_threads: int = 0) -> Any:
            physics = CliffPhysics(n)
            physics.edge = np.inf
            return physics

    model = tiny(MultiTaskVecEnv(BatchedTaskVecEnv(Chasm(), 3)))
    (row,) = log_of(model, 1)  # type: ignore[arg-type]  # any algorithm
    assert row["rollout/n_diverged"] == ITERATION  # one at every step
    assert "rollout/pre_ep_rew_mean" not in row
    result = model.evaluate_trials(model.get_env(), [GOAL, -GOAL], n_trials=2)  # type: ignore[arg-type]  # not None
    assert (result.lengths == 0).all()
    assert np.isnan(result.returns).all()


def test_an_episode_that_diverged_has_the_worst_return_of_its_round_and_task() -> None:
    """The contract of AdaptationResult, in which other algorithms report too."""
    result = tiny(cliffs(6)).evaluate_trials(cliffs(20), [GOAL, -GOAL], n_episodes=3, n_trials=20, seed=1)
    diverged = result.lengths == 0
    assert (result.lengths[~diverged] == 20).all()
    for returns, lost in zip(result.returns.reshape(-1, 20), diverged.reshape(-1, 20), strict=True):
        assert 0 < lost.sum() < 20
        assert (returns[lost] == returns[~lost].min()).all()
    assert (result.success[diverged] == 0).all()


def test_it_does_not_learn_to_diverge() -> None:
    """Although an episode that diverges at once has the return nearest to 0."""
    network = {"lstm_hidden_size": 32}
    model = RL2("MlpLstmPolicy", cliffs(40), 3e-3, 40, n_episodes=2, n_epochs=5, policy_kwargs=network, seed=0)

    def share() -> float:
        result = model.evaluate_trials(cliffs(40), list(PointGoal().task_set("validation", 40)))
        return float((result.lengths == 0).mean())

    assert share() > 0.3
    model.learn(24_000)
    assert share() < 0.05


def test_a_horizon_below_the_members_own_is_refused() -> None:
    """An episode of a single member cannot be cut, so no trial would end within the iteration."""
    model = tiny(MultiTaskVecEnv(make_vec(POINT, 3), horizon=10))
    with pytest.raises(ValueError, match="at most 10 steps, the horizon of the MultiTaskVecEnv, got one of member 0"):
        model.learn(1)


def test_it_learns_a_bandit() -> None:
    """Better than any player without a memory could be, after a few seconds, and near the Bayes-optimal return."""
    env = MultiTaskVecEnv(make_vec("Bandit-v0", 250))
    settings: dict[str, Any] = {"learning_rate": 1e-2, "n_epochs": 4, "batch_size": 625, "gamma": 1.0, "seed": 0}
    network = {"lstm_hidden_size": 16, "net_arch": []}
    model = RL2("MlpLstmPolicy", env, meta_batch_size=250, n_episodes=1, policy_kwargs=network, **settings)
    model.learn(25 * model.timesteps_per_iteration)
    tasks = Bandit().sample_tasks(4000, np.random.default_rng(1))
    result = model.evaluate_trials("Bandit-v0", list(tasks), deterministic=True)
    assert result.mean_return[0] > 0.92 * bayes_optimal_return(10)  # without a memory 5.0, 83 % of it


def test_shipped_settings_build_a_model(root: Path) -> None:
    for env_id in [*(env_id for env_id in FAMILIES if "Sparse" not in env_id), "Other-v0"]:
        entry = load_entry(root / "zoo_configs" / "rl2.yml", env_id)
        arguments = constructor_arguments(entry, RL2)
        model = RL2(entry["policy"], POINT if env_id == "Other-v0" else env_id, **arguments)
        assert entry["n_envs"] == model.n_envs == entry["meta_batch_size"]
        assert entry["n_timesteps"] % model.timesteps_per_iteration == 0 or env_id == "Other-v0"


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_episodes": 0}, "trials of at least 1 episode, got n_episodes=0"),
        ({"meta_batch_size": 0}, "meta_batch_size must be at least 1, got 0"),
        ({"n_epochs": 0}, "n_epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, or None for all steps, got 0"),
        ({"n_steps": 128}, "n_steps follows from .* got n_steps=128"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_environments_and_policies_that_do_not_fit_are_refused() -> None:
    class NoTasks(Env[np.ndarray, Any]):
        observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)
        horizon = 3

        def reset(self, **_: Any) -> tuple[np.ndarray, dict[str, Any]]:
            return np.zeros(2, np.float32), {}

    with pytest.raises(ValueError, match="no tasks"):
        tiny(NoTasks())
    with pytest.raises(ValueError, match="expected an environment, got None"):
        RL2("MlpLstmPolicy", None)
    with pytest.raises(ValueError, match="expected a subclass of TrialLstmPolicy, got RecurrentActorCriticPolicy"):
        RL2(RecurrentActorCriticPolicy, POINT)  # type: ignore[arg-type]  # refused, as it should be
    with pytest.raises(ValueError, match="expected trials of 2 episodes, got trials of 3"):
        tiny(TrialVecEnv(walks(), 3))
    with pytest.raises(ValueError, match="expected use_sde=False"):
        tiny(use_sde=True)
    model = tiny()
    with pytest.raises(ValueError, match="expected a task"):
        model.adapt(POINT)
    with pytest.raises(ValueError, match="trials of at least 1 episode"):
        model.adapt(POINT, task=GOAL, n_episodes=0)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        model.adapt(POINT, task=GOAL, seed=-1)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.adapt("WheeledGoal-v0", task=2 * GOAL)
