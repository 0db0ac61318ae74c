"""Training recipes: the environment, the evaluation and the budget with which the scripts train each algorithm."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sb3_maesn.callbacks import MetaEvalCallback
from sb3_maesn.common.adaptable_algorithm import AdaptableAlgorithm
from sb3_maesn.common.env_util import MAX_SINGLE_MEMBERS
from sb3_maesn.common.task_algorithm import REFERENCE_ITERATIONS, TaskAlgorithm
from sb3_maesn.config import ConfigError, check_rule
from sb3_maesn.envs import FAMILIES, make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, has_tasks
from sb3_maesn.tasks import check_env_id, parse_task, sparse_variant

ITERATIONS_BETWEEN_EVALUATIONS = 10
N_LATENTS = 256  # latents that are tried on the training tasks to learn the score prior after training


@dataclass(frozen=True)
class TrainingRun:
    """Settings of one training run.

    :param algo: key of ``training.ALGOS``
    :param env_id: environment id
    :param config: entry of a hyperparameter file: constructor arguments and the keys of ``config.SCRIPT_KEYS``
    :param folder: existing folder of the run
    :param task: words of ``--task`` for an algorithm that learns one task; empty if there is no task to choose
    :param overrides: part of ``config`` that the user asked for, which also applies to a resumed model
    :param n_timesteps: environment steps to train, in addition to those of a resumed model; None for the configured
        budget, or for the rest of it if a model is resumed
    :param trained_agent: model file to resume, None to train a new model
    :param seed: seed of a new model
    :param device: torch device
    :param n_threads: threads that step the members of a built-in family, 0 for one per core
    :param tensorboard_log: folder for TensorBoard, None for no such logs
    :param eval_freq: environment steps between evaluations, 0 for every ten iterations, -1 for no evaluations
    :param eval_tasks: number of validation tasks in an evaluation
    :param eval_episodes: episodes per task and adaptation round in an evaluation; all episodes for a single task
    :param save_freq: environment steps between checkpoints, 0 for every ten iterations, -1 for no checkpoints
    :param progress_bar: whether to show a progress bar
    :param verbose: 0 for no output, 1 for logs, 2 for messages about checkpoints too
    """

    algo: str
    env_id: str
    config: Mapping[str, Any]
    folder: Path
    task: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    n_timesteps: int | None = None
    trained_agent: str | None = None
    seed: int | None = None
    device: str = "cpu"
    n_threads: int = 0
    tensorboard_log: str | None = None
    eval_freq: int = 0
    eval_tasks: int = 20
    eval_episodes: int = 20
    save_freq: int = 0
    progress_bar: bool = False
    verbose: int = 1


class Recipe(ABC):
    """Recipe for training an algorithm.

    :param algorithm: class of the algorithm
    :param policy: name of the policy if the configuration names none
    """

    def __init__(self, algorithm: type[OnPolicyAlgorithm], policy: str) -> None:
        self.algorithm = algorithm
        self.policy = policy

    @abstractmethod
    def n_members(self, config: Mapping[str, Any]) -> int:
        """Choose the number of members of the training environment of a new model.

        :param config: entry of a hyperparameter file
        :return: number of members
        """

    @abstractmethod
    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """Choose the number of members of the training environment of a resumed model.

        :param model: resumed model
        :param run: settings of the run
        :return: number of members
        """

    @abstractmethod
    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """Make an environment to train or to evaluate on.

        :param run: settings of the run
        :param n_envs: number of members
        :param monitor_file: monitor file to write, without its ending ``.monitor.csv``; None for none
        :return: environment
        :raises ConfigError: if the algorithm cannot be trained on the environment or the task
        """

    @abstractmethod
    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Make the callback that writes ``evaluations.npz`` and ``best_model.zip``.

        :param run: settings of the run
        :param model: model to evaluate
        :return: callback
        :raises ValueError: if the evaluation is impossible
        """

    def test_env_id(self, env_id: str) -> str:
        """Choose the environment of the evaluations during training.

        :param env_id: id of the training environment
        :return: environment id
        """
        return env_id

    def finish(self, run: TrainingRun, model: Any) -> bool:
        """Complete a model after training; most recipes have nothing to do.

        :param run: settings of the run
        :param model: trained model
        :return: whether the model has changed
        """
        return False

    def timesteps_per_iteration(self, model: Any) -> int:
        """Count the environment steps of one iteration.

        :param model: model of this algorithm
        :return: environment steps, of all members together
        """
        return int(model.timesteps_per_iteration if isinstance(model, TaskAlgorithm) else model.n_steps * model.n_envs)

    def default_timesteps(self, model: Any) -> int:
        """Choose the number of environment steps to train in all if neither a flag nor the configuration gives one.

        :param model: model of this algorithm
        :return: environment steps
        :raises ConfigError: if the algorithm has no default
        """
        return REFERENCE_ITERATIONS * self.timesteps_per_iteration(model)


class MetaLearning(Recipe):
    """Recipe for algorithms that train on all tasks of a family and are evaluated by adapting to validation tasks.

    :param algorithm: class of the algorithm
    :param policy: name of the policy if the configuration names none
    """

    def __init__(self, algorithm: type[TaskAlgorithm], policy: str = "LatentMlpPolicy") -> None:
        super().__init__(algorithm, policy)

    def n_members(self, config: Mapping[str, Any]) -> int:
        """Choose one member per task and episode of a rollout, unless the configuration sets ``n_envs``."""
        # The constructor of the algorithm refuses numbers below 1, with a better message than the environment's.
        n_tasks, n_episodes = (max(config.get(key, 20), 1) for key in ("meta_batch_size", "n_episodes"))
        return int(config.get("n_envs", n_tasks * n_episodes))

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """Choose the number of members of a new model with the settings of the resumed one and the overrides."""
        sizes = {"meta_batch_size": model.meta_batch_size, "n_episodes": model.n_episodes}
        waves = {key: run.config[key] for key in ("n_envs",) if key in run.config}
        return self.n_members({**sizes, **waves, **run.overrides})

    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """Make an environment with all tasks of the family."""
        if run.task:
            raise ConfigError(
                f"--task chooses the one task of a single-task algorithm; {run.algo} learns from all tasks"
            )
        return make_tasks_env(run.env_id, n_envs, monitor_file, run.n_threads)

    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Make a callback that adapts to the first validation tasks, with sparse reward if the family has it."""
        rule = run.config.get("eval_rule")
        check_rule(rule)  # the callback looks the rule up at the first evaluation only
        return self._adaptation(run, model, rule=rule)

    def test_env_id(self, env_id: str) -> str:
        """Choose the sparse variant of the family."""
        return sparse_variant(env_id)

    def finish(self, run: TrainingRun, model: Any) -> bool:
        """Learn the score prior of a model with a latent, if the tasks share episodes, which makes it quick."""
        if not isinstance(model, AdaptableAlgorithm) or model.policy.latent_dim == 0:
            return False
        with closing(make_tasks_env(self.test_env_id(run.env_id), N_LATENTS, None, run.n_threads)) as env:
            if env.shares_episodes:
                model.learn_score_prior(env, N_LATENTS)
            return env.shares_episodes

    def _adaptation(self, run: TrainingRun, model: Any, **settings: Any) -> MetaEvalCallback:
        n_members = run.eval_tasks * run.eval_episodes
        eval_env = make_tasks_env(self.test_env_id(run.env_id), n_members, None, run.n_threads)
        tasks = eval_env.task_set("validation")[: run.eval_tasks]
        if len(tasks) < run.eval_tasks and run.verbose:
            print(f"{run.env_id} has {len(tasks)} validation tasks: evaluations use all of them, not {run.eval_tasks}")
        every = max(run.eval_freq // self.timesteps_per_iteration(model), 1)
        return MetaEvalCallback(
            eval_env,
            tasks=tasks,
            eval_freq=every if run.eval_freq else ITERATIONS_BETWEEN_EVALUATIONS,
            n_episodes=run.eval_episodes,
            log_path=str(run.folder),
            best_model_save_path=str(run.folder),
            verbose=run.verbose,
            **settings,
        )


class TrialLearning(MetaLearning):
    """Recipe for algorithms that train on trials of all tasks and adapt within a trial, with the reward as an input.

    :param algorithm: class of the algorithm
    :param policy: name of the policy if the configuration names none
    """

    def n_members(self, config: Mapping[str, Any]) -> int:
        """Choose one member per trial of an iteration, unless the configuration sets ``n_envs``."""
        return int(config.get("n_envs", max(config.get("meta_batch_size", 40), 1)))  # see ``MetaLearning.n_members``

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """Keep the number of members, since it determines the size of the batch."""
        return kept_members(model, run)

    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Make a callback that runs trials of the first validation tasks, with the reward of training."""
        return self._adaptation(run, model, n_rounds=model.n_episodes - 1)

    def test_env_id(self, env_id: str) -> str:
        """Choose the training environment, since its reward is an input of the policy."""
        return env_id


class SingleTask(Recipe):
    """Recipe for algorithms that learn one task: a task of a family, or an environment without tasks.

    :param algorithm: class of the algorithm
    :param policy: name of the policy if the configuration names none
    """

    def __init__(self, algorithm: type[OnPolicyAlgorithm], policy: str = "MlpPolicy") -> None:
        super().__init__(algorithm, policy)

    def n_members(self, config: Mapping[str, Any]) -> int:
        """Take the configured number of members; 1, as in rl-zoo, if there is none."""
        return int(config.get("n_envs", 1))

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """Keep the number of members, since it determines the size of the batch."""
        return kept_members(model, run)

    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """Make an environment whose members all have the one task."""
        venv = make_members(run.env_id, n_envs, monitor_file, run.n_threads)
        with closed_on_error(venv):
            if not has_tasks(venv):
                if run.task:
                    raise ConfigError(f"{run.env_id} has no tasks to choose from: leave --task out")
                return venv
            tasks = MultiTaskVecEnv(venv)
            if not run.task:
                raise ConfigError(
                    f"{run.algo} learns one task, and {run.env_id} has many: choose with --task N, a training task from"
                    f" 0 to {len(tasks.task_set('train')) - 1}, with --task validation:N, or with a task's own values"
                )
            return tasks.only(parse_task(run.task, tasks))

    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Make SB3's ``EvalCallback`` on the training task."""
        n_envs = run.eval_episodes if run.env_id in FAMILIES else min(run.eval_episodes, MAX_SINGLE_MEMBERS)
        freq = run.eval_freq or ITERATIONS_BETWEEN_EVALUATIONS * self.timesteps_per_iteration(model)
        return EvalCallback(
            self.make_env(run, n_envs),
            n_eval_episodes=run.eval_episodes,
            eval_freq=max(freq // model.n_envs, 1),
            log_path=str(run.folder),
            best_model_save_path=str(run.folder),
            verbose=run.verbose,
        )

    def default_timesteps(self, model: Any) -> int:
        """Refuse to train, since single-task algorithms have no default.

        :param model: model of this algorithm
        :raises ConfigError: always
        """
        raise ConfigError("neither the configuration nor -n says how many steps to train")


def make_members(env_id: str, n_envs: int, monitor_file: Path | None = None, n_threads: int = 0) -> VecEnv:
    """Make a monitored VecEnv: the batched one for a built-in family, a DummyVecEnv for other environments.

    :param env_id: environment id
    :param n_envs: number of members
    :param monitor_file: monitor file to write, without its ending ``.monitor.csv``; None for none
    :param n_threads: threads that step the members of a built-in family, 0 for one per core
    :return: environment that records the returns of its episodes
    :raises ConfigError: if the environment id is unknown
    """
    check_env_id(env_id)
    venv: VecEnv
    if env_id in FAMILIES:
        venv = make_vec(env_id, n_envs, n_threads)
    else:
        venv = DummyVecEnv([partial(gym.make, env_id)] * n_envs)
    seen = ("is_success",) if env_id in FAMILIES else ()  # rl-zoo's plots read this column
    return VecMonitor(venv, None if monitor_file is None else str(monitor_file), seen)


def make_tasks_env(env_id: str, n_envs: int, monitor_file: Path | None = None, n_threads: int = 0) -> MultiTaskVecEnv:
    """Make a monitored environment with tasks.

    :param env_id: environment id
    :param n_envs: number of members, at most ``MAX_SINGLE_MEMBERS`` of which are made outside the built-in families
    :param monitor_file: monitor file to write, without its ending ``.monitor.csv``; None for none
    :param n_threads: threads that step the members of a built-in family, 0 for one per core
    :return: environment
    :raises ConfigError: if the environment id is unknown, or the environment has no tasks
    """
    n_envs = n_envs if env_id in FAMILIES else min(n_envs, MAX_SINGLE_MEMBERS)
    venv = make_members(env_id, n_envs, monitor_file, n_threads)
    with closed_on_error(venv):
        if not has_tasks(venv):
            raise ConfigError(
                f"{env_id} has no tasks, of which a meta-learner needs many: give it `sample_tasks(n)` and"
                " `set_task(task)`, or take reinforce, trpo or vime"
            )
        return MultiTaskVecEnv(venv)


def kept_members(model: Any, run: TrainingRun) -> int:
    """Return the number of members of a resumed model whose batch is of that size.

    :param model: resumed model
    :param run: settings of the run
    :return: number of members
    :raises ConfigError: if the user asks for another number
    """
    asked = run.overrides.get("n_envs", model.n_envs)
    if asked != model.n_envs:
        raise ConfigError(
            f"a resumed model of {run.algo} keeps its number of members, which its batches depend on: expected"
            f" n_envs:{model.n_envs} or none, got {asked}"
        )
    return int(model.n_envs)


@contextmanager
def closed_on_error(env: VecEnv) -> Iterator[None]:
    """Close an environment if the body raises an exception.

    :param env: environment
    """
    try:
        yield
    except BaseException:
        env.close()
        raise
