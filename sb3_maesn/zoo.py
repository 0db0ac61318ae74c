"""This package's meta-learners in RL Baselines3 Zoo: ``python -m sb3_maesn.zoo train --algo maesn --env PointGoal-v0``.

rl-zoo has no registry. :func:`register` therefore adds to its tables, and replaces its experiment manager by one that
makes environments with tasks, and evaluates and tunes by adaptation. Other algorithms are handled as by rl-zoo itself.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_maesn.benchmarking import EvaluationPlan
from sb3_maesn.cli import one_line_errors
from sb3_maesn.config import ConfigError, constructor_arguments
from sb3_maesn.recipes import Recipe, SingleTask, TrainingRun
from sb3_maesn.search_spaces import SEARCH_SPACES
from sb3_maesn.training import ALGOS, make_callbacks
from sb3_maesn.tuning import TuningPlan, objective

CONFIGS = Path(__file__).resolve().parent.parent / "zoo_configs"
#: Modules of rl-zoo that import its experiment manager by name.
USERS_OF_MANAGER = ("rl_zoo3.exp_manager", "rl_zoo3.train", "rl_zoo3.enjoy", "rl_zoo3.record_video")


def meta_learners() -> dict[str, Recipe]:
    """List the recipes of the algorithms that learn from many tasks, which rl-zoo does not support by itself."""
    return {name: recipe for name, recipe in ALGOS.items() if not isinstance(recipe, SingleTask)}


def register() -> None:
    """Make ``--algo maesn`` and the other meta-learners available to rl-zoo's scripts, in this process.

    :raises ImportError: if rl_zoo3 is not installed: ``pip install 'sb3_maesn[zoo]'``
    """
    utils, spaces, manager = (_zoo_module(name) for name in ("utils", "hyperparams_opt", "exp_manager"))
    for name, recipe in meta_learners().items():
        utils.ALGOS[name] = recipe.algorithm
        spaces.HYPERPARAMS_SAMPLER[name] = _Sampler(name)
        spaces.HYPERPARAMS_CONVERTER[name] = _Converter(name)
    if not issubclass(manager.ExperimentManager, TaskManagerMixin):
        theirs = manager.ExperimentManager
        ours = type("ExperimentManager", (TaskManagerMixin, theirs), {"__doc__": theirs.__doc__})
        for name in USERS_OF_MANAGER:
            if name in sys.modules:
                vars(sys.modules[name])["ExperimentManager"] = ours


def _zoo_module(name: str) -> Any:
    """Import a module of rl-zoo, and say how to install it if it is missing."""
    try:
        return importlib.import_module(f"rl_zoo3.{name}")
    except ModuleNotFoundError as error:
        if error.name != "rl_zoo3":
            raise
        raise ImportError("rl_zoo3 is not installed: pip install 'sb3_maesn[zoo]'") from error


class _Sampler:
    """Search space in the form of rl-zoo's hyperparameter samplers."""

    def __init__(self, algo: str) -> None:
        self.algo = algo

    def __call__(self, trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: Mapping[str, Any]) -> Any:
        return _arguments(self.algo, SEARCH_SPACES[self.algo](trial))


class _Converter:
    """Function from a trial's parameters to constructor arguments, in the form of rl-zoo's converters."""

    def __init__(self, algo: str) -> None:
        self.algo = algo

    def __call__(self, params: Mapping[str, Any]) -> Any:
        return _arguments(self.algo, SEARCH_SPACES[self.algo](optuna.trial.FixedTrial(dict(params))))


def _arguments(algo: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Turn an entry into what rl-zoo passes to the constructor: the policy and the keyword arguments."""
    policy = entry.get("policy", ALGOS[algo].policy)
    return {"policy": policy, **constructor_arguments(entry, ALGOS[algo].algorithm)}


class TaskManagerMixin:
    """Mixin that makes rl-zoo's experiment manager handle meta-learners; it comes first among the base classes."""

    def __init__(self, args: Any, algo: str, env_id: str, *others: Any, **kwargs: Any) -> None:
        if algo in meta_learners() and kwargs.get("config") is None:
            kwargs["config"] = str(_default_config(algo))
        self.zoo: Any = self  # gives access to attributes of rl-zoo's manager, which type checkers do not see
        self.entry: dict[str, Any] = {}
        super().__init__(args, algo, env_id, *others, **kwargs)  # type: ignore[call-arg]  # of rl-zoo's manager, a base class at run time

    @property
    def recipe(self) -> Recipe | None:
        """Recipe of the algorithm, None if rl-zoo handles it itself."""
        return meta_learners().get(self.zoo.algo)

    @property
    def run(self) -> TrainingRun:
        """Settings of the experiment as a training run of this package."""
        zoo = self.zoo
        run = TrainingRun(zoo.algo, zoo.env_name.gym_id, self.entry, Path(zoo.save_path), verbose=zoo.verbose)
        return replace(run, eval_freq=zoo.eval_freq, eval_episodes=zoo.n_eval_episodes, save_freq=zoo.save_freq)

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> tuple[Any, ...]:
        """Read an entry of a hyperparameter file in this package's notation."""
        if self.recipe is None:
            return super()._preprocess_hyperparams(hyperparams)  # type: ignore[misc]  # of rl-zoo's manager, a base class at run time
        self.entry = dict(hyperparams)
        self.zoo.n_envs = self.recipe.n_members(self.entry)
        self.zoo.n_timesteps = self.zoo.n_timesteps if self.zoo.n_timesteps > 0 else int(self.entry["n_timesteps"])
        return _arguments(self.zoo.algo, self.entry), None, [], None

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        """Make an environment with tasks for a meta-learner."""
        if self.recipe is None:
            return super().create_envs(n_envs, eval_env, no_log)  # type: ignore[misc]  # of rl-zoo's manager, a base class at run time
        file = None if eval_env or no_log else Path(self.zoo.save_path) / "0"
        return self.recipe.make_env(self.run, n_envs, file)

    def create_callbacks(self) -> None:
        """Make the callbacks that do not need the model; :meth:`learn` adds the others."""
        if self.recipe is None:
            super().create_callbacks()  # type: ignore[misc]  # of rl-zoo's manager, a base class at run time
        elif self.zoo.show_progress:
            self.zoo.callbacks.append(ProgressBarCallback())

    def learn(self, model: Any) -> None:
        """Train a meta-learner with checkpoints between iterations and evaluation by adaptation."""
        if self.recipe is not None:
            self.zoo.callbacks += make_callbacks(self.run, model)
        super().learn(model)  # type: ignore[misc]  # of rl-zoo's manager, a base class at run time

    def objective(self, trial: optuna.Trial) -> float:
        """Score a trial of a meta-learner by adaptation to validation tasks."""
        if self.recipe is None:
            return super().objective(trial)  # type: ignore[misc]  # of rl-zoo's manager, a base class at run time
        run = self.run
        test = EvaluationPlan(n_episodes=run.eval_episodes, split="validation")
        n_evaluations = max(self.zoo.n_evaluations, 1)
        plan = TuningPlan(run.algo, run.env_id, self.entry, self.zoo.n_timesteps, n_evaluations, test=test)
        return objective(plan, trial)


def _default_config(algo: str) -> Path:
    """Find the hyperparameter file of a meta-learner, of which rl-zoo has none."""
    file = CONFIGS / f"{algo}.yml"
    if not file.is_file():
        raise ConfigError(
            f"there is no {file}, since an installed package comes without zoo_configs: give a hyperparameter file with"
            f" --conf-file, such as zoo_configs/{algo}.yml of the repository"
        )
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Run a script of rl-zoo with this package's algorithms.

    :param argv: name of the script, such as ``train``, and its arguments; None for those of the command line
    """
    words = sys.argv[1:] if argv is None else list(argv)
    with one_line_errors(verbose=0):
        if not words or words[0].startswith("-"):
            raise ConfigError("expected the name of a script of rl_zoo3: python -m sb3_maesn.zoo train [flags]")
        register()  # before the script imports the experiment manager
        script = _find_script(words[0])
    sys.argv = [f"rl_zoo3 {words[0]}", *words[1:]]
    try:
        script()
    except ConfigError as error:  # other exceptions may be of rl-zoo's own algorithms and keep their traceback
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _find_script(name: str) -> Callable[[], None]:
    """Find the main function of a script of rl-zoo, which has the name of its module."""
    try:
        return getattr(_zoo_module(name), name)
    except (ModuleNotFoundError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name != f"rl_zoo3.{name}":
            raise
        raise ConfigError(f"rl_zoo3 has no script {name!r} that can be run from here: take train or enjoy") from error


if __name__ == "__main__":
    main()
