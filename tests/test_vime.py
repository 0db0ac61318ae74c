"""VIME: what its rewards are made of, that runs resume exactly, and which environments it takes."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_maesn import VIME, MultiTaskVecEnv
from sb3_maesn.common.information_gain import Transitions
from sb3_maesn.envs import make_vec
from tests.toy import ThirdParty, Walk

TINY: dict[str, Any] = {
    "n_steps": 40,
    "batch_size": 40,
    "n_critic_updates": 1,
    "policy_kwargs": {"net_arch": [8]},
    "dynamics_net_arch": [8],
    "n_dynamics_updates": 5,
    "n_dynamics_samples": 3,
    "device": "cpu",
}


def point(n: int = 2) -> VecEnv:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", n))
    return env.only(env.task("train", 3))


def tiny(env: Any = None, seed: int | None = 0, **kwargs: Any) -> VIME:
    return VIME("MlpPolicy", point() if env is None else env, seed=seed, **{**TINY, **kwargs})


class Spy(VIME):
    """Keeps the transitions and the buffer of the last iteration as they were before the update."""

    seen: Transitions
    kept: dict[str, np.ndarray]

    def _transitions(self, rollout_buffer: RolloutBuffer) -> Transitions:
        self.kept = {"plain": rollout_buffer.rewards.copy(), "plain_advantages": rollout_buffer.advantages.copy()}
        self.seen = super()._transitions(rollout_buffer)
        return self.seen

    def train(self) -> None:
        buffer = self.rollout_buffer
        self.kept |= {"rewards": buffer.rewards.copy(), "advantages": buffer.advantages.copy()}
        self.kept |= {"values": buffer.values.copy(), "returns": buffer.returns.copy()}
        super().train()


def test_a_dynamics_model_that_is_not_trained_does_no_harm() -> None:
    model = tiny(n_dynamics_updates=0).learn(80)
    assert model.num_timesteps == 80


def spy(env: Any, **kwargs: Any) -> Spy:
    model = Spy("MlpPolicy", env, seed=0, **{**TINY, **kwargs})
    model.learn(1)
    return model


def test_rewards_are_the_environments_and_the_gains() -> None:
    alone, curious = spy(point(), eta=0.0), spy(point(), eta=0.5)
    assert np.array_equal(alone.kept["rewards"], alone.kept["plain"])
    assert np.allclose(alone.kept["advantages"], alone.kept["plain_advantages"], atol=1e-6)
    assert np.array_equal(curious.kept["plain"], alone.kept["plain"])
    added = curious.kept["rewards"] - curious.kept["plain"]
    assert (added > 0).all()
    assert th.from_numpy(added).median().item() == pytest.approx(0.5, rel=1e-4)  # of the gains over their median


def test_advantages_are_those_of_the_new_rewards() -> None:
    """Every member's steps are two whole episodes of 20, so the values after the last step do not count."""
    kept = spy(point(), eta=0.5, gamma=0.9, gae_lambda=0.8).kept
    advantage = np.zeros(2)
    for t in reversed(range(40)):
        last = t in (19, 39)
        following = 0.0 if last else kept["values"][t + 1]
        delta = kept["rewards"][t] + 0.9 * following - kept["values"][t]
        advantage = delta + (0.0 if last else 0.9 * 0.8 * advantage)
        assert np.allclose(kept["advantages"][t], advantage, atol=1e-5)
    assert np.allclose(kept["returns"], kept["advantages"] + kept["values"], atol=1e-6)


def test_next_observations_cross_no_episode() -> None:
    """A walk's observation is its position, which one step moves by the action, also where an episode ends."""
    seen = spy(make_vec_env(lambda: Walk(discrete=False), 3), n_steps=14, batch_size=42).seen  # episodes of 6 steps
    assert seen.observations.shape == (14 * 3, 1)
    assert th.allclose(seen.next_observations, seen.observations + seen.actions, atol=1e-6)
    assert (seen.actions.abs() <= 1.0).all()  # as the environment got them


def test_discrete_spaces_become_one_hot() -> None:
    class Corridor(gym.Env[Any, Any]):
        observation_space = spaces.Discrete(4)
        action_space = spaces.Discrete(2)
        at = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
            super().reset(seed=seed)
            self.at = 0
            return self.at, {}

        def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
            self.at = int(np.clip(self.at + 2 * action - 1, 0, 3))
            return self.at, 0.0, self.at == 3, False, {}

    seen = spy(DummyVecEnv([Corridor, Corridor])).seen
    assert seen.observations.shape == (80, 4)
    assert seen.actions.shape == (80, 2)
    at, to = seen.observations.argmax(dim=1), seen.next_observations.argmax(dim=1)
    assert th.equal(to, (at + 2 * seen.actions.argmax(dim=1) - 1).clamp(0, 3))
    assert (to == 3).any()  # which only a last observation can be


def state(model: VIME) -> dict[str, th.Tensor]:
    found = model.get_parameters()
    pool = model.curiosity.pool.transitions
    assert pool is not None
    return {
        **{f"policy.{name}": value for name, value in found["policy"].items()},
        **{f"curiosity.{name}": value for name, value in model.curiosity.named_parameters()},
        **pool._asdict(),
        "medians": th.tensor(list(model.curiosity.medians)),
        "counters": th.tensor([model.num_timesteps, model._n_updates]),
    }


def test_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole = tiny().learn(4 * 80)
    half = tiny().learn(2 * 80)
    half.save(tmp_path / "half")
    np.random.seed(1)  # noqa: NPY002  # whatever the global generators do in between
    th.manual_seed(1)
    resumed = VIME.load(tmp_path / "half", env=point(), device="cpu")
    resumed.learn(2 * 80, reset_num_timesteps=False)
    expected, got = state(whole), state(resumed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert th.equal(value, got[name]), name
    observation = np.zeros((1, 2))
    first, second = (model.predict(observation, deterministic=True)[0] for model in (whole, resumed))
    assert np.array_equal(first, second)


class Short(gym.Wrapper[Any, Any, Any, Any]):
    """Ends after 5 steps and does not say so."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, float(reward), terminated, self.t == 5, info


def test_a_horizon_that_only_the_wrapper_knows_makes_resumed_runs_exact(tmp_path: Path) -> None:
    def make() -> VecEnv:
        members = DummyVecEnv([lambda: Short(gym.make("Pendulum-v1"))] * 2)
        return MultiTaskVecEnv(members, horizon=5, train_tasks=[0.0], task_adapter=lambda *_: None)

    whole, first = tiny(make(), n_steps=12, batch_size=24).learn(72), tiny(make(), n_steps=12, batch_size=24).learn(24)
    first.save(tmp_path / "model")
    second = VIME.load(tmp_path / "model", make(), device="cpu").learn(48, reset_num_timesteps=False)
    assert state(whole).keys() == state(second).keys()
    assert all(th.equal(value, state(second)[name]) for name, value in state(whole).items())


def test_an_environment_that_offers_reset_and_step_only() -> None:
    for env in (ThirdParty(2, 6), MultiTaskVecEnv(ThirdParty(2, 6), horizon=6, train_tasks=[1.0])):
        assert tiny(env, seed=None, n_steps=8, batch_size=16).learn(16).num_timesteps == 16


def test_global_generators_are_left_alone() -> None:
    model = tiny()
    th.manual_seed(5)
    expected = th.randn(3)
    th.manual_seed(5)
    model.learn(80)
    assert th.equal(th.randn(3), expected)


def test_runs_differ_without_a_seed_and_agree_with_one() -> None:
    first, second, third = (tiny(seed=seed).learn(80).policy.state_dict() for seed in (3, 3, None))
    assert all(th.equal(first[name], second[name]) for name in first)
    assert not all(th.equal(first[name], third[name]) for name in first)


def test_episodes_longer_than_the_steps_go_on() -> None:
    """PointGoal's 20 steps in iterations of 15: the second iteration takes up where the first stopped."""

    class Elapsed(BaseCallback):
        first: list[int] = []  # noqa: RUF012  # shared by its instances on purpose

        def _on_rollout_start(self) -> None:
            self.first.append(self.training_env.get_attr("elapsed_steps")[0])

        def _on_step(self) -> bool:
            return True

    watch = Elapsed()
    tiny(n_steps=15, batch_size=30).learn(3 * 30, callback=watch)
    assert watch.first == [0, 15, 10]


@pytest.mark.parametrize("as_list", [True, False])
def test_callbacks_are_called_and_can_stop(as_list: bool) -> None:
    calls: list[int] = []

    def stop(variables: dict[str, Any], _: dict[str, Any]) -> bool:
        calls.append(variables["self"].num_timesteps)
        return len(calls) < 5

    model = tiny()
    model.learn(400, callback=[stop] if as_list else stop)  # type: ignore[list-item]  # a callback, or a function as SB3 takes it
    assert calls == [2, 4, 6, 8, 10]
    assert model._n_updates == 0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "SparseMountainCar-v0"])
def test_any_gymnasium_environment(env_id: str) -> None:
    model = tiny(env_id).learn(80)
    assert model.env is not None
    mean, _ = evaluate_policy(model, model.env, n_eval_episodes=1, warn=False)
    assert np.isfinite(mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -1.0}, "eta must be at least 0, got -1.0"),
        ({"prior_std": 0.0}, "prior_std must be positive, got 0.0"),
        ({"pool_size": 0}, "pool_size must be at least 1, got 0"),
        ({"dynamics_net_arch": [8, 0]}, r"dynamics_net_arch must be numbers of at least 1, got \[8, 0\]"),
        ({"n_dynamics_data": 0}, "n_dynamics_data must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_dict_observations_are_refused() -> None:
    class Dictionary(gym.Env[Any, Any]):
        observation_space = spaces.Dict({"a": spaces.Box(0, 1, (1,))})
        action_space = spaces.Discrete(2)

    with pytest.raises(ValueError, match="FlattenObservation"):
        VIME("MultiInputPolicy", DummyVecEnv([Dictionary]), **TINY)
