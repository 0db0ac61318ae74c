"""Trials of hyperparameter tuning: what they train, and the score they get."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.benchmarking import EvaluationPlan, Outcome, measure
from sb3_maesn.config import ConfigError, check_keys, check_rule, constructor_arguments, script_values
from sb3_maesn.recipes import TrainingRun
from sb3_maesn.search_spaces import SEARCH_SPACES, Entry, PartlyFixed, Suggests, fixed_parameters, merge
from sb3_maesn.tasks import check_env_id
from sb3_maesn.trained import TrainedAgent
from sb3_maesn.training import build_model, check_policy, close, find_recipe

METRICS = ("success", "return")
Numbers = IntDistribution | FloatDistribution
#: Number of random trials that see every parameter of a search space, even those of rare branches.
TRIALS_TO_SEE_ALL = 100


@dataclass(frozen=True)
class TuningPlan:
    """Plan of every trial of a study: training and evaluation.

    :param algo: key of ``training.ALGOS``
    :param env_id: environment id
    :param config: entry of a hyperparameter file; the values of a trial override it
    :param n_timesteps: environment steps that the agent of each seed trains
    :param n_evaluations: number of evaluations of the first seed, spread evenly over its training; the last is at the
        end
    :param n_seeds: number of seeds; the value of a trial is the median of their scores
    :param metric: ``"success"`` (the mean return if the environment does not report success) or ``"return"``
    :param test: settings of an evaluation
    :param task: words of ``--task`` for an algorithm that learns one task
    :param fixed: settings that override those of a trial, which does not sample them
    """

    algo: str
    env_id: str
    config: Mapping[str, Any]
    n_timesteps: int
    n_evaluations: int = 3
    n_seeds: int = 1
    metric: str = "success"
    test: EvaluationPlan = field(default_factory=lambda: EvaluationPlan(n_episodes=10, split="validation"))
    task: Sequence[str] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def stages(self, seed: int) -> list[int]:
        """List the environment steps after which an agent is evaluated.

        :param seed: seed of the agent; only seed 0 is evaluated before the end of its training
        :return: environment steps, in ascending order
        """
        n = self.n_evaluations if seed == 0 else 1
        return [self.n_timesteps * i // n for i in range(1, n + 1)]

    def entry(self, trial: Suggests) -> Entry:
        """Sample the hyperparameters of a trial that are not fixed.

        :param trial: running trial, or the parameters of a finished one as a ``FixedTrial``
        :return: entry of a hyperparameter file
        """
        sampled = SEARCH_SPACES[self.algo](PartlyFixed(trial, fixed_parameters(self.fixed)))
        return merge(merge(self.config, sampled), self.fixed)

    def as_json(self) -> dict[str, Any]:
        """Convert the plan to plain values, equal to those that a storage returns."""
        return json.loads(json.dumps(asdict(self), default=str))


def check_plan(plan: TuningPlan) -> None:
    """Check that trials can carry out a plan, by an evaluation of an untrained agent among other things.

    :param plan: plan of every trial
    :raises ConfigError: if an algorithm, environment, metric, rule, policy or hyperparameter is unknown, a value is of
        a wrong type or out of range, the algorithm cannot be trained on the environment, or settings contradict each
        other in some of the trials
    :raises ValueError: if the algorithm does not support the evaluation
    """
    recipe = find_recipe(plan.algo)
    for env_id in (plan.env_id, plan.test.env_id or plan.env_id):
        check_env_id(env_id)
    if not hasattr(recipe.algorithm, "adapt") and plan.test.env_id not in ("", plan.env_id):
        raise ConfigError(
            f"{plan.algo} is evaluated where it learns, on {plan.env_id}: leave out --eval-env {plan.test.env_id}"
        )
    if plan.metric not in METRICS:
        raise ConfigError(f"the metric must be one of {', '.join(METRICS)}, got {plan.metric!r}")
    config = script_values({**plan.config, **plan.fixed})
    check_rule(plan.test.rule)
    for name in ("n_timesteps", "n_evaluations", "n_seeds"):
        if getattr(plan, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(plan, name)}")
    constructor_arguments(config, recipe.algorithm)
    check_policy(config.get("policy", recipe.policy), recipe.algorithm)
    _check_entries(plan)
    _try_out(plan)


def _check_entries(plan: TuningPlan) -> None:
    """Check the hyperparameters of random trials by the constructor of the algorithm."""
    recipe = find_recipe(plan.algo)
    algorithm: Any = recipe.algorithm
    errors = []
    for trial in _random_trials(TRIALS_TO_SEE_ALL):
        entry = plan.entry(trial)
        try:
            arguments = constructor_arguments(entry, algorithm)
            algorithm(entry.get("policy", recipe.policy), None, _init_setup_model=False, **arguments)
        except ValueError as error:
            errors.append(error)
    if errors:
        some = len(errors) < TRIALS_TO_SEE_ALL
        advice = "; the search space varies some of these settings: fix them all with --hyperparams" if some else ""
        raise ConfigError(f"{errors[0]}{advice}") from errors[0]


def _try_out(plan: TuningPlan) -> None:
    """Evaluate an untrained agent on one episode: an error here is the fault of the plan, not of a trial."""
    (trial,) = _random_trials(1)
    with _agent(plan, plan.entry(trial), 0) as agent:
        measure(agent, replace(plan.test, n_tasks=1, n_rounds=0, n_episodes=1))


def check_start(algo: str, params: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> None:
    """Check that parameters and their values belong to the search space of an algorithm.

    :param algo: key of ``SEARCH_SPACES``
    :param params: values by name
    :param fixed: settings that trials do not sample, None for none
    :raises ConfigError: if a name or a value is not in the search space, or the parameter is not sampled; the message
        tells the permitted ones
    """
    if not params:
        return
    space = search_space(algo)
    check_keys(params, sorted(space), f"the search space of {algo}")
    for name in fixed_parameters(fixed or {}):
        if name in params:
            raise ConfigError(f"--hyperparams fixes {name}: leave it out of --start")
    for name, value in params.items():
        allowed = space[name]
        if isinstance(allowed, CategoricalDistribution):
            if value not in allowed.choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed.choices))}, got {value!r}")
        elif isinstance(allowed, Numbers) and not _is_within(value, allowed):
            kind = "a whole number" if isinstance(allowed, IntDistribution) else "a number"
            raise ConfigError(f"{name} must be {kind} from {allowed.low} to {allowed.high}, got {value!r}")


def _is_within(value: Any, allowed: Numbers) -> bool:
    kinds = int if isinstance(allowed, IntDistribution) else int | float
    return isinstance(value, kinds) and not isinstance(value, bool) and allowed.low <= value <= allowed.high


def search_space(algo: str) -> dict[str, BaseDistribution]:
    """List the parameters of all branches of a search space.

    :param algo: key of ``SEARCH_SPACES``
    :return: distributions by name
    """
    trials = _random_trials(TRIALS_TO_SEE_ALL)
    for trial in trials:
        SEARCH_SPACES[algo](trial)
    return {name: values for trial in trials for name, values in trial.distributions.items()}


def _random_trials(n: int) -> list[optuna.Trial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [study.ask() for _ in range(n)]


def objective(plan: TuningPlan, trial: optuna.Trial) -> float:
    """Train and evaluate the agents of a trial, one seed after the other, until the trial is complete or pruned.

    After each evaluation the median score of the seeds so far is reported to the pruner, at the number of environment
    steps that all seeds have trained together.

    :param plan: plan of the trial
    :param trial: trial
    :return: median over the seeds of their last scores
    :raises optuna.TrialPruned: if the pruner stops the trial, or training or evaluation fails numerically
    """
    config = plan.entry(trial)
    scores: list[float] = []
    for seed in range(plan.n_seeds):
        with _agent(plan, config, seed) as agent:
            *between, last = plan.stages(seed)
            judge = partial(_judge, plan, trial, agent, seed, scores)
            with _pruned_by_errors("training"):
                _train(agent.model, plan.n_timesteps, between, judge)
            scores.append(judge(last))
    trial.set_user_attr("scores", scores)
    return float(np.median(scores))


def _judge(
    plan: TuningPlan, trial: optuna.Trial, agent: TrainedAgent, seed: int, scores: Sequence[float], steps: int
) -> float:
    """Evaluate an agent, and report to the pruner.

    :param plan: plan of the trial
    :param trial: trial
    :param agent: agent
    :param seed: seed of the agent
    :param scores: scores of the seeds before this one
    :param steps: environment steps that the agent shall have trained
    :return: score of the agent
    :raises optuna.TrialPruned: if the pruner stops the trial, or the evaluation fails numerically
    """
    with _pruned_by_errors("evaluation"):
        score = _score(measure(agent, plan.test), plan.metric)
    trained = seed * plan.n_timesteps + steps
    trial.report(float(np.median([*scores, score])), trained)
    is_last = trained == plan.n_seeds * plan.n_timesteps
    if not np.isfinite(score) or (not is_last and trial.should_prune()):
        raise optuna.TrialPruned(f"after {trained} steps")
    return score


def _train(model: OnPolicyAlgorithm, n_timesteps: int, stages: Sequence[int], reached: Callable[[int], Any]) -> None:
    """Train at one go, since schedules end where a training ends, and stop over at some numbers of environment steps.

    :param model: model
    :param n_timesteps: environment steps to train
    :param stages: environment steps to stop over at, in ascending order
    :param reached: function to call with each of them
    """
    model.learn(n_timesteps, callback=_BetweenIterations(stages, reached))


class _BetweenIterations(BaseCallback):
    """Callback that calls a function between iterations, as soon as given numbers of environment steps are reached.

    :param stages: environment steps, in ascending order
    :param reached: function to call with each of them
    """

    def __init__(self, stages: Sequence[int], reached: Callable[[int], Any]) -> None:
        super().__init__()
        self._stages, self._reached = list(stages), reached

    def _on_rollout_start(self) -> None:
        while self._stages and self.model.num_timesteps >= self._stages[0]:
            self._reached(self._stages.pop(0))

    def _on_step(self) -> bool:
        return True


@contextmanager
def _agent(plan: TuningPlan, config: Entry, seed: int) -> Iterator[TrainedAgent]:
    """Make an agent for the time of the body; its environment and files are removed afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(plan.algo, plan.env_id, config, Path(folder), task=plan.task, seed=seed, verbose=0)
        agent = TrainedAgent(plan.algo, plan.env_id, f"seed {seed}", build_model(run), task=tuple(plan.task))
        try:
            yield agent
        finally:
            close(agent.model)


@contextmanager
def _pruned_by_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, FloatingPointError) as error:  # raised for NaN by torch's distributions and by the environments
        raise optuna.TrialPruned(f"{doing} failed: {error}") from error


def _score(outcome: Outcome, metric: str) -> float:
    by_success = metric == "success" and outcome.knows_success
    return float((outcome.success if by_success else outcome.returns).mean())


def best_entry(plan: TuningPlan, trial: optuna.trial.FrozenTrial) -> Entry:
    """Turn a finished trial into an entry of a hyperparameter file.

    :param plan: plan of the study
    :param trial: finished trial
    :return: entry; its ``n_timesteps`` is that of the configuration, not that of the trials
    """
    return plan.entry(optuna.trial.FixedTrial(trial.params))
