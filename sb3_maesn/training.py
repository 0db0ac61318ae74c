"""A training run as rl-zoo lays it out: environment, model, callbacks and files from a configuration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, make_output_format
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sb3_maesn.callbacks import MetaEvalCallback
from sb3_maesn.cli import check_env_id, check_file, sparse_variant
from sb3_maesn.config import SCRIPT_KEYS, ConfigError, constructor_arguments, did_you_mean
from sb3_maesn.envs import FAMILIES, make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.maesn import MAESN
from sb3_maesn.run_folder import IterationCheckpoints, file_name

ALGOS: dict[str, type[MAESN]] = {"maesn": MAESN}
MAX_SINGLE_ENVS = 8  # members of a DummyVecEnv, which gains nothing from more
ITERATIONS_BETWEEN_EVALUATIONS = 10


@dataclass(frozen=True)
class TrainingRun:
    """
    What to train, and where to write it.

    :param algo: name of the algorithm
    :param env_id: environment id
    :param config: entry of a configuration file: constructor arguments, ``policy``, ``n_timesteps`` and ``n_envs``
    :param folder: folder of the run, which exists
    :param overrides: the part of ``config`` that a resumed model shall take as well
    :param n_timesteps: environment steps to train, for a resumed model in addition; None for the configured budget,
        or what a resumed model has left of it
    :param trained_agent: model file to resume
    :param seed: seed of a new model
    :param device: torch device
    :param tensorboard_log: folder for TensorBoard
    :param eval_freq: environment steps between evaluations, 0 for every ten meta-iterations, -1 for never
    :param eval_tasks: validation tasks of an evaluation
    :param eval_episodes: episodes of an adaptation round in an evaluation
    :param save_freq: environment steps between checkpoints, 0 for every ten meta-iterations, -1 for never
    :param progress_bar: show a progress bar
    :param verbose: 0, 1 or 2
    """

    algo: str
    env_id: str
    config: Mapping[str, Any]
    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    n_timesteps: int | None = None
    trained_agent: str | None = None
    seed: int | None = None
    device: str = "cpu"
    tensorboard_log: str | None = None
    eval_freq: int = 0
    eval_tasks: int = 20
    eval_episodes: int = 20
    save_freq: int = 0
    progress_bar: bool = False
    verbose: int = 1


def find_algorithm(name: str) -> type[MAESN]:
    """
    Look an algorithm up.

    :param name: its name on the command line
    :return: the class
    :raises ConfigError: naming the nearest
    """
    if name not in ALGOS:
        raise ConfigError(f"unknown algorithm {name!r}{did_you_mean(name, ALGOS)}; there are: {', '.join(ALGOS)}")
    return ALGOS[name]


def make_training_env(env_id: str, n_envs: int, monitor_file: Path | None = None) -> MultiTaskVecEnv:
    """
    Make the members that episodes run in: the native VecEnv for a built-in family, single environments for others.

    :param env_id: environment id
    :param n_envs: number of members, fewer for single environments
    :param monitor_file: where the returns of all episodes go, without ``.monitor.csv``
    :return: the environment, with tasks
    """
    check_env_id(env_id)
    venv: VecEnv
    if env_id in FAMILIES:
        venv = make_vec(env_id, n_envs)
    else:
        venv = DummyVecEnv([partial(gym.make, env_id)] * min(n_envs, MAX_SINGLE_ENVS))
    if monitor_file is not None:
        venv = VecMonitor(venv, str(monitor_file))
    with _closed_on_error(venv):
        return MultiTaskVecEnv(venv)


def build_model(run: TrainingRun) -> MAESN:
    """
    Make the model of a run, new or resumed, with its environment and its logger.

    :param run: what to train
    :return: the model
    :raises ConfigError: for a key that the constructor does not know, or a missing file
    """
    algorithm = find_algorithm(run.algo)
    arguments = constructor_arguments({k: v for k, v in run.config.items() if k not in SCRIPT_KEYS}, algorithm)
    device = check_device(run.device)
    if run.trained_agent is None:
        env = make_training_env(run.env_id, _n_members(run.config), run.folder / "0")
        with _closed_on_error(env):
            policy = run.config.get("policy", "LatentMlpPolicy")
            model = algorithm(policy, env, seed=run.seed, device=device, verbose=min(run.verbose, 1), **arguments)
    else:
        changes = {key: value for key, value in arguments.items() if key in run.overrides}
        model = algorithm.load(check_file(run.trained_agent), device=device, **changes)
        sizes = {"meta_batch_size": model.meta_batch_size, "n_episodes": model.n_episodes}
        waves = {key: run.config[key] for key in ("n_envs",) if key in run.config}
        env = make_training_env(run.env_id, _n_members({**sizes, **waves, **run.overrides}), run.folder / "0")
        with _closed_on_error(env):
            model.set_env(env)
    model.set_logger(make_logger(run))
    return model


@contextmanager
def _closed_on_error(env: VecEnv) -> Iterator[None]:
    try:
        yield
    except BaseException:
        env.close()
        raise


def check_device(device: str) -> th.device:
    """
    Look a torch device up.

    :param device: its name
    :return: the device
    :raises ConfigError: if torch knows no such device
    """
    try:
        return get_device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}") from error


def train(run: TrainingRun, model: MAESN, n_timesteps: int | None) -> Path:
    """
    Train a model and save it.

    :param run: what to train
    :param model: from ``build_model``
    :param n_timesteps: from ``steps_to_train``
    :return: the saved model, ``{folder}/{env_id}.zip``
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


def close(model: MAESN) -> None:
    """
    Close a model's environment and logs.

    :param model: the model
    """
    if model.env is not None:
        model.env.close()
    model.logger.close()


def steps_to_train(run: TrainingRun, model: MAESN) -> int | None:
    """
    Work out the budget of this call of ``learn``.

    :param run: what to train
    :param model: the model, resumed or new
    :return: environment steps, None for the algorithm's reference budget
    :raises ConfigError: if a resumed model has spent its budget
    """
    if run.n_timesteps is not None:
        return run.n_timesteps
    budget = run.config.get("n_timesteps")
    if budget is None or run.trained_agent is None:
        return None if budget is None else int(budget)
    left = int(budget) - model.num_timesteps
    if left <= 0:
        raise ConfigError(
            f"{run.trained_agent} has trained {model.num_timesteps} of {int(budget)} steps: say with -n how many more"
        )
    return left


def make_callbacks(run: TrainingRun, model: MAESN) -> list[BaseCallback]:
    """
    Make the callbacks that evaluate and save.

    :param run: what to train
    :param model: the model
    :return: callbacks
    """
    steps = model.timesteps_per_iteration
    callbacks: list[BaseCallback] = []
    if run.save_freq >= 0:
        save_freq = run.save_freq or ITERATIONS_BETWEEN_EVALUATIONS * steps
        callbacks.append(IterationCheckpoints(save_freq, run.folder, verbose=max(run.verbose - 1, 0)))
    if run.eval_freq >= 0:
        eval_env = make_training_env(sparse_variant(run.env_id), run.eval_tasks * run.eval_episodes)
        callbacks.append(
            MetaEvalCallback(
                eval_env,
                tasks=eval_env.task_set("validation")[: run.eval_tasks],
                eval_freq=max(run.eval_freq // steps, 1) if run.eval_freq else ITERATIONS_BETWEEN_EVALUATIONS,
                n_episodes=run.eval_episodes,
                rule=run.config.get("eval_rule"),
                log_path=str(run.folder),
                best_model_save_path=str(run.folder),
                verbose=run.verbose,
            )
        )
    return callbacks


def make_logger(run: TrainingRun) -> Logger:
    """
    Make a logger that writes ``progress.csv`` and, if asked for, to the terminal and to TensorBoard.

    :param run: what to train
    :return: logger
    """
    outputs: list[KVWriter] = [make_output_format("csv", str(run.folder))]
    if run.verbose >= 1:
        outputs.append(make_output_format("stdout", str(run.folder)))
    if run.tensorboard_log:
        outputs.append(TensorBoardOutputFormat(str(Path(run.tensorboard_log) / run.algo / run.folder.name)))
    return Logger(str(run.folder), outputs)


def _n_members(config: Mapping[str, Any]) -> int:
    """Members for one rollout of all tasks at once, unless the configuration asks for fewer and waves."""
    return int(config.get("n_envs", config.get("meta_batch_size", 20) * config.get("n_episodes", 20)))
