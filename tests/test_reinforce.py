"""REINFORCE: its step is the policy gradient's, it learns, and runs resume exactly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn import REINFORCE, MultiTaskVecEnv
from sb3_maesn.common.objectives import normalise_steps
from sb3_maesn.common.type_aliases import TaskBatch
from sb3_maesn.envs import make_vec
from tests.toy import ThirdParty, Walk

ITERATION = 10 * 20  # environment steps of PointGoal


def point(n: int = 10) -> MultiTaskVecEnv:
    env = MultiTaskVecEnv(make_vec("PointGoal-v0", n))
    return env.only(env.task("train", 3))


def mean_return(model: REINFORCE, env: VecEnv) -> float:
    mean, _ = evaluate_policy(model, env, n_eval_episodes=20, deterministic=True, warn=False)
    assert isinstance(mean, float)
    return mean


def tiny(env: Any = None, **kwargs: Any) -> REINFORCE:
    defaults: dict[str, Any] = {"n_episodes": 10, "seed": 0, "policy_kwargs": {"net_arch": [8]}}
    return REINFORCE("MlpPolicy", point() if env is None else env, **{**defaults, **kwargs})


class Spy(REINFORCE):
    """Keeps the episodes of the last iteration."""

    seen: TaskBatch

    def train(self) -> None:
        assert self._batch is not None
        self.seen = self._batch
        super().train()


def plain_gradient(model: REINFORCE, batch: TaskBatch, names: Sequence[str]) -> dict[str, th.Tensor]:
    """Mean over the steps of advantage times the score, from SB3's own ``evaluate_actions``."""
    rollout = batch.rollout
    valid = rollout.mask.bool()
    advantages = normalise_steps(batch.advantages, rollout.mask)[valid]
    _, log_prob, _ = model.policy.evaluate_actions(rollout.observations[valid], rollout.actions[valid])
    parameters = dict(model.policy.named_parameters())
    gradients = th.autograd.grad((advantages * log_prob).mean(), [parameters[name] for name in names])
    return dict(zip(names, gradients, strict=True))


def test_a_step_goes_along_the_policy_gradient() -> None:
    """By gradient descent without Adam's scaling, the parameters move by the step size times the gradient."""
    model = Spy("MlpPolicy", point(), n_episodes=10, seed=0, policy_kwargs={"net_arch": [8]})
    model.policy.optimizer = th.optim.SGD(model.policy.parameters(), lr=0.5)  # set to the learning rate by train
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    model.learn(1)
    after = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    model.policy.load_state_dict({**model.policy.state_dict(), **before})
    acting = [name for name in before if "value" not in name]
    for name, gradient in plain_gradient(model, model.seen, acting).items():
        assert gradient.abs().max() > 0
        assert th.allclose(after[name] - before[name], 1e-2 * gradient, atol=1e-6), name
    assert all(th.equal(after[name], before[name]) for name in before if name not in acting)


def test_more_steps_go_further() -> None:
    rows = [tiny(n_gradient_steps=n).learn(1) for n in (1, 5)]
    first, fifth = (model.logger.name_to_value["train/kl_divergence"] for model in rows)
    assert 0 < first < fifth


@pytest.mark.parametrize("discrete", [True, False])
def test_it_learns_to_walk(discrete: bool) -> None:
    venv = make_vec_env(lambda: Walk(discrete=discrete), 10)
    env = MultiTaskVecEnv(venv, train_tasks=[-1.0, 1.0]).only(-1.0)
    assert mean_return(tiny(env, learning_rate=0.1).learn(20 * 10 * 6), env) > 5.5  # of 6


def test_it_learns_a_task_of_a_family_and_keeps_statistics() -> None:
    model = tiny(learning_rate=0.1)
    before = mean_return(model, point())
    model.learn(12 * ITERATION)
    assert mean_return(model, point()) > before + 4.0
    assert model.num_timesteps == 12 * ITERATION
    assert model._episode_num == 120
    assert model.ep_info_buffer is not None
    assert len(model.ep_info_buffer) == 100


def test_environment_without_tasks_is_one_task() -> None:
    model = tiny("CartPole-v1", n_episodes=4).learn(1)
    assert model.n_steps == 500
    assert model.predict(np.zeros(4, np.float32))[1] is None


def test_waves_collect_as_many_episodes() -> None:
    model = tiny(point(3)).learn(2 * ITERATION)
    assert model.num_timesteps == 2 * ITERATION
    assert model._episode_num == 20


def parameters(model: REINFORCE) -> dict[str, th.Tensor]:
    moments = model.get_parameters()["policy.optimizer"]["state"]
    adam = {f"adam.{i}.{name}": th.as_tensor(value) for i, slots in moments.items() for name, value in slots.items()}
    return {**model.policy.state_dict(), **adam}


@pytest.mark.parametrize("safe", [False, True])
def test_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path, safe: bool) -> None:
    whole = tiny().learn(4 * ITERATION)
    half = tiny().learn(2 * ITERATION)
    if safe:
        half.save_checkpoint(tmp_path / "half.zip")
        resumed = REINFORCE.load_checkpoint(tmp_path / "half.zip", env=point())
    else:
        half.save(tmp_path / "half")
        resumed = REINFORCE.load(tmp_path / "half", env=point())
    resumed.learn(2 * ITERATION, reset_num_timesteps=False)
    expected, got = parameters(whole), parameters(resumed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert th.equal(value, got[name]), name
    assert resumed.num_timesteps == whole.num_timesteps


def test_a_stopped_iteration_is_done_again() -> None:
    model = tiny()
    model.learn(ITERATION)
    model.learn(ITERATION, callback=lambda *_: False, reset_num_timesteps=False)
    assert model.num_timesteps == ITERATION + 10
    model.learn(ITERATION, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * ITERATION
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), tiny_after(2), strict=True))


def tiny_after(n: int) -> list[th.nn.Parameter]:
    return list(tiny().learn(n * ITERATION).policy.parameters())


@pytest.mark.parametrize(
    ("env", "n_tasks"),
    [(lambda: MultiTaskVecEnv(make_vec("PointGoal-v0", 2)), "100"), (lambda: "PointGoal-v0", "many")],
)
def test_several_tasks_are_refused(env: Any, n_tasks: str) -> None:
    with pytest.raises(ValueError, match=rf"with one task, got one with {n_tasks}: choose with MultiTaskVecEnv"):
        tiny(env())


def test_unknown_horizon_is_refused() -> None:
    class NoHorizon(ThirdParty):
        def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
            if attr_name == "render_mode":
                return [None] * self.num_envs
            raise AttributeError(attr_name)

    env: VecEnv = NoHorizon(2, 5)
    with pytest.raises(ValueError, match="horizon is unknown"):
        tiny(env)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_episodes": 1}, "n_episodes must be at least 2, got 1"),
        ({"n_gradient_steps": 0}, "n_gradient_steps must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_no_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an environment, got None"):
        REINFORCE("MlpPolicy", None)


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="expected device 'cpu' or 'auto', got 'meta'"):
        tiny(device="meta")
    assert tiny(device="auto").device == th.device("cpu")
