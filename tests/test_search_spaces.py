"""Search spaces: every algorithm has one, and its constructor takes what comes out of it."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from sb3_maesn.config import load_entry
from sb3_maesn.recipes import TrainingRun
from sb3_maesn.search_spaces import SEARCH_SPACES, PartlyFixed, fixed_parameters, merge
from sb3_maesn.training import ALGOS, build_model, close

ZOO = Path(__file__).resolve().parent.parent / "zoo_configs"


def sampled(algo: str, n: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(n)]
    return [(SEARCH_SPACES[algo](trial), trial.params) for trial in trials]


def test_every_algorithm_has_a_space() -> None:
    assert set(ALGOS) <= set(SEARCH_SPACES)


@pytest.mark.parametrize("algo", sorted(ALGOS))
def test_models_can_be_made_of_what_is_sampled(tmp_path: Path, algo: str) -> None:
    task = ["0"] if algo in ("reinforce", "trpo", "vime") else []
    base = load_entry(ZOO / f"{algo}.yml", "PointGoal-v0")
    for i, (entry, _) in enumerate(sampled(algo, 4)):
        folder = tmp_path / str(i)
        folder.mkdir()
        model = build_model(TrainingRun(algo, "PointGoal-v0", merge(base, entry), folder, task=task, seed=0, verbose=0))
        close(model)
        assert model.gamma == entry["gamma"]


@pytest.mark.parametrize("algo", sorted(SEARCH_SPACES))
def test_entries_are_plain_and_follow_from_the_parameters(algo: str) -> None:
    for entry, params in sampled(algo, 20):
        assert yaml.safe_load(yaml.safe_dump(entry)) == entry
        json.dumps(params)  # what a study's storage can hold
        assert SEARCH_SPACES[algo](optuna.trial.FixedTrial(params)) == entry


def test_maesn_shares_the_prior_with_one_inner_update_only() -> None:
    entries = [entry for entry, _ in sampled("maesn", 100)]
    shared = [entry for entry in entries if entry["n_prior_episodes"] is not None]
    assert shared
    assert {entry["inner_update"] for entry in shared} == {"reward_weighted"}
    assert not any(entry["balance_episodes"] for entry in entries if entry["n_prior_episodes"] is None)


def test_merge_keeps_single_policy_arguments() -> None:
    base = {"gamma": 0.9, "policy_kwargs": {"latent_dim": 3, "net_arch": [8]}}
    merged = merge(base, {"policy_kwargs": {"net_arch": [64, 64]}, "n_episodes": 5})
    assert merged == {"gamma": 0.9, "n_episodes": 5, "policy_kwargs": {"latent_dim": 3, "net_arch": [64, 64]}}
    assert base["policy_kwargs"] == {"latent_dim": 3, "net_arch": [8]}
    assert merge({"gamma": 0.9, "policy_kwargs": None}, {}) == {"gamma": 0.9, "policy_kwargs": None}
    assert merge(base, {"policy_kwargs": None}) == {"gamma": 0.9, "policy_kwargs": None}


def with_fixed(algo: str, fixed: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(50)]
    return [(SEARCH_SPACES[algo](PartlyFixed(trial, fixed_parameters(fixed))), trial.params) for trial in trials]


@pytest.mark.parametrize(
    ("algo", "fixed", "names"),
    [
        (
            "maesn",
            {"gamma": 0.5, "n_episodes": 3, "target_kl": "lin_0.03"},
            {"one_minus_gamma", "n_episodes", "target_kl"},
        ),
        ("maesn", {"policy_kwargs": {"net_arch": [8], "latent_dim": 7}}, {"net_arch", "latent_dim"}),
        ("maesn", {"n_prior_episodes": None}, {"n_prior_episodes", "shared_prior", "balance_episodes"}),
        ("rl2", {"meta_batch_size": 7, "n_epochs": 1}, {"meta_batch_size", "n_epochs"}),
    ],
)
def test_what_is_fixed_is_not_sampled(algo: str, fixed: dict[str, Any], names: set[str]) -> None:
    all_names = {name for _, params in sampled(algo, 50) for name in params}
    assert names <= all_names
    assert {name for _, params in with_fixed(algo, fixed) for name in params} == all_names - names


def test_what_depends_on_a_fixed_setting_follows_it() -> None:
    for entry, params in with_fixed("maesn", {"inner_update": "likelihood_ratio"}):
        assert (entry["n_prior_episodes"], entry["balance_episodes"]) == (None, False)
        assert "temperature_init" not in params
        assert "step_size_init" in params
    assert {entry["n_envs"] for entry, _ in with_fixed("rl2", {"meta_batch_size": 7})} == {7}
    shared = with_fixed("maesn", {"balance_episodes": True, "inner_update": "reward_weighted"})
    assert all(entry["n_prior_episodes"] for entry, _ in shared)
