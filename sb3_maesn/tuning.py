"""Tuning: what a trial trains, and what it is judged by."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.benchmarking import Outcome, TestPlan, measure
from sb3_maesn.cli import check_env_id
from sb3_maesn.common.adaptation.rules import RULES
from sb3_maesn.config import SCRIPT_KEYS, ConfigError, check_keys, constructor_arguments, script_values
from sb3_maesn.recipes import TrainingRun
from sb3_maesn.search_spaces import SEARCH_SPACES, Entry, merge
from sb3_maesn.trained import TrainedAgent
from sb3_maesn.training import build_model, check_policy, close, find_recipe

METRICS = ("success", "return")
Numbers = IntDistribution | FloatDistribution
#: More trials than it takes to see every parameter of a space with branches.
TRIALS_TO_SEE_ALL = 100


@dataclass(frozen=True)
class TuningPlan:
    """What every trial of a study does.

    :param algo: name of the algorithm
    :param env_id: environment id
    :param config: entry of a configuration file, over which a trial's values are put
    :param n_timesteps: environment steps that each seed trains
    :param n_evaluations: evaluations of the first seed on the way, the last of them at the end
    :param n_seeds: agents of a trial that is not pruned, whose median counts
    :param metric: ``success`` (the mean return where the environment does not report it) or ``return``
    :param test: tasks and rounds of an evaluation
    :param task: of an algorithm that learns one task, the words of ``--task``
    """

    algo: str
    env_id: str
    config: Mapping[str, Any]
    n_timesteps: int
    n_evaluations: int = 3
    n_seeds: int = 1
    metric: str = "success"
    test: TestPlan = field(default_factory=lambda: TestPlan(n_episodes=10, split="validation"))
    task: Sequence[str] = ()

    def stages(self, seed: int) -> list[int]:
        """List the environment steps after which an agent is evaluated.

        :param seed: its seed; only the first is evaluated on the way
        """
        n = self.n_evaluations if seed == 0 else 1
        return [self.n_timesteps * i // n for i in range(1, n + 1)]

    def entry(self, trial: optuna.trial.BaseTrial) -> Entry:
        """Ask a trial for its values.

        :param trial: a trial, or a finished one's parameters as a ``FixedTrial``
        :return: entry of a configuration file
        """
        return merge(self.config, SEARCH_SPACES[self.algo](trial))

    def as_json(self) -> dict[str, Any]:
        """Make plain values of it, as a study's storage gives them back."""
        return json.loads(json.dumps(asdict(self), default=str))


def check_plan(plan: TuningPlan) -> None:
    """Refuse what no trial could do.

    :param plan: what every trial does
    :raises ConfigError: for an unknown algorithm, environment, metric, rule or policy, a key that the constructor does
        not know, a value of a wrong type, an environment that the algorithm cannot train on, or numbers below 1
    :raises ValueError: for an evaluation that the algorithm refuses
    """
    recipe = find_recipe(plan.algo)
    for env_id in (plan.env_id, plan.test.env_id or plan.env_id):
        check_env_id(env_id)
    if plan.metric not in METRICS:
        raise ConfigError(f"the metric must be one of {', '.join(METRICS)}, got {plan.metric!r}")
    config = script_values(plan.config)
    for rule in (plan.test.rule, config.get("eval_rule")):
        if rule is not None and rule not in RULES:
            raise ConfigError(f"the adaptation rule must be one of {', '.join(RULES)}, got {rule!r}")
    for name in ("n_timesteps", "n_evaluations", "n_seeds"):
        if getattr(plan, name) < 1:
            raise ConfigError(f"{name} must be at least 1, got {getattr(plan, name)}")
    constructor_arguments({key: value for key, value in config.items() if key not in SCRIPT_KEYS}, recipe.algorithm)
    check_policy(config.get("policy", recipe.policy), recipe.algorithm)
    _try_out(plan)


def _try_out(plan: TuningPlan) -> None:
    """Make an agent and play an episode: an error now is the plan's, while that of a trained agent prunes its trial."""
    (trial,) = _random_trials(1)
    with _agent(plan, plan.entry(trial), 0) as agent:
        measure(agent, replace(plan.test, n_tasks=1, n_rounds=0, n_episodes=1))


def check_start(algo: str, params: Mapping[str, Any]) -> None:
    """Refuse parameters, and values, that a search space does not have.

    :param algo: name of the algorithm
    :param params: names and values
    :raises ConfigError: naming the nearest name, or the values that there are
    """
    if not params:
        return
    space = search_space(algo)
    check_keys(params, sorted(space), f"the search space of {algo}")
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
    """List the parameters of a search space, of all its branches.

    :param algo: name of the algorithm
    :return: name -> its values
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
    """Train a trial's agents one after the other, so that what is not worth going on costs no further seeds.

    What a trial is pruned by is the median of the seeds so far, at the steps that they have trained in all.

    :param plan: what to do
    :param trial: whose values
    :return: median score over seeds at the end
    :raises optuna.TrialPruned: if it is not worth going on, or an agent's numbers ceased to be finite
    """
    config = plan.entry(trial)
    scores: list[float] = []
    for seed in range(plan.n_seeds):
        with _agent(plan, config, seed) as agent:
            for steps in plan.stages(seed):
                with _pruned_by_errors("training"):
                    _train_to(agent.model, steps)
                with _pruned_by_errors("evaluation"):
                    score = _score(measure(agent, plan.test), plan.metric)
                trained = seed * plan.n_timesteps + steps
                trial.report(float(np.median([*scores, score])), trained)
                is_last = trained == plan.n_seeds * plan.n_timesteps
                if not np.isfinite(score) or (not is_last and trial.should_prune()):
                    raise optuna.TrialPruned(f"after {trained} steps")
        scores.append(score)
    trial.set_user_attr("scores", scores)
    return float(np.median(scores))


@contextmanager
def _agent(plan: TuningPlan, config: Entry, seed: int) -> Iterator[TrainedAgent]:
    """A new agent, whose environment and files are gone in the end."""
    with tempfile.TemporaryDirectory() as folder:
        run = TrainingRun(plan.algo, plan.env_id, config, Path(folder), task=plan.task, seed=seed, verbose=0)
        agent = TrainedAgent(plan.algo, plan.env_id, f"seed {seed}", build_model(run), task=tuple(plan.task))
        try:
            yield agent
        finally:
            close(agent.model)


def _train_to(model: OnPolicyAlgorithm, steps: int) -> None:
    """Train until so many environment steps are done in all; nothing where whole iterations have gone beyond."""
    left = steps - model.num_timesteps
    if left > 0:
        model.learn(left, reset_num_timesteps=model.num_timesteps == 0)


@contextmanager
def _pruned_by_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, FloatingPointError) as error:  # what torch's distributions and environments raise for NaN
        raise optuna.TrialPruned(f"{doing} failed: {error}") from error


def _score(outcome: Outcome, metric: str) -> float:
    by_success = metric == "success" and outcome.knows_success
    return float((outcome.success if by_success else outcome.returns).mean())


def best_entry(plan: TuningPlan, trial: optuna.trial.FrozenTrial) -> Entry:
    """Turn a finished trial into an entry of a configuration file.

    :param plan: of its study
    :param trial: the trial
    :return: plain values; the budget is the configuration's, not the trial's short one
    """
    return plan.entry(optuna.trial.FixedTrial(trial.params))
