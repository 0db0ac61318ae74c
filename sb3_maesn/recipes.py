"""What the training script has to know of an algorithm besides its constructor: its environment, its evaluation."""

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
from sb3_maesn.cli import check_env_id, parse_task, sparse_variant
from sb3_maesn.common.adaptable_algorithm import AdaptableAlgorithm
from sb3_maesn.common.env_util import MAX_SINGLE_MEMBERS
from sb3_maesn.common.task_algorithm import TaskAlgorithm
from sb3_maesn.config import ConfigError
from sb3_maesn.envs import FAMILIES, make_vec
from sb3_maesn.envs.multi_task import MultiTaskVecEnv, has_tasks

ITERATIONS_BETWEEN_EVALUATIONS = 10
N_LATENTS = 256  # tried in the training tasks in the end


@dataclass(frozen=True)
class TrainingRun:
    """What to train, and where to write it.

    :param algo: name of the algorithm
    :param env_id: environment id
    :param config: entry of a configuration file: constructor arguments, ``policy``, ``n_timesteps`` and ``n_envs``
    :param folder: folder of the run, which exists
    :param task: the words of ``--task``, the task of an algorithm that learns one; empty where there is none to choose
    :param overrides: the part of ``config`` that a resumed model shall take as well
    :param n_timesteps: environment steps to train, for a resumed model in addition; None for the configured budget,
        or what a resumed model has left of it
    :param trained_agent: model file to resume
    :param seed: seed of a new model
    :param device: torch device
    :param tensorboard_log: folder for TensorBoard
    :param eval_freq: environment steps between evaluations, 0 for every ten iterations, -1 for never
    :param eval_tasks: validation tasks of an evaluation
    :param eval_episodes: episodes of an adaptation round in an evaluation
    :param save_freq: environment steps between checkpoints, 0 for every ten iterations, -1 for never
    :param progress_bar: show a progress bar
    :param verbose: 0, 1 or 2
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
    tensorboard_log: str | None = None
    eval_freq: int = 0
    eval_tasks: int = 20
    eval_episodes: int = 20
    save_freq: int = 0
    progress_bar: bool = False
    verbose: int = 1


class Recipe(ABC):
    """How the training script handles an algorithm.

    :param algorithm: class of the algorithm
    :param policy: name of its policy where the configuration names none
    """

    def __init__(self, algorithm: type[OnPolicyAlgorithm], policy: str) -> None:
        self.algorithm = algorithm
        self.policy = policy

    @abstractmethod
    def n_members(self, config: Mapping[str, Any]) -> int:
        """Count the members of the training environment of a new model.

        :param config: entry of a configuration file
        """

    @abstractmethod
    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """Count the members of the training environment of a resumed model.

        :param model: from its file
        :param run: what to train
        """

    @abstractmethod
    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """Make the environment to train or to evaluate on.

        :param run: what to train
        :param n_envs: number of members
        :param monitor_file: where the returns of all episodes go, without ``.monitor.csv``
        """

    @abstractmethod
    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Make the callback that writes ``evaluations.npz`` and ``best_model.zip``.

        :param run: what to train
        :param model: the model
        """

    def test_env_id(self, env_id: str) -> str:
        """Find the environment that agents are judged on while they train.

        :param env_id: environment id they train on
        """
        return env_id

    def finish(self, run: TrainingRun, model: Any) -> None:  # noqa: B027  # most recipes leave nothing to do
        """Do what is left to do after training.

        :param run: what was trained
        :param model: the model
        """

    def timesteps_per_iteration(self, model: Any) -> int:
        """Count the environment steps of one iteration.

        :param model: of this algorithm
        """
        return int(model.timesteps_per_iteration if isinstance(model, TaskAlgorithm) else model.n_steps * model.n_envs)

    def default_timesteps(self) -> int | None:
        """Find the budget where neither flag nor configuration names one.

        :return: None for what ``learn`` takes as its default
        """
        return None


class MetaLearning(Recipe):
    """Recipe for algorithms that train on all tasks of a family and are evaluated by adapting to validation tasks.

    :param algorithm: class of the algorithm
    :param policy: name of its policy where the configuration names none
    """

    def __init__(self, algorithm: type[TaskAlgorithm], policy: str = "LatentMlpPolicy") -> None:
        super().__init__(algorithm, policy)

    def n_members(self, config: Mapping[str, Any]) -> int:
        """Members for one rollout of all tasks at once, unless the configuration asks for fewer and waves."""
        return int(config.get("n_envs", config.get("meta_batch_size", 20) * config.get("n_episodes", 20)))

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """As for a new model with this one's settings."""
        sizes = {"meta_batch_size": model.meta_batch_size, "n_episodes": model.n_episodes}
        waves = {key: run.config[key] for key in ("n_envs",) if key in run.config}
        return self.n_members({**sizes, **waves, **run.overrides})

    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """All tasks of the family."""
        if run.task:
            raise ConfigError(
                f"--task chooses the one task of a single-task algorithm; {run.algo} learns from all tasks"
            )
        return make_tasks_env(run.env_id, n_envs, monitor_file)

    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Adaptation to the first validation tasks, from sparse reward."""
        return self._adaptation(run, model, rule=run.config.get("eval_rule"))

    def test_env_id(self, env_id: str) -> str:
        """The family's sparse variant."""
        return sparse_variant(env_id)

    def finish(self, run: TrainingRun, model: Any) -> None:
        """Learn what the training tasks tell about new ones, where that takes seconds: tasks share their episodes."""
        if not isinstance(model, AdaptableAlgorithm) or model.policy.latent_dim == 0:
            return
        with closing(make_tasks_env(self.test_env_id(run.env_id), N_LATENTS)) as env:
            if env.shares_episodes:
                model.learn_score_prior(env, N_LATENTS)

    def _adaptation(self, run: TrainingRun, model: Any, **settings: Any) -> MetaEvalCallback:
        eval_env = make_tasks_env(self.test_env_id(run.env_id), run.eval_tasks * run.eval_episodes)
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
    """Of an algorithm that trains on trials of all tasks, and adapts within a trial to the reward that it knows."""

    def n_members(self, config: Mapping[str, Any]) -> int:
        """One for each trial of an iteration, unless the configuration asks for fewer that run several."""
        return int(config.get("n_envs", config.get("meta_batch_size", 40)))

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """As many as before, since they make up the batch."""
        return int(model.n_envs)

    def make_evaluation(self, run: TrainingRun, model: Any) -> BaseCallback:
        """Trials of the first validation tasks, with the reward of training."""
        return self._adaptation(run, model, n_rounds=model.n_episodes - 1)

    def test_env_id(self, env_id: str) -> str:
        """The same, whose reward is an input of the policy."""
        return env_id


class SingleTask(Recipe):
    """Of an algorithm that learns one task: one of a family by ``--task``, or an environment that has no tasks.

    :param algorithm: class of the algorithm
    :param policy: name of its policy where the configuration names none
    """

    def __init__(self, algorithm: type[OnPolicyAlgorithm], policy: str = "MlpPolicy") -> None:
        super().__init__(algorithm, policy)

    def n_members(self, config: Mapping[str, Any]) -> int:
        """As many as the configuration says; the zoo's one where it does not."""
        return int(config.get("n_envs", 1))

    def n_members_resumed(self, model: Any, run: TrainingRun) -> int:
        """As many as before, since they make up the batch."""
        return int(model.n_envs)

    def make_env(self, run: TrainingRun, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
        """All members at the one task."""
        venv = make_members(run.env_id, n_envs, monitor_file)
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
        """SB3's, on the task that is trained."""
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

    def default_timesteps(self) -> int | None:
        """There is none."""
        raise ConfigError("neither the configuration nor -n says how many steps to train")


def make_members(env_id: str, n_envs: int, monitor_file: Path | None = None) -> VecEnv:
    """Make the members that episodes run in: the native VecEnv for a built-in family, single environments for others.

    :param env_id: environment id
    :param n_envs: number of members
    :param monitor_file: where the returns of all episodes go, without ``.monitor.csv``
    :return: the environment, which counts returns
    """
    check_env_id(env_id)
    venv: VecEnv = make_vec(env_id, n_envs) if env_id in FAMILIES else DummyVecEnv([partial(gym.make, env_id)] * n_envs)
    seen = ("is_success",) if env_id in FAMILIES else ()  # what rl-zoo's plots of success read
    return VecMonitor(venv, None if monitor_file is None else str(monitor_file), seen)


def make_tasks_env(env_id: str, n_envs: int, monitor_file: Path | None = None) -> MultiTaskVecEnv:
    """Make an environment with tasks, for episodes that may run in waves.

    :param env_id: environment id
    :param n_envs: number of members, fewer for single environments
    :param monitor_file: where the returns of all episodes go, without ``.monitor.csv``
    :return: the environment
    :raises ConfigError: if it has no tasks
    """
    venv = make_members(env_id, n_envs if env_id in FAMILIES else min(n_envs, MAX_SINGLE_MEMBERS), monitor_file)
    with closed_on_error(venv):
        if not has_tasks(venv):
            raise ConfigError(
                f"{env_id} has no tasks, of which a meta-learner needs many: give it `sample_tasks(n)` and"
                " `set_task(task)`, or take reinforce, trpo or vime"
            )
        return MultiTaskVecEnv(venv)


@contextmanager
def closed_on_error(env: VecEnv) -> Iterator[None]:
    """Close an environment if what is done with it fails.

    :param env: the environment
    """
    try:
        yield
    except BaseException:
        env.close()
        raise
