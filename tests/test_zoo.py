"""Registration with the zoo: on a stand-in with its tables, and for real where rl_zoo3 is installed."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest

from sb3_maesn import MAESN, zoo
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from tests.tiny import POINT


class StandInManager:
    """What the zoo's manager has, as far as this package touches it."""

    def __init__(self, args: Any, algo: str, env_id: str, config: str | None = None) -> None:
        self.algo, self.config, self.env_name = algo, config, SimpleNamespace(gym_id=env_id)
        self.n_envs, self.n_timesteps, self.n_evaluations, self.verbose = 1, 0, 1, 0
        self.eval_freq, self.n_eval_episodes, self.save_freq = -1, 2, -1
        self.save_path, self.show_progress = args, False
        self.callbacks: list[Any] = []
        self.learned: list[Any] = []

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> str:
        return "the zoo's"

    def create_callbacks(self) -> None:
        self.callbacks.append("the zoo's")

    def learn(self, model: Any) -> None:
        self.learned.append(model)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    parts: dict[str, dict[str, Any]] = {
        "utils": {"ALGOS": {"a2c": object}},
        "hyperparams_opt": {"HYPERPARAMS_SAMPLER": {}, "HYPERPARAMS_CONVERTER": {}},
        "exp_manager": {"ExperimentManager": StandInManager},
    }
    modules = {name: ModuleType(f"rl_zoo3.{name}") for name in parts}
    monkeypatch.setitem(sys.modules, "rl_zoo3", ModuleType("rl_zoo3"))
    for name, module in modules.items():
        vars(module).update(parts[name])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(**modules)


def test_tables_are_added_to(stand_in: SimpleNamespace) -> None:
    zoo.register()
    zoo.register()  # twice does no harm
    assert stand_in.utils.ALGOS["maesn"] is MAESN
    assert stand_in.utils.ALGOS["a2c"] is object
    assert "trpo" not in stand_in.utils.ALGOS  # the zoo has its own
    manager = stand_in.exp_manager.ExperimentManager
    assert manager.__mro__[1:3] == (zoo.TaskManagerMixin, StandInManager)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    sampled = stand_in.hyperparams_opt.HYPERPARAMS_SAMPLER["maesn"](trial, 2, 1, {})
    assert sampled["policy"] == "LatentMlpPolicy"
    assert stand_in.hyperparams_opt.HYPERPARAMS_CONVERTER["maesn"](trial.params) == sampled


def test_meta_learners_get_environments_with_tasks(stand_in: SimpleNamespace, tmp_path: Path) -> None:
    zoo.register()
    manager = stand_in.exp_manager.ExperimentManager(tmp_path, "maesn", POINT)
    assert manager.config == str(zoo.CONFIGS / "maesn.yml")
    entry = {"meta_batch_size": 3, "n_episodes": 4, "n_timesteps": 480, "policy_kwargs": {"activation_fn": "relu"}}
    arguments, *_ = manager._preprocess_hyperparams(entry)
    assert (manager.n_envs, manager.n_timesteps) == (12, 480)
    assert "n_timesteps" not in arguments
    env = manager.create_envs(manager.n_envs)
    assert isinstance(env, MultiTaskVecEnv)
    assert (tmp_path / "0.monitor.csv").is_file()
    model = MAESN(env=env, seed=0, **arguments)
    manager.learn(model)
    assert manager.learned == [model]
    env.close()


def test_other_algorithms_stay_the_zoos(stand_in: SimpleNamespace, tmp_path: Path) -> None:
    zoo.register()
    manager = stand_in.exp_manager.ExperimentManager(tmp_path, "a2c", "CartPole-v1")
    manager.create_callbacks()
    assert manager.create_envs(1) == "the zoo's"
    assert manager.callbacks == ["the zoo's"]
    assert manager.config is None


def test_the_zoos_own_training_script(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")  # the extra zoo
    flags = ["--algo", "maesn", "--env", POINT, "-n", "1000", "--eval-freq", "1000", "--num-threads", "1"]
    command = [sys.executable, "-m", "sb3_maesn.zoo", "train", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "logs" / "maesn" / "PointGoal-v0_1"
    assert {"PointGoal-v0.zip", "best_model.zip", "evaluations.npz"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected the name of a script of rl_zoo3: python -m sb3_maesn.zoo train"),
        (["--algo", "maesn"], "expected the name of a script"),
        (["fly"], "rl_zoo3 has no script 'fly' that can be run from here: take train or enjoy"),
        (["utils"], "rl_zoo3 has no script 'utils'"),
    ],
)
def test_a_script_that_the_zoo_does_not_have_is_refused_on_one_line(
    stand_in: SimpleNamespace, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        zoo.main(words)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


class Hidden:
    """Finder that finds no zoo, whether it is installed or not."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "rl_zoo3":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_zoo_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rl_zoo3"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    with pytest.raises(SystemExit) as stopped:
        zoo.main(["train"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: rl_zoo3 is not installed: pip install 'sb3_maesn[zoo]'\n"


def test_without_settings_files_the_flag_that_gives_one_is_named(
    stand_in: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(zoo, "CONFIGS", tmp_path / "zoo_configs")
    monkeypatch.setattr(sys, "argv", ["python"])
    zoo.register()
    manager = stand_in.exp_manager.ExperimentManager
    assert manager(tmp_path, "maesn", POINT, config="mine.yml").config == "mine.yml"
    script = ModuleType("rl_zoo3.train")
    vars(script)["train"] = lambda: manager(tmp_path, "maesn", POINT)
    monkeypatch.setitem(sys.modules, "rl_zoo3.train", script)
    with pytest.raises(SystemExit) as stopped:
        zoo.main(["train"])
    assert stopped.value.code == 2
    assert "give a hyperparameter file with --conf-file, such as zoo_configs/maesn.yml" in capsys.readouterr().err
