"""Hyperparameter files: plain YAML only, and mistakes are named."""

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_maesn import MAESN, MAML
from sb3_maesn.common.settings import constructor_parameters
from sb3_maesn.config import (
    SCRIPT_KEYS,
    ConfigError,
    constructor_arguments,
    did_you_mean,
    load_entry,
    parse_overrides,
)
from sb3_maesn.envs import FAMILIES


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "conf.yml"
    path.write_text(text)
    return path


def test_entry_of_the_environment_comes_before_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "default: {gamma: 0.9}\nPointGoal-v0: {gamma: 0.8}")
    assert load_entry(path, "PointGoal-v0") == {"gamma": 0.8}
    assert load_entry(path, "Other-v0") == {"gamma": 0.9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PointGoal-v0: {gamma: 0.8}", "no entry for PointGaol-v0.*did you mean PointGoal-v0"),
        ("default: 3", "must be a mapping"),
        ("- 1", "must hold a mapping"),
        ("a: [", "not plain YAML"),
        ("default: !!python/object/apply:os.system ['true']", "not plain YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_entry(write(tmp_path, text), "PointGaol-v0")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yml"):
        load_entry(tmp_path / "nowhere.yml", "PointGoal-v0")


def test_overrides_are_yaml() -> None:
    pairs = ["gamma:0.95", "policy_kwargs:{latent_dim: 3, activation_fn: tanh}", "baseline:critic"]
    expected = {"gamma": 0.95, "policy_kwargs": {"latent_dim": 3, "activation_fn": "tanh"}, "baseline": "critic"}
    assert parse_overrides(pairs) == expected


@pytest.mark.parametrize("pair", ["gamma", ":3", "gamma:[", "gamma:!!python/name:os.system"])
def test_malformed_overrides_are_refused(pair: str) -> None:
    with pytest.raises(ConfigError):
        parse_overrides([pair])


def test_names_become_objects() -> None:
    entry = {"learning_rate": "lin_1e-3", "target_kl": "1e-2", "policy_kwargs": {"activation_fn": "tanh"}}
    arguments = constructor_arguments(entry, MAESN)
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert arguments["learning_rate"](0.5) == pytest.approx(5e-4)
    assert arguments["target_kl"] == 0.01
    assert arguments["policy_kwargs"]["activation_fn"] is nn.Tanh


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"metabatch_size": 3}, "did you mean meta_batch_size"),
        ({"learning_rate": "lin_fast"}, "lin_<number>"),
        ({"policy_kwargs": {"activation_fn": "print"}}, "activation_fn must be one of"),
        ({"policy_kwargs": 3}, "must be a mapping"),
    ],
)
def test_bad_entries_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        constructor_arguments(entry, MAESN)


def test_parameters_are_found_through_base_classes() -> None:
    assert {"meta_batch_size", "gamma", "seed", "policy_kwargs"} <= set(constructor_parameters(MAESN))


def test_nothing_near_is_not_suggested() -> None:
    assert did_you_mean("zzz", ["gamma"]) == ""


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(MAESN, "maesn.yml"), (MAESN, "maesn-paper.yml"), (MAML, "maml.yml"), (MAML, "maml-promp.yml")],
)
@pytest.mark.parametrize("env_id", [env_id for env_id in FAMILIES if "Sparse" not in env_id])
def test_shipped_entries_build_a_model(root: Path, algorithm: Any, name: str, env_id: str) -> None:
    entry = load_entry(root / "zoo_configs" / name, env_id)
    arguments = constructor_arguments({k: v for k, v in entry.items() if k not in SCRIPT_KEYS}, algorithm)
    algorithm(entry["policy"], env_id, **arguments)
    assert entry["n_timesteps"] > 0
