"""Pretrained files: what is written comes back, and what is no such file is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from safetensors.torch import save_file

from sb3_maesn import MAESN, list_pretrained


@pytest.fixture(scope="module")
def model() -> MAESN:
    kwargs = {"latent_dim": 3, "net_arch": {"pi": [16], "vf": [8]}, "activation_fn": th.nn.Tanh}
    trained = MAESN(
        "LatentMlpPolicy", "PointGoal-v0", meta_batch_size=4, n_episodes=4, gamma=0.9, seed=3, policy_kwargs=kwargs
    )
    return trained.learn(trained.timesteps_per_iteration)


def predictions(model: MAESN) -> np.ndarray:
    th.manual_seed(0)
    return model.predict(np.random.default_rng(0).normal(size=(5, 2)))[0]


def test_a_written_model_predicts_adapts_and_trains_as_before(model: MAESN, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    model.save_pretrained(path, "PointGoal-v0")
    loaded = MAESN.from_pretrained(path)
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    assert loaded.gamma == 0.9
    assert loaded.policy.latent_dim == 3
    task = np.array([0.0, 1.0])
    mine, theirs = (m.adapt("PointGoalSparse-v0", task=task, n_rounds=2, n_episodes=4) for m in (loaded, model))
    assert mine.adaptation is not None
    assert theirs.adaptation is not None
    np.testing.assert_array_equal(mine.adaptation.returns, theirs.adaptation.returns)
    loaded.set_env("PointGoal-v0")
    loaded.learn(loaded.timesteps_per_iteration)


def test_files_that_are_not_ours_are_refused(model: MAESN, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": th.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="without its settings"):
        MAESN.from_pretrained(foreign)
    whole = tmp_path / "whole.safetensors"
    model.save_pretrained(whole, "PointGoal-v0")
    data = whole.read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("empty", b"")):
        damaged = tmp_path / f"{name}.safetensors"
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match="expected a model file"):
            MAESN.from_pretrained(damaged)
    renamed = tmp_path / "renamed.safetensors"
    renamed.write_bytes(data.replace(b"n_episodes", b"n_episodez"))
    with pytest.raises(ValueError, match="n_episodez"):
        MAESN.from_pretrained(renamed)


def test_an_unknown_name_is_met_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean maesn-WheeledGoal-v0"):
        MAESN.from_pretrained("maesn-WheelGoal-v0")


@pytest.mark.parametrize("name", list_pretrained())
def test_every_shipped_policy_loads_and_acts(name: str) -> None:
    shipped = MAESN.from_pretrained(name)
    observation = shipped.observation_space.sample()
    action, state = shipped.predict(np.zeros_like(observation))
    assert shipped.action_space.contains(action)
    assert state is not None
