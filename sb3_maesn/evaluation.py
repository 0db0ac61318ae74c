"""Adaptation curves: how well a trained model adapts to tasks it has never seen."""

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
    """Adapt to all tasks at once, every task with its own latent distribution or theta, and report every round.

    Round 0 is that of the unadapted policy. A task is solved after round r if at least half of round r's episodes
    succeed. RL2 adapts by its memory: there, ``n_episodes`` trials run side by side, and round r is their episode r.

    :param model: a trained model; it is not changed
    :param env: an id such as ``"WheeledGoalSparse-v0"``, a Gymnasium environment with tasks, or a VecEnv of such
    :param tasks: whatever ``set_task`` takes, n_tasks of them
    :param n_rounds: updates for each task
    :param n_episodes: episodes of each round and task
    :param rule: a name of ``sb3_maesn.common.adaptation.rules.RULES``, a rule, or None for the default; a model whose
        meta-training adapts theta does so by ``policy_gradient``, its default where it has no latent
    :param seed: of everything random here
    :param n_eval_episodes: fresh episodes a task, in each round, of the policy that ``adapt`` would return
    :param eval_rounds: rounds with such episodes; all of them where None
    :return: arrays with leading dimensions (n_rounds + 1, n_tasks)
    :raises ValueError: for an unknown rule, numbers out of range, spaces that differ from the model's, or tasks that
        the environment refuses
    """
    if len(tasks) == 0:
        raise ValueError("expected at least one task, got none")
    if isinstance(model, RL2):
        if rule is not None or n_eval_episodes > 0:
            raise ValueError(
                "RL2 adapts by its memory: expected no rule and n_eval_episodes=0, got"
                f" rule={rule!r} and n_eval_episodes={n_eval_episodes}"
            )
        return model.evaluate_trials(env, tasks, n_rounds + 1, n_episodes, seed=seed)
    agent, rng = model.agent(), generator_of(seed)
    learner = make_learner(rule, agent)
    with borrowed_env(env, len(tasks) * (n_episodes + n_eval_episodes), tasks) as venv:
        model.check_spaces(venv)
        result, _ = adapt_to_tasks(agent, venv, tasks, learner, n_rounds, n_episodes, rng, n_eval_episodes, eval_rounds)
    return result
