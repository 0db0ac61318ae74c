"""Checkpoints bring a model back bit for bit, of every algorithm, and say why where they cannot."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.utils import LinearSchedule

from sb3_maesn import MAESN, MetaOnPolicyAlgorithm
from sb3_maesn.checkpoints import (
    ALGORITHMS,
    export_pretrained,
    load_checkpoint,
    load_model,
    load_trained,
    read_rounds,
)
from sb3_maesn.common import files
from sb3_maesn.common.checkpoint.archive import CheckpointError
from sb3_maesn.common.checkpoint.file import read_config
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.checkpoint.model_state import read_state
from sb3_maesn.config import ConfigError
from sb3_maesn.envs import make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.recipes import TrainingRun
from sb3_maesn.training import ALGOS, load_to_resume
from tests.tiny import POINT, assert_same, tiny
from tests.toy import Walk

GOAL = np.array([0.0, 1.0])
META: dict[str, Any] = {"meta_batch_size": 3, "n_episodes": 4, "policy_kwargs": {"net_arch": [8]}}
SINGLE: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "n_steps": 20}
#: Small settings of each algorithm, and the number of members of its environment.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "LatentSpace": (META, 12),
    "MAESN": (META, 12),
    "MAML": (META, 12),
    "REINFORCE": ({"policy_kwargs": {"net_arch": [8]}, "n_episodes": 4}, 4),
    "RL2": ({"meta_batch_size": 4, "n_episodes": 2, "policy_kwargs": {"lstm_hidden_size": 8}}, 4),
    "VIME": ({**SINGLE, "batch_size": 20, "pool_size": 200, "n_dynamics_updates": 3}, 4),
}


def point_env(n_envs: int = 12) -> MultiTaskVecEnv:
    return MultiTaskVecEnv(make_vec(POINT, n_envs))


def small(name: str) -> tuple[Any, Callable[[], MultiTaskVecEnv]]:
    """A model that has trained for an iteration, and what makes its environment again."""
    settings, n_envs = SMALL[name]
    meta = "meta_batch_size" in settings

    def make() -> MultiTaskVecEnv:
        env = point_env(n_envs)
        return env if meta else env.only(GOAL)

    algorithm: Any = ALGORITHMS[name]
    model = algorithm(next(iter(algorithm.policy_aliases)), make(), seed=0, **settings)
    return model.learn(1), make


def same_state(first: Any, second: Any) -> bool:
    (mine, my_groups), (theirs, their_groups) = read_state(first), read_state(second)
    equal = [th.equal(mine[name], theirs[name]) for name in mine]
    counters = [getattr(first, name, None) == getattr(second, name, None) for name in first.checkpoint_progress]
    return mine.keys() == theirs.keys() and my_groups == their_groups and all(equal + counters)


def predictions(model: Any) -> np.ndarray:
    th.manual_seed(0)
    observations = np.random.default_rng(0).normal(size=(5, *model.observation_space.shape))
    return model.predict(observations, episode_start=np.ones(5, dtype=bool))[0]


def test_the_registry_knows_every_algorithm_of_the_training_script() -> None:
    ours = {recipe.algorithm.__name__ for recipe in ALGOS.values()} - {TRPO.__name__}
    assert set(ALGORITHMS) == ours
    assert ours <= set(SMALL)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_a_model_comes_back_and_goes_on_bit_for_bit(tmp_path: Path, name: str, suffix: str) -> None:
    model, make_env = small(name)
    path = tmp_path / f"model{suffix}"
    model.save_checkpoint(path)
    assert path.is_dir() == (suffix == "")
    loaded: Any = load_checkpoint(path)
    assert type(loaded) is type(model)
    assert same_state(loaded, model)
    np.testing.assert_array_equal(predictions(loaded), predictions(model))
    for one in (loaded, model):
        one.set_env(make_env())
        one.learn(1, reset_num_timesteps=False)
    assert same_state(loaded, model)


def test_a_file_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    """SB3's files do not say by themselves whose they are."""
    for name in ("MAESN", "MAML", "RL2", "VIME"):
        small(name)[0].save(tmp_path / name)
    for loads, saved in (("MAESN", "MAML"), ("MAML", "MAESN"), ("MAESN", "RL2"), ("RL2", "MAESN"), ("VIME", "MAESN")):
        with pytest.raises(ValueError, match=f"expected a model of {loads}, got one of {saved}"):
            ALGORITHMS[loads].load(tmp_path / saved)
    assert MetaOnPolicyAlgorithm.load(tmp_path / "MAML").algorithm_name == "MAML"
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "PPO")
    with pytest.raises(ValueError, match="expected a subclass of LatentActorCriticPolicy, got ActorCriticPolicy"):
        MAESN.load(tmp_path / "PPO")


def test_arguments_change_as_in_load(tmp_path: Path) -> None:
    model, _ = small("MAESN")
    model.save_checkpoint(tmp_path / "model")
    changed = MAESN.load_checkpoint(tmp_path / "model", target_kl=0.5, n_episodes=2)
    assert (changed.target_kl, changed.n_episodes, changed.meta_batch_size) == (0.5, 2, 3)
    np.testing.assert_array_equal(predictions(changed), predictions(model))
    schedule = LinearSchedule(np.float32(0.04), 0.02, 2.0)  # type: ignore[arg-type]  # a number, whatever its class
    falling = MAESN.load_checkpoint(tmp_path / "model", target_kl=schedule)
    falling.save_checkpoint(tmp_path / "falling")
    again: Any = MAESN.load_checkpoint(tmp_path / "falling")
    assert [again.target_kl(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([0.04, 0.035, 0.03])
    with pytest.raises(ValueError, match="MAESN has no argument 'n_episods'; did you mean n_episodes"):
        MAESN.load_checkpoint(tmp_path / "model", n_episods=3)
    with pytest.raises(ValueError, match="cannot change policy_kwargs"):
        MAESN.load_checkpoint(tmp_path / "model", policy_kwargs={"net_arch": [9]})


@pytest.mark.parametrize(
    ("name", "lacking"),
    [("MAESN", []), ("RL2", ["policy.optimizer"]), ("VIME", ["curiosity", "curiosity.optimizer", "policy.optimizer"])],
)
def test_going_on_from_an_agent_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, lacking: list[str]
) -> None:
    model, make_env = small(name)
    model.save_checkpoint(tmp_path / "agent", contents="agent")
    resumed = load_to_resume(resumed_run(name.lower(), tmp_path), tmp_path / "agent", th.device("cpu"), {})
    printed = capsys.readouterr().out
    assert ("begins anew " + " and ".join(lacking) in printed) if lacking else (printed == "")
    resumed.set_env(make_env())
    resumed.learn(1, reset_num_timesteps=False)
    model.save_checkpoint(tmp_path / "whole")
    load_to_resume(resumed_run(name.lower(), tmp_path), tmp_path / "whole", th.device("cpu"), {})
    assert capsys.readouterr().out == ""


def resumed_run(algo: str, folder: Path) -> TrainingRun:
    return TrainingRun(algo, POINT, {}, folder, trained_agent="agent")


def test_an_algorithm_of_others_has_no_checkpoints(tmp_path: Path) -> None:
    small("MAESN")[0].save_checkpoint(tmp_path / "agent")
    with pytest.raises(ConfigError, match="TRPO has no checkpoints"):
        load_to_resume(resumed_run("trpo", tmp_path), tmp_path / "agent", th.device("cpu"), {})


def test_load_model_takes_whatever_holds_a_meta_learner(tmp_path: Path) -> None:
    model, _ = small("MAML")
    model.save(tmp_path / "sb3")
    model.save_checkpoint(tmp_path / "folder")
    model.save_checkpoint(tmp_path / "packed.zip")
    for name in ("sb3", "sb3.zip", "folder", "packed", "packed.zip"):
        np.testing.assert_array_equal(predictions(load_model(tmp_path / name)), predictions(model))
    assert load_model("maesn-AntGoal-v0").env_id == "AntGoal-v0"
    small("RL2")[0].save_checkpoint(tmp_path / "rl2")
    with pytest.raises(ConfigError, match="MAESN, MAML or LatentSpace, got one of RL2"):
        load_model(tmp_path / "rl2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is a folder, not a model; it holds no model"):
        load_model(tmp_path / "empty")


@pytest.mark.parametrize(
    "settings",
    [
        {"baseline": "critic", "n_critic_updates": 2},
        {"adapt_policy": True},
        {"inner_update": "reward_weighted", "n_prior_episodes": 6, "balance_episodes": True},
        {"learning_rate": LinearSchedule(1e-2, 1e-3, 0.5), "baseline": "critic"},
    ],
    ids=["critic", "adapted-theta", "shared-episodes", "schedule"],
)
def test_all_that_training_changes_is_kept(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = tiny(**settings)
    model.learn(2 * model.timesteps_per_iteration)
    model.save_checkpoint(tmp_path / "model.zip")
    loaded = MAESN.load_checkpoint(tmp_path / "model", env=point_env())
    assert_same(loaded, model)
    assert loaded.ep_info_buffer is not None
    assert model.ep_info_buffer is not None
    assert list(loaded.ep_info_buffer) == list(model.ep_info_buffer)
    for one in (loaded, model):
        one.learn(one.timesteps_per_iteration, reset_num_timesteps=False)
    assert_same(loaded, model)


def test_spaces_of_all_kinds_and_policy_arguments_come_back(tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    venv = DummyVecEnv([lambda: Walk(image=True)] * 4)
    kwargs = {"net_arch": {"pi": [6], "vf": [5]}, "activation_fn": th.nn.Tanh, "latent_dim": 3, "ortho_init": False}
    model = tiny(MultiTaskVecEnv(venv), policy_kwargs=kwargs)
    model.save_checkpoint(tmp_path / "model")
    loaded = MAESN.load_checkpoint(tmp_path / "model", env=MultiTaskVecEnv(venv))
    assert loaded.policy_kwargs == kwargs
    assert (loaded.observation_space, loaded.action_space) == (model.observation_space, model.action_space)
    assert loaded.env_id is None
    assert_same(loaded, model)


def test_an_adapted_model_keeps_what_it_adapted_to(tmp_path: Path) -> None:
    adapted = tiny().adapt("PointGoalSparse-v0", task=GOAL, n_rounds=1, n_episodes=4)
    adapted.save_checkpoint(tmp_path / "adapted.zip")
    np.testing.assert_array_equal(predictions(MAESN.load_checkpoint(tmp_path / "adapted")), predictions(adapted))


def test_sb3s_own_files_and_checkpoints_lead_to_the_same_model(tmp_path: Path) -> None:
    model = tiny()
    model.learn(model.timesteps_per_iteration)
    model.save(tmp_path / "sb3")
    MAESN.load(tmp_path / "sb3").save_checkpoint(tmp_path / "ours")
    MAESN.load_checkpoint(tmp_path / "ours").save(tmp_path / "again")
    assert_same(MAESN.load(tmp_path / "again"), model)
    for name in ("sb3.zip", "ours", "again"):
        assert_same(load_trained(tmp_path / name, "maesn"), model)  # type: ignore[arg-type]  # it is a MAESN


def test_the_agent_alone_is_smaller_and_acts_and_adapts_the_same(tmp_path: Path) -> None:
    model = tiny()
    model.learn(model.timesteps_per_iteration)
    for contents in ("training", "agent"):
        model.save_checkpoint(tmp_path / f"{contents}.zip", contents=contents)
    assert (tmp_path / "agent.zip").stat().st_size < (tmp_path / "training.zip").stat().st_size
    agent = MAESN.load_checkpoint(tmp_path / "agent")
    np.testing.assert_array_equal(predictions(agent), predictions(model))
    histories = [m.adapt("PointGoalSparse-v0", task=GOAL, n_rounds=1, n_episodes=4).adaptation for m in (agent, model)]
    np.testing.assert_array_equal(histories[0].returns, histories[1].returns)  # type: ignore[union-attr]  # both adapted


def test_equal_models_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        tiny().save_checkpoint(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_file_says_what_it_holds(tmp_path: Path) -> None:
    tiny().save_checkpoint(tmp_path / "model")
    config = read_config(tmp_path / "model")
    assert (config.algorithm, config.task_family) == ("MAESN", {"id": POINT, "sparse": False})
    assert config.hyperparameters["meta_batch_size"] == 3
    assert "torch" in config.versions
    assert json.loads((tmp_path / "model" / "config.json").read_text())["format_version"] == 1


class OwnMAESN(MAESN):
    pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.policy.log_std.data.fill_(np.nan), "diverged"),
        (lambda model: setattr(model, "policy_class", object), "one of the policies LatentMlpPolicy"),
        (
            lambda model: setattr(model, "learning_rate", lambda progress: progress),
            "linear schedule for learning_rate",
        ),
        (lambda model: model.policy_kwargs.update(optimizer_class=th.optim.LBFGS), "as optimizer_class"),
        (lambda model: model.policy_kwargs.update(dist_kwargs={}), "dist_kwargs"),
    ],
    ids=["nan", "policy", "schedule", "optimizer", "unknown"],
)
def test_what_has_no_plain_form_is_refused_when_it_is_written(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    model = tiny()
    change(model)
    with pytest.raises(ValueError, match=message):
        model.save_checkpoint(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    tiny().save_checkpoint(tmp_path / "model")
    with pytest.raises(CheckpointError, match="a model of OwnMAESN, got one of 'MAESN'"):
        OwnMAESN.load_checkpoint(tmp_path / "model")
    OwnMAESN.__name__ = "os.system"
    OwnMAESN("LatentMlpPolicy", point_env(), **META).save_checkpoint(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"a model of one of .*, got one of 'os\.system'"):
        load_checkpoint(tmp_path / "own")


def test_an_environment_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tiny().save_checkpoint(tmp_path / "model")
    with pytest.raises(ValueError, match="space"):
        MAESN.load_checkpoint(tmp_path / "model", env=MultiTaskVecEnv(make_vec("WheeledGoal-v0", 2)))


class FullDisk:
    """A file on a disk that has room for some bytes only."""

    def __init__(self, path: Path, mode: str, room: int):
        self.file, self.room = open(path, mode), room  # noqa: SIM115  # a context manager itself

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("name", ["model", "model.zip"])
@pytest.mark.parametrize("room", [0, 2000])  # the first file of the folder fits, or not even that
def test_a_disk_that_fills_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, room: int
) -> None:
    old, new, path = tiny(), tiny(seed=1), tmp_path / name
    old.save_checkpoint(path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(files, "open", lambda path, mode: FullDisk(path, mode, room), raising=False)
    with pytest.raises(OSError, match="No space left"):
        new.save_checkpoint(path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert_same(MAESN.load_checkpoint(path), old)


def test_two_saves_mixed_up_are_no_checkpoint(tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny(seed=seed).save_checkpoint(tmp_path / str(seed))
    (tmp_path / "0" / "config.json").replace(tmp_path / "1" / "config.json")
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed"):
        MAESN.load_checkpoint(tmp_path / "1")


def test_export_writes_a_model_with_its_scores(tmp_path: Path, root: Path) -> None:
    rounds, about = read_rounds(root / "results" / "maesn-WheeledGoal-v0-learning.csv", "posterior")
    assert [row["round"] for row in rounds] == [0, 1, 2, 3]
    target = export_pretrained(tiny(), "maesn-PointGoal-v0", rounds, about, folder=tmp_path)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors", "results.json"}
    assert json.loads((target / "results.json").read_text())["rounds"] == rounds
    assert_agent: CheckpointMixin = load_checkpoint(target)
    np.testing.assert_array_equal(predictions(assert_agent), predictions(tiny()))


@pytest.mark.parametrize(
    ("rule", "model", "message"), [("magic", None, "no rows of rule 'magic'"), ("kernel", "him", "model 'him'")]
)
def test_a_table_without_the_rows_is_refused(root: Path, rule: str, model: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rounds(root / "results" / "maesn-WheeledGoal-v0-learning.csv", rule, model)


def test_export_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['rule', 'tasks'\] missing"):
        export_pretrained(tiny(), "name", [{}, {}], {"env": POINT}, folder=tmp_path)
    about = {"env": POINT, "tasks": 2, "rule": "kernel"}
    unknown = [{"round": r, "success": float("nan")} for r in range(2)]
    with pytest.raises(ValueError, match="reports success, got no values of success"):
        export_pretrained(tiny(), "name", unknown, about, POINT, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_to_ship_leaves_the_one_in_its_place(tmp_path: Path) -> None:
    rounds = [{"round": r, "success": 1.0} for r in range(2)]
    about = {"env": POINT, "tasks": 2, "rule": "kernel"}
    target = export_pretrained(tiny(), "name", rounds, about, POINT, tmp_path)
    with pytest.raises(ValueError, match="expected at most 200000 bytes"):
        export_pretrained(tiny(policy_kwargs={"net_arch": [400, 400]}), "name", rounds, about, POINT, tmp_path)
    np.testing.assert_array_equal(predictions(load_checkpoint(target)), predictions(tiny()))


def test_load_names_the_function_for_a_checkpoint(tmp_path: Path) -> None:
    tiny().save_checkpoint(tmp_path / "model.zip")
    for path in (tmp_path / "model.zip", tmp_path / "model"):
        with pytest.raises(CheckpointError, match=r"is a checkpoint: load it with MAESN.load_checkpoint"):
            MAESN.load(path)
