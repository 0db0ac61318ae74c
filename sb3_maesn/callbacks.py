"""Callback that evaluates adaptation to validation tasks during training."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_maesn.common.adaptation.learners import check_rule
from sb3_maesn.common.adaptation.rounds import AdaptationResult
from sb3_maesn.common.adaptation.rule import AdaptationRule
from sb3_maesn.common.env_util import (
    MAX_MEMBERS,
    as_multi_task,
    check_same_normalization,
    observation_normalizers,
    reward_normalizers,
)
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.evaluation import AdaptableModel, check_adaptable, evaluate_adaptation


class MetaEvalCallback(BaseCallback):
    """Callback that adapts to validation tasks every few meta-iterations, logs ``eval/*`` and keeps the best model.

    The best model has the highest fraction of successful episodes in the last round, or the highest mean return if the
    environment does not report success. ``evaluations.npz`` has the arrays of rl_zoo3 for E evaluations, ``timesteps``
    (E,) and ``results``, ``ep_lengths`` and ``successes`` (E, n_tasks * n_episodes) of the last round, and also
    ``returns_by_round`` and ``success_by_round`` (E, n_rounds + 1). A run that is resumed continues the record in the
    same folder. If a VecNormalize wrapper normalises the observations of the training environment, the evaluation
    environment needs one too. It gets the statistics of the training environment before every evaluation, in which they
    stay fixed and rewards are not normalised.

    :param eval_env: environment id such as ``"WheeledGoalSparse-v0"``, or environment other than the training
        environment
    :param tasks: tasks, any values that the environment's ``set_task`` accepts; None for its validation tasks
    :param eval_freq: number of meta-iterations between evaluations
    :param n_rounds: number of adaptation rounds
    :param n_episodes: number of episodes of each task in each round
    :param rule: adaptation rule, its name, or None for the default, as in
        :func:`sb3_maesn.evaluation.evaluate_adaptation`
    :param log_path: folder for ``evaluations.npz``, None for no file
    :param best_model_save_path: folder for ``best_model.zip``, None for no file
    :param seed: seed of every evaluation, the same for all so that they differ only by the model
    :param verbose: verbosity level; 1 prints the result of each evaluation
    :raises ValueError: if a number is too small, the rule is unknown or the environment has no tasks; at the start of
        training, if the model does not adapt, or only one of training and evaluation environment normalises
        observations
    """

    def __init__(
        self,
        eval_env: GymEnv | str,
        tasks: Sequence[Any] | None = None,
        eval_freq: int = 10,
        n_rounds: int = 3,
        n_episodes: int = 20,
        rule: str | AdaptationRule | None = None,
        log_path: str | Path | None = None,
        best_model_save_path: str | Path | None = None,
        seed: int = 0,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        numbers = {"eval_freq": eval_freq, "n_rounds": n_rounds, "n_episodes": n_episodes, "seed": seed}
        check_at_least(numbers, {"eval_freq": 1, "n_rounds": 0, "n_episodes": 1, "seed": 0})
        check_rule(rule)
        self.eval_env = as_multi_task(eval_env, MAX_MEMBERS if tasks is None else len(tasks) * n_episodes, tasks)
        self.tasks = self.eval_env.task_set("validation") if tasks is None else list(tasks)
        self.eval_freq = eval_freq
        self.n_rounds, self.n_episodes, self.rule, self.eval_seed = n_rounds, n_episodes, rule, seed
        self.log_path = None if log_path is None else Path(log_path)
        self.best_model_save_path = None if best_model_save_path is None else Path(best_model_save_path)
        self.best_score = -np.inf
        self.last_iteration = -1
        self.history: dict[str, list[Any]] = {}

    def _init_callback(self) -> None:
        """Start a new record, or continue that of an earlier run in the same folder."""
        # early errors
        check_adaptable(self.model)
        assert isinstance(self.model, AdaptableModel)
        _sync_normalization(self.training_env, self.eval_env, self.model.observes_rewards)
        path = self._npz_path()
        if self.model.num_timesteps == 0:
            self.history, self.best_score, self.last_iteration = {}, -np.inf, -1
        elif path is not None and path.exists():
            self._continue_record(path)

    def _continue_record(self, path: Path) -> None:
        """Read the evaluations up to the model's current step and find the best score among them."""
        with np.load(path, allow_pickle=False) as arrays:
            kept = arrays["timesteps"] <= self.model.num_timesteps
            self.history = {name: list(arrays[name][kept]) for name in arrays.files}
            shapes = arrays["results"].shape[1], arrays["returns_by_round"].shape[1]
        expected = len(self.tasks) * self.n_episodes, self.n_rounds + 1
        if shapes != expected:
            raise ValueError(
                f"{path} has evaluations of {shapes[0]} episodes in {shapes[1]} rounds, expected {expected[0]} in"
                f" {expected[1]}: choose another log_path"
            )
        self.best_score = max(self._scores(), default=-np.inf)
        if self.history["timesteps"] and self.history["timesteps"][-1] == self.model.num_timesteps:
            self.last_iteration = self.model._n_updates  # evaluated before the interruption

    def _npz_path(self) -> Path | None:
        return None if self.log_path is None else self.log_path / "evaluations.npz"

    def _scores(self) -> list[float]:
        """Score all evaluations by the success rate of the last round, or by its mean return if success is unknown."""
        success, returns = (
            [row[-1] for row in self.history.get(f"{key}_by_round", ())] for key in ("success", "returns")
        )
        if np.isnan(success).all():
            return [float(value) for value in returns]
        return [-np.inf if np.isnan(value) else float(value) for value in success]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        iteration = self.model._n_updates
        if self.model.num_timesteps > 0 and iteration % self.eval_freq == 0:
            self._evaluate(iteration)

    def _on_training_end(self) -> None:
        self._evaluate(self.model._n_updates)

    def _evaluate(self, iteration: int) -> None:
        if iteration == self.last_iteration:
            return
        self.last_iteration = iteration
        assert isinstance(self.model, AdaptableModel)
        _sync_normalization(self.training_env, self.eval_env, self.model.observes_rewards)
        result = evaluate_adaptation(
            self.model, self.eval_env, self.tasks, self.n_rounds, self.n_episodes, self.rule, self.eval_seed
        )
        self._log(result)
        self._append_to_record(result)
        *earlier, score = self._scores()
        self.best_score = max(earlier, default=-np.inf)
        if score > self.best_score:
            self.best_score = score
            if self.best_model_save_path is not None:
                self.model.save(self.best_model_save_path / "best_model")

    def _log(self, result: AdaptationResult) -> None:
        self.logger.record("eval/mean_reward", float(result.mean_return[-1]))
        self.logger.record("eval/mean_ep_length", float(result.lengths[-1].mean()))
        for r in range(self.n_rounds + 1):
            self.logger.record(f"eval/return_round_{r}", float(result.mean_return[r]))
            if not np.isnan(result.success_rate[r]):
                self.logger.record(f"eval/success_round_{r}", float(result.success_rate[r]))
        if not np.isnan(result.success_rate[-1]):
            self.logger.record("eval/success_rate", float(result.success_rate[-1]))
            self.logger.record("eval/solved_rate", float(result.solved_rate[-1]))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)  # like SB3's EvalCallback, log at the step of the evaluation
        if self.verbose > 0:
            print(
                f"Eval num_timesteps={self.num_timesteps}, return by round {np.round(result.mean_return, 2)},"
                f" success by round {np.round(result.success_rate, 2)}"
            )

    def _append_to_record(self, result: AdaptationResult) -> None:
        row = {
            "timesteps": self.num_timesteps,
            "results": result.returns[-1].ravel(),
            "ep_lengths": result.lengths[-1].ravel(),
            "successes": result.success[-1].ravel(),
            "returns_by_round": result.mean_return,
            "success_by_round": result.success_rate,
        }
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        path = self._npz_path()
        if path is not None:
            arrays: dict[str, Any] = {name: np.asarray(values) for name, values in self.history.items()}
            write_atomically(path, lambda file: np.savez(file, **arrays))


def _sync_normalization(env: VecEnv, eval_env: VecEnv, rewards: bool) -> None:
    """Copy the statistics by which an environment normalises to the evaluation environment.

    SB3's ``sync_envs_normalization`` needs equal wrappers throughout, but the algorithms add some of their own to the
    training environment, so this function compares the VecNormalize wrappers only.

    :param env: training environment
    :param eval_env: evaluation environment
    :param rewards: whether the policy observes rewards
    :raises ValueError: if the environments do not normalise equally often what the policy observes
    """
    check_same_normalization(env, eval_env, rewards)
    kinds = (observation_normalizers, reward_normalizers) if rewards else (observation_normalizers,)
    for find in kinds:
        for source, target in zip(find(env), find(eval_env), strict=True):
            target.obs_rms, target.ret_rms = deepcopy(source.obs_rms), deepcopy(source.ret_rms)
