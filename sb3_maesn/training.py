"""A training run as rl-zoo lays it out: environment, model, callbacks and files from a configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
from sb3_contrib import TRPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, make_output_format
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import get_device

from sb3_maesn.cli import find_model_file
from sb3_maesn.common.checkpoint.archive import is_checkpoint
from sb3_maesn.common.checkpoint.file import read_checkpoint
from sb3_maesn.common.checkpoint.mixin import CheckpointMixin
from sb3_maesn.config import SCRIPT_KEYS, ConfigError, constructor_arguments, did_you_mean
from sb3_maesn.latent_space import LatentSpace
from sb3_maesn.maesn import MAESN
from sb3_maesn.maml import MAML
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
    """Look an algorithm up.

    :param name: its name on the command line
    :return: its class and how it is trained
    :raises ConfigError: naming the nearest
    """
    if name not in ALGOS:
        raise ConfigError(f"unknown algorithm {name!r}{did_you_mean(name, ALGOS)}; there are: {', '.join(ALGOS)}")
    return ALGOS[name]


def build_model(run: TrainingRun) -> OnPolicyAlgorithm:
    """Make the model of a run, new or resumed, with its environment and its logger.

    :param run: what to train
    :return: the model
    :raises ConfigError: for a key that the constructor does not know, a value of a wrong type, or a missing file
    """
    recipe = find_recipe(run.algo)
    algorithm: Any = recipe.algorithm
    arguments = constructor_arguments({k: v for k, v in run.config.items() if k not in SCRIPT_KEYS}, algorithm)
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


def load_to_resume(run: TrainingRun, path: Path, device: th.device, changes: Mapping[str, Any]) -> OnPolicyAlgorithm:
    """Load a model to go on training; say what a checkpoint lacks of it.

    :param run: what to train
    :param path: checkpoint, or file of SB3's ``save``
    :param device: torch device
    :param changes: constructor arguments
    :return: the model, without an environment
    :raises ConfigError: for a checkpoint of an algorithm that has none
    """
    algorithm = find_recipe(run.algo).algorithm
    if not is_checkpoint(path):
        return algorithm.load(path, device=device, **changes)
    if not issubclass(algorithm, CheckpointMixin):
        raise ConfigError(f"{algorithm.__name__} has no checkpoints, as {path} is: go on with a file of its save")
    checkpoint = read_checkpoint(path)
    model = algorithm.from_checkpoint(checkpoint, device, **changes)
    lacking = model.lacking_to_train(checkpoint.config.contents)
    if lacking and run.verbose:
        print(f"{path} holds what acts, not all that training has learned: it begins anew {' and '.join(lacking)}")
    return model


def check_policy(policy: str, algorithm: Any) -> str:
    """Look a policy's name up.

    :param policy: its name
    :param algorithm: class that takes it
    :return: the name
    :raises ConfigError: if the algorithm has no such policy
    """
    if policy not in algorithm.policy_aliases:
        known = ", ".join(algorithm.policy_aliases)
        raise ConfigError(f"{algorithm.__name__} has no policy {policy!r}; there are: {known}")
    return policy


def check_device(device: str) -> th.device:
    """Look a torch device up.

    :param device: its name
    :return: the device
    :raises ConfigError: if torch knows no such device
    """
    try:
        return get_device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}") from error


def train(run: TrainingRun, model: OnPolicyAlgorithm, n_timesteps: int | None) -> Path:
    """Train a model and save it.

    :param run: what to train
    :param model: from ``build_model``
    :param n_timesteps: from ``steps_to_train``
    :return: the saved model, ``{folder}/{env_id}.zip``
    """
    learn: Any = model.learn  # SB3's takes an int, a meta-learner's None for the paper's budget too
    learn(
        n_timesteps,
        callback=make_callbacks(run, model),
        tb_log_name=run.algo,
        reset_num_timesteps=run.trained_agent is None,
        progress_bar=run.progress_bar,
    )
    find_recipe(run.algo).finish(run, model)
    path = run.folder / f"{file_name(run.env_id)}.zip"
    model.save(path)
    return path


def close(model: OnPolicyAlgorithm) -> None:
    """Close a model's environment and logs.

    :param model: the model
    """
    if model.env is not None:
        model.env.close()
    model.logger.close()


def steps_to_train(run: TrainingRun, model: OnPolicyAlgorithm) -> int | None:
    """Work out the budget of this call of ``learn``.

    :param run: what to train
    :param model: the model, resumed or new
    :return: environment steps, None for the algorithm's reference budget
    :raises ConfigError: if a resumed model has spent its budget, or there is no budget at all
    """
    if run.n_timesteps is not None:
        return run.n_timesteps
    budget = run.config.get("n_timesteps")
    if budget is None:
        return find_recipe(run.algo).default_timesteps()
    if run.trained_agent is None:
        return int(budget)
    left = int(budget) - model.num_timesteps
    if left <= 0:
        raise ConfigError(
            f"{run.trained_agent} has trained {model.num_timesteps} of {int(budget)} steps: say with -n how many more"
        )
    return left


def make_callbacks(run: TrainingRun, model: OnPolicyAlgorithm) -> list[BaseCallback]:
    """Make the callbacks that evaluate and save.

    :param run: what to train
    :param model: the model
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
    """Make a logger that writes ``progress.csv`` and, if asked for, to the terminal and to TensorBoard.

    :param run: what to train
    :return: logger
    """
    outputs: list[KVWriter] = [make_output_format("csv", str(run.folder))]
    if run.verbose >= 1:
        outputs.append(make_output_format("stdout", str(run.folder)))
    if run.tensorboard_log:
        outputs.append(TensorBoardOutputFormat(str(Path(run.tensorboard_log) / run.algo / run.folder.name)))
    return Logger(str(run.folder), outputs)
