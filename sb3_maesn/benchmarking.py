"""Evaluation of trained agents on test tasks, and the rows of rl-zoo's benchmark table."""

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_maesn.common.adaptation.rounds import SOLVED_SHARE
from sb3_maesn.config import ConfigError
from sb3_maesn.evaluation import AdaptationResult, evaluate_adaptation
from sb3_maesn.playing import Adaptation, make_stage, play, prepare
from sb3_maesn.tasks import tasks_of
from sb3_maesn.trained import TrainedAgent


@dataclass(frozen=True)
class EvaluationPlan:
    """Settings of the evaluation of agents.

    The number of tasks and rounds, the rule, the set of tasks and the environment apply to agents that adapt.

    :param n_tasks: number of tasks, the first of the set
    :param n_rounds: adaptation rounds
    :param n_episodes: episodes per round and task; all episodes of an agent that does not adapt
    :param rule: adaptation rule, None for the default
    :param split: set of tasks: ``"train"``, ``"validation"`` or ``"test"``
    :param seed: seed
    :param env_id: environment id, empty for the agent's own ``test_env_id``
    """

    n_tasks: int = 20
    n_rounds: int = 3
    n_episodes: int = 20
    rule: str | None = None
    split: str = "test"
    seed: int = 0
    env_id: str = ""

    def __post_init__(self) -> None:
        for name, least in (("n_tasks", 1), ("n_rounds", 0), ("n_episodes", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "EvaluationPlan":
        """Make a plan from the flags of the scripts that evaluate agents on test tasks.

        :param args: parsed arguments with ``n_tasks``, ``rounds``, ``episodes``, ``rule``, ``split`` and ``seed``
        :return: plan
        """
        return cls(args.n_tasks, args.rounds, args.episodes, args.rule, args.split, args.seed)

    def describe(self) -> str:
        """Describe in a paragraph how the agents were evaluated."""
        return (
            f"Agents that adapt: mean over {self.n_tasks} {self.split} tasks after {self.n_rounds} rounds of"
            f" {self.n_episodes} episodes, rule {self.rule or 'by default'}; sparse reward where the family has one."
            f" RL2: episode {self.n_rounds + 1} of {self.n_episodes} trials of each task; reward of training."
            f" Others: {self.n_episodes} episodes of the task they were trained on, most likely actions. A task is"
            " solved if at least half of its episodes succeed."
        )


@dataclass(frozen=True)
class Outcome:
    """Episodes of an evaluation.

    :param returns: undiscounted returns (n_tasks, n_episodes)
    :param lengths: numbers of steps (n_tasks, n_episodes)
    :param success: 1 for success, 0 for failure, NaN if the environment does not report it (n_tasks, n_episodes)
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray

    @property
    def knows_success(self) -> bool:
        """Whether the environment reports success."""
        return not bool(np.isnan(self.success).any())


def measure_adaptation(agent: TrainedAgent, plan: EvaluationPlan) -> AdaptationResult:
    """Adapt an agent to the tasks of a plan.

    :param agent: agent that adapts
    :param plan: settings of the evaluation
    :return: episodes of every round
    """
    model: Any = agent.model
    env_id = plan.env_id or agent.test_env_id
    tasks = tasks_of(env_id, plan.split, plan.n_tasks)
    return evaluate_adaptation(model, env_id, tasks, plan.n_rounds, plan.n_episodes, plan.rule, plan.seed)


def benchmark_row(agent: TrainedAgent, plan: EvaluationPlan) -> dict[str, Any]:
    """Evaluate an agent as :func:`measure` does and make its row of the benchmark table.

    :param agent: agent
    :param plan: settings of the evaluation
    :return: rl-zoo's columns, then the share of successful episodes and of solved tasks, None if the environment does
        not report success
    """
    outcome = measure(agent, plan)
    solved = outcome.success.mean(axis=1) >= SOLVED_SHARE  # (n_tasks,)
    return {
        "algo": agent.algo,
        "env_id": agent.env_id,
        "mean_reward": round(float(outcome.returns.mean()), 2),
        "std_reward": round(float(outcome.returns.std()), 2),
        "n_timesteps": in_millions(agent.model.num_timesteps),
        "eval_timesteps": int(outcome.lengths.sum()),
        "eval_episodes": outcome.returns.size,
        "success": round(float(outcome.success.mean()), 3) if outcome.knows_success else None,
        "solved": round(float(solved.mean()), 3) if outcome.knows_success else None,
    }


def measure(agent: TrainedAgent, plan: EvaluationPlan) -> Outcome:
    """Evaluate an agent in its last adaptation round, or at the task it was trained on if it does not adapt.

    :param agent: agent
    :param plan: settings of the evaluation
    :return: episodes of the evaluation
    """
    if agent.adapts:
        result = measure_adaptation(agent, plan)
        return Outcome(result.returns[-1], result.lengths[-1], result.success[-1])
    model, task = prepare(agent, Adaptation(seed=plan.seed))
    env = make_stage(agent.test_env_id, task)
    try:
        episodes = play(model, env, n_episodes=plan.n_episodes, seed=plan.seed)
    finally:
        env.close()
    success = [np.nan if episode.success is None else float(episode.success) for episode in episodes]
    rewards, lengths = ([float(getattr(episode, key)) for episode in episodes] for key in ("reward", "length"))
    return Outcome(np.array([rewards]), np.array([lengths]), np.array([success]))


def in_millions(n_timesteps: int) -> str:
    """Abbreviate a number of steps as rl-zoo does.

    :param n_timesteps: number of steps
    :return: text such as ``500k`` or ``48M``
    """
    return f"{n_timesteps // 1000}k" if n_timesteps < 1_000_000 else f"{n_timesteps // 1_000_000}M"
