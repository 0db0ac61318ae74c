"""Training runs in rl-zoo's layout: environment, model, callbacks and files from the settings of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, make_output_format
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_maesn.common.checkpoint.archive import is_checkpoint
from sb3_maesn.common.checkpoint.file import read_checkpoint
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.config import SCRIPT_KEYS, ConfigError, constructor_arguments, load_yaml
from sb3_maesn.latent_space import LatentSpace
from sb3_maesn.maesn import MAESN
from sb3_maesn.maml import MAML
from sb3_maesn.model_files import find_model_file
from sb3_maesn.recipes import (
    ITERATIONS_BETWEEN_EVALUATIONS,
    MetaLearning,
    Recipe,
    SingleTask,
    TrainingRun,
    TrialLearning,
    closed_on_error,
)
from sb3_maesn.reinforce import REINFORCE
from sb3_maesn.rl2 import RL2
from sb3_maesn.run_folder import IterationCheckpoints, file_name
from sb3_maesn.vime import VIME

ALGOS: dict[str, Recipe] = {
    "latent_space": MetaLearning(LatentSpace),
    "maesn": MetaLearning(MAESN),
    "maml": MetaLearning(MAML, "MlpPolicy"),
    "reinforce": SingleTask(REINFORCE),
    "rl2": TrialLearning(RL2, "MlpLstmPolicy"),
    "trpo": SingleTask(TRPO),
    "vime": SingleTask(VIME),
}


def find_recipe(name: str) -> Recipe:
    """Look up the recipe of an algorithm.

    :param name: name of the algorithm on the command line
    :return: recipe
    :raises ConfigError: if there is no such algorithm; the message suggests similar names
    """
    if name not in ALGOS:
        raise ConfigError(f"unknown algorithm {name!r}{did_you_mean(name, ALGOS)}; there are: {', '.join(ALGOS)}")
    return ALGOS[name]


def build_model(run: TrainingRun) -> OnPolicyAlgorithm:
    """Make the new or resumed model of a run, with its environment and its logger.

    :param run: settings of the run
    :return: model
    :raises ConfigError: if a hyperparameter is unknown or of a wrong type, or a file is missing
    """
    recipe = find_recipe(run.algo)
    algorithm: Any = recipe.algorithm
    arguments = constructor_arguments(run.config, algorithm)
    policy, device = check_policy(run.config.get("policy", recipe.policy), algorithm), check_device(run.device)
    model: OnPolicyAlgorithm
    if run.trained_agent is None:
        env = recipe.make_env(run, recipe.n_members({**run.config, **arguments}), run.folder / "0")
        with closed_on_error(env):
            model = algorithm(policy, env, seed=run.seed, device=device, verbose=min(run.verbose, 1), **arguments)
    else:
        changes = {key: value for key, value in arguments.items() if key in run.overrides}
        model = load_to_resume(run, find_model_file(run.trained_agent), device, changes)
        env = recipe.make_env(run, recipe.n_members_resumed(model, run), run.folder / "0")
        with closed_on_error(env):
            model.set_env(env)
    model.set_logger(make_logger(run))
    return model


def settings_of(run: TrainingRun, model: OnPolicyAlgorithm) -> dict[str, Any]:
    """Collect the hyperparameters of a run for the record.

    :param run: settings of the run
    :param model: model that :func:`build_model` returned
    :return: plain values by key: the configuration of a new model, and a resumed model's own hyperparameters
    """
    if run.trained_agent is None:
        return dict(run.config)
    known = {key: value for key, value in run.config.items() if key in SCRIPT_KEYS}
    if "n_envs" in known:
        known["n_envs"] = model.n_envs
    if isinstance(model, CheckpointMixin):
        return {**known, **model.plain_settings()}
    path = find_model_file(run.trained_agent).parent / file_name(run.env_id) / "config.yml"
    return {**known, **(load_yaml(path) if path.is_file() else {}), **run.overrides}


def load_to_resume(run: TrainingRun, path: Path, device: th.device, changes: Mapping[str, Any]) -> OnPolicyAlgorithm:
    """Load a model to continue its training, and print what a checkpoint lacks for that.

    :param run: settings of the run
    :param path: checkpoint, or file of SB3's ``save``
    :param device: torch device
    :param changes: constructor arguments that replace those of the file
    :return: model without an environment
    :raises ConfigError: if ``path`` is a checkpoint but the algorithm has no checkpoints
    """
    algorithm = find_recipe(run.algo).algorithm
    if not is_checkpoint(path):
        return algorithm.load(path, device=device, **changes)
    if not issubclass(algorithm, CheckpointMixin):
        raise ConfigError(f"{algorithm.__name__} has no checkpoints, as {path} is: go on with a file of its save")
    checkpoint = read_checkpoint(path)
    model = algorithm.from_checkpoint(checkpoint, device, **changes)
    lacking = model.parts_to_reinitialise(checkpoint.config.contents)
    if lacking and run.verbose:
        print(f"{path} holds what acts, not all that training has learned: it begins anew {' and '.join(lacking)}")
    return model


def check_policy(policy: str, algorithm: Any) -> str:
    """Check that an algorithm has a policy.

    :param policy: name of the policy
    :param algorithm: class of the algorithm
    :return: name of the policy
    :raises ConfigError: if the algorithm has no such policy
    """
    if policy not in algorithm.policy_aliases:
        known = ", ".join(algorithm.policy_aliases)
        raise ConfigError(f"{algorithm.__name__} has no policy {policy!r}; there are: {known}")
    return policy


def check_device(device: str) -> th.device:
    """Look up a torch device.

    :param device: name of the device
    :return: device
    :raises ConfigError: if torch has no such device
    """
    try:
        return get_device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}") from error


def train(run: TrainingRun, model: OnPolicyAlgorithm, n_timesteps: int) -> Path:
    """Train a model and save it.

    :param run: settings of the run
    :param model: model that :func:`build_model` returned
    :param n_timesteps: environment steps to train, as :func:`steps_to_train` returns them
    :return: path of the saved model, ``{folder}/{env_id}.zip``
    """
    model.learn(
        n_timesteps,
        callback=make_callbacks(run, model),
        tb_log_name=run.algo,
        reset_num_timesteps=run.trained_agent is None,
        progress_bar=run.progress_bar,
    )
    path = run.folder / f"{file_name(run.env_id)}.zip"
    model.save(path)
    return path


def finish(run: TrainingRun, model: OnPolicyAlgorithm, path: Path) -> None:
    """Complete a trained model with what its recipe finds out after training, and save it again.

    :param run: settings of the run
    :param model: model that :func:`train` has saved
    :param path: path of the saved model
    """
    if find_recipe(run.algo).finish(run, model):
        model.save(path)


def close(model: OnPolicyAlgorithm) -> None:
    """Close the environment and the logger of a model.

    :param model: model
    """
    if model.env is not None:
        model.env.close()
    model.logger.close()


def steps_to_train(run: TrainingRun, model: OnPolicyAlgorithm) -> int:
    """Compute the number of environment steps to train in this run.

    :param run: settings of the run
    :param model: new or resumed model
    :return: environment steps
    :raises ConfigError: if a resumed model has already trained its budget, or there is no budget
    """
    if run.n_timesteps is not None:
        return run.n_timesteps
    configured = run.config.get("n_timesteps")
    budget = find_recipe(run.algo).default_timesteps(model) if configured is None else int(configured)
    left = budget - model.num_timesteps
    if left <= 0:
        raise ConfigError(
            f"{run.trained_agent} has trained {model.num_timesteps} of {budget} steps: say with -n how many more"
        )
    return left


def make_callbacks(run: TrainingRun, model: OnPolicyAlgorithm) -> list[BaseCallback]:
    """Make the callbacks that evaluate and save.

    :param run: settings of the run
    :param model: model
    :return: callbacks
    """
    recipe = find_recipe(run.algo)
    callbacks: list[BaseCallback] = []
    if run.save_freq >= 0:
        save_freq = run.save_freq or ITERATIONS_BETWEEN_EVALUATIONS * recipe.timesteps_per_iteration(model)
        callbacks.append(IterationCheckpoints(save_freq, run.folder, verbose=max(run.verbose - 1, 0)))
    if run.eval_freq >= 0:
        callbacks.append(recipe.make_evaluation(run, model))
    return callbacks


def make_logger(run: TrainingRun) -> Logger:
    """Make a logger for ``progress.csv`` and, depending on the settings, for the terminal and TensorBoard.

    :param run: settings of the run
    :return: logger
    """
    outputs: list[KVWriter] = [make_output_format("csv", str(run.folder))]
    if run.verbose >= 1:
        outputs.append(make_output_format("stdout", str(run.folder)))
    if run.tensorboard_log:
        outputs.append(TensorBoardOutputFormat(str(Path(run.tensorboard_log) / run.algo / run.folder.name)))
    return Logger(str(run.folder), outputs)
