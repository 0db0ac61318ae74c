"""Evaluation of a trained model's adaptation to given tasks, round by round."""

from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.adaptation.learners import make_learner
from sb3_maesn.common.adaptation.rounds import AdaptationResult, adapt_to_tasks
from sb3_maesn.common.adaptation.rule import AdaptationRule
from sb3_maesn.common.env_util import borrowed_env
from sb3_maesn.common.global_seed import generator_of
from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.rl2 import RL2

__all__ = ["AdaptableModel", "AdaptationResult", "evaluate_adaptation"]

AdaptableModel: TypeAlias = MetaOnPolicyAlgorithm | RL2


def check_adaptable(model: object) -> None:
    """Check that a model adapts.

    :param model: model to check
    :raises ValueError: if it is of another kind
    """
    if not isinstance(model, AdaptableModel):
        raise ValueError(f"expected a model that adapts (MAESN, MAML, LatentSpace or RL2), got {type(model).__name__}")


def evaluate_adaptation(
    model: AdaptableModel,
    env: GymEnv | str,
    tasks: Sequence[Any],
    n_rounds: int = 3,
    n_episodes: int = 50,
    rule: str | AdaptationRule | None = None,
    seed: int = 0,
    n_eval_episodes: int = 0,
    eval_rounds: Collection[int] | None = None,
) -> AdaptationResult:
    """Adapt to all tasks at once, each with its own latent distribution or theta, and report every round.

    Round 0 is the unadapted policy. A task is solved after round r if at least half of its episodes in round r succeed.
    RL2 adapts through its hidden state: ``n_episodes`` trials run on each task, and round r is their episode r.

    :param model: trained model, which does not change
    :param env: environment id such as ``"WheeledGoalSparse-v0"``, Gymnasium environment with tasks, or VecEnv of such
        environments
    :param tasks: tasks, any values that the environment's ``set_task`` accepts (n_tasks)
    :param n_rounds: number of updates for each task
    :param n_episodes: number of episodes of each task in each round
    :param rule: adaptation rule, or its name in ``sb3_maesn.common.adaptation.rules.RULES``; None for the default. With
        ``policy_gradient``, a model whose meta-training adapts theta makes its own inner update; that is the default
        for a model without a latent
    :param seed: seed of all randomness in this function
    :param n_eval_episodes: number of additional episodes of each task in each round, of the policy that ``adapt`` would
        return; adaptation does not use them
    :param eval_rounds: rounds with additional episodes, None for all
    :return: results of all episodes, arrays with leading dimensions (n_rounds + 1, n_tasks)
    :raises ValueError: if the rule is unknown, a number is out of range, the spaces differ from the model's, or the
        environment refuses a task
    """
    check_adaptable(model)
    if tasks is None or len(tasks) == 0:
        raise ValueError("expected at least one task, got none")
    if isinstance(model, RL2):
        if rule is not None or n_eval_episodes > 0 or eval_rounds is not None:
            raise ValueError(
                "RL2 adapts by its memory: expected no rule, no eval_rounds and n_eval_episodes=0, got"
                f" rule={rule!r}, eval_rounds={eval_rounds!r} and n_eval_episodes={n_eval_episodes}"
            )
        return model.evaluate_trials(env, tasks, n_rounds + 1, n_episodes, seed=seed)
    agent, rng = model.agent(), generator_of(seed)
    learner = make_learner(rule, agent)
    with borrowed_env(env, len(tasks) * (n_episodes + n_eval_episodes), tasks) as venv:
        model.check_spaces(venv)
        result, _ = adapt_to_tasks(agent, venv, tasks, learner, n_rounds, n_episodes, rng, n_eval_episodes, eval_rounds)
    return result
