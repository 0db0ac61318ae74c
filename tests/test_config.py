"""Hyperparameter files: plain YAML only, and mistakes are named."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.utils import LinearSchedule
from torch import nn

from sb3_maesn import MAESN, MAML, RL2
from sb3_maesn.common.checkpoint.plain_settings import encode_value
from sb3_maesn.common.constructors import constructor_annotations, constructor_parameters, fits
from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.config import (
    ConfigError,
    constructor_arguments,
    load_entry,
    parse_overrides,
    script_values,
)
from sb3_maesn.envs import FAMILIES
from sb3_maesn.training import ALGOS, find_recipe


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
        ("3: {gamma: 0.8}", "no entry for PointGaol-v0 and no default"),
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


def test_the_flag_of_a_malformed_override_is_named() -> None:
    for given, named in (((), "--hyperparams"), (("--start",), "--start")):
        with pytest.raises(ConfigError, match=f"^{named} takes key:value, got 'gamma=2'"):
            parse_overrides(["gamma=2"], *given)


def test_names_become_objects() -> None:
    entry = {"learning_rate": "lin_1e-3", "target_kl": "1e-2", "policy_kwargs": {"activation_fn": "tanh"}}
    arguments = constructor_arguments(entry, MAESN)
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert arguments["learning_rate"](0.5) == pytest.approx(5e-4)
    assert arguments["target_kl"] == 0.01
    assert arguments["policy_kwargs"]["activation_fn"] is nn.Tanh
    falling = constructor_arguments({"target_kl": "lin_0.03"}, MAESN)["target_kl"]
    assert falling(0.5) == pytest.approx(0.015)
    assert constructor_arguments({"target_kl": {"linear": ["3e-2", 0, 1]}}, MAESN)["target_kl"](1.0) == 0.03
    published = {"target_kl": encode_value("target_kl", falling)}  # as in the Hub's config.yml
    assert constructor_arguments(published, MAESN)["target_kl"](0.5) == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"metabatch_size": 3}, "did you mean meta_batch_size"),
        ({"learning_rate": "lin_fast"}, "learning_rate: a linear schedule is written lin_<number>"),
        ({"target_kl": {"linear": [0.03]}}, "expected a number or a linear schedule for target_kl"),
        ({"target_kl": {"linear": 0.03}}, "expected a number or a linear schedule for target_kl"),
        ({"policy_kwargs": {"activation_fn": "print"}}, "activation_fn must be one of"),
    ],
)
def test_bad_entries_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        constructor_arguments(entry, MAESN)


def test_parameters_are_found_through_base_classes() -> None:
    assert {"meta_batch_size", "gamma", "seed", "policy_kwargs"} <= set(constructor_parameters(MAESN))


def test_nothing_near_is_not_suggested() -> None:
    assert did_you_mean("zzz", ["gamma"]) == ""
    assert did_you_mean(3, ["gamma"]) == ""


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [(MAESN, "maesn.yml"), (MAESN, "maesn-paper.yml"), (MAML, "maml.yml"), (MAML, "maml-promp.yml")],
)
@pytest.mark.parametrize("env_id", [env_id for env_id in FAMILIES if "Sparse" not in env_id])
def test_shipped_entries_build_a_model(root: Path, algorithm: Any, name: str, env_id: str) -> None:
    entry = load_entry(root / "zoo_configs" / name, env_id)
    arguments = constructor_arguments(entry, algorithm)
    algorithm(entry["policy"], env_id, **arguments)
    assert entry["n_timesteps"] > 0


def test_tuned_entries_build_a_model(root: Path) -> None:
    files = sorted((root / "zoo_configs").glob("*-tuned.yml"))
    assert files
    for file in files:
        algo = file.stem.removesuffix("-tuned")
        entry, algorithm = load_entry(file, "WheeledGoal-v0"), find_recipe(algo).algorithm
        build: Any = algorithm
        arguments = constructor_arguments(entry, algorithm)
        build(entry["policy"], "WheeledGoal-v0", **arguments)
        assert (root / "results" / "tuning" / f"{algo}-WheeledGoal-v0" / "trials.csv").is_file()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"meta_batch_size": "many"}, "meta_batch_size must be a whole number, got 'many'"),
        ({"meta_batch_size": 4.5}, r"meta_batch_size must be a whole number, got 4\.5"),
        ({"meta_batch_size": True}, "meta_batch_size must be a whole number, got True"),
        ({"n_prior_episodes": "all"}, "n_prior_episodes must be a whole number or null, got 'all'"),
        ({"gamma": None}, "gamma must be a number, got None"),
        ({"target_kl": [0.1]}, r"target_kl must be a number or a schedule, got \[0\.1\]"),
        ({"first_order": 1}, "first_order must be true or false, got 1"),
        ({"inner_update": 3}, "inner_update must be text, got 3"),
        ({"learning_rate": "fast"}, "learning_rate must be a number or a schedule, got 'fast'"),
        ({"policy_kwargs": [3]}, r"policy_kwargs must be a mapping or null, got \[3\]"),
        ({"policy_kwargs": {"netarch": [8]}}, "MAESN's policy knows no 'netarch'; did you mean net_arch"),
        ({"policy_kwargs": {"lr_schedule": 0.1}}, "MAESN's policy knows no 'lr_schedule'"),
        ({"policy_kwargs": {"latent_dim": "two"}}, "latent_dim of policy_kwargs must be a whole number, got 'two'"),
        ({"policy_kwargs": {"net_arch": [8, "a"]}}, "net_arch of policy_kwargs must be a list .* or a mapping or null"),
        ({"policy_kwargs": {"optimizer_class": "lbfgs"}}, "optimizer_class must be one of adam"),
        ({"policy_kwargs": {"activation_fn": 3}}, "activation_fn of policy_kwargs must be a class, got 3"),
        ({"seed": 3}, "seed is no hyperparameter: it has a flag of its own, --seed"),
        ({3: 4}, "MAESN's constructor knows no 3"),
        ({"policy_kwargs": {3: 4}}, "MAESN's policy knows no 3"),
        ({"_init_setup_model": False}, "MAESN's constructor knows no '_init_setup_model'"),
        ({"stats_window_size": -3}, "stats_window_size must be at least 1, got -3"),
        ({"policy_kwargs": {"net_arch": [8, -3]}}, r"net_arch .* must have at least 1 unit each, got \[8, -3\]"),
        (
            {"policy_kwargs": {"net_arch": {"pi": [0]}}},
            r"net_arch .* must have at least 1 unit each, got {'pi': \[0\]}",
        ),
        ({"policy_kwargs": {"net_arch": {"fv": [8]}}}, "net_arch of policy_kwargs knows no 'fv'; did you mean vf"),
    ],
)
def test_values_of_a_wrong_type_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        constructor_arguments(entry, MAESN)


@pytest.mark.parametrize("name", ["lstm_hidden_size", "n_lstm_layers"])
def test_an_lstm_needs_units(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        constructor_arguments({"policy_kwargs": {name: 0}}, RL2)


@pytest.mark.parametrize("net_arch", [None, [], [8], {}, {"pi": [8]}, {"pi": [], "vf": [8]}])
def test_networks_may_have_any_number_of_layers(net_arch: Any) -> None:
    policy_kwargs = {"net_arch": net_arch}
    assert constructor_arguments({"policy_kwargs": policy_kwargs}, MAESN) == {"policy_kwargs": policy_kwargs}


def test_numbers_stand_for_what_they_mean() -> None:
    entry = {"meta_batch_size": "2e1", "n_episodes": 4.0, "gamma": 1, "n_prior_episodes": None, "baseline": "critic"}
    arguments = constructor_arguments(entry, MAESN)
    assert arguments == {
        "meta_batch_size": 20,
        "n_episodes": 4,
        "gamma": 1,
        "n_prior_episodes": None,
        "baseline": "critic",
    }
    assert type(arguments["meta_batch_size"]) is type(arguments["n_episodes"]) is int


def test_no_constructor_gets_the_scripts_own_keys() -> None:
    entry = {"policy": "LatentMlpPolicy", "n_timesteps": 10, "n_envs": 2, "eval_rule": None, "gamma": 0.9}
    assert constructor_arguments(entry, MAESN) == {"gamma": 0.9}


def test_values_of_the_scripts_own_keys_are_checked() -> None:
    assert script_values({"n_timesteps": "1e6", "gamma": "x"}) == {"n_timesteps": 1_000_000, "gamma": "x"}
    for config, message in (
        ({"n_timesteps": "long"}, "n_timesteps must be a whole number or null, got 'long'"),
        ({"n_envs": [1]}, r"n_envs must be a whole number, got \[1\]"),
        ({"policy": 3}, "policy must be text, got 3"),
        ({"eval_rule": 3}, "eval_rule must be text or null, got 3"),
        ({"eval_rule": "foo"}, "the adaptation rule must be one of .*posterior, got 'foo'"),
        ({"n_timesteps": 0}, "n_timesteps must be at least 1, got 0"),
        ({"n_timesteps": -4}, "n_timesteps must be at least 1, got -4"),
        ({"n_envs": 0}, "n_envs must be at least 1, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            script_values(config)


@pytest.mark.parametrize("name", ALGOS)
def test_defaults_of_every_constructor_fit_its_types(name: str) -> None:
    """No value that a user may take over from a signature is refused."""
    algorithm: Any = ALGOS[name].algorithm
    for cls in (algorithm, *algorithm.policy_aliases.values()):
        types = constructor_annotations(cls)
        assert len(types) > 10
        for owner in cls.__mro__:
            for parameter in inspect.signature(vars(owner).get("__init__", len)).parameters.values():
                if parameter.name in types and parameter.default is not parameter.empty:
                    assert fits(parameter.default, types[parameter.name]), parameter
