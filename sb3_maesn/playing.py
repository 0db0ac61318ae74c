"""Adaptation of an agent to one task, and episodes that it then plays in a single environment."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.config import ConfigError
from sb3_maesn.results import format_table, latent_rows
from sb3_maesn.tasks import find_task
from sb3_maesn.trained import TrainedAgent


@dataclass(frozen=True)
class Adaptation:
    """Task and settings of an adaptation.

    :param task: words of ``--task``, see :func:`sb3_maesn.tasks.parse_task`
    :param split: set of tasks that an index without the name of a set refers to
    :param n_rounds: number of adaptation rounds, 0 for no adaptation
    :param n_episodes: episodes per round
    :param rule: adaptation rule, None for the default
    :param seed: seed
    """

    task: Sequence[str] = ("0",)
    split: str = "test"
    n_rounds: int = 3
    n_episodes: int = 20
    rule: str | None = None
    seed: int = 0

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Adaptation":
        """Make an adaptation from the flags of the scripts that play one task.

        :param args: parsed arguments with ``task``, ``rounds``, ``episodes``, ``rule`` and ``seed``
        :return: task and settings of the adaptation
        """
        return cls(args.task, n_rounds=args.rounds, n_episodes=args.episodes, rule=args.rule, seed=args.seed)


@dataclass(frozen=True)
class Episode:
    """Outcome of an episode.

    :param reward: undiscounted return
    :param length: number of steps
    :param success: whether the episode succeeded, None if the environment does not report it
    """

    reward: float
    length: int
    success: bool | None


def prepare(agent: TrainedAgent, adaptation: Adaptation) -> tuple[OnPolicyAlgorithm, Any]:
    """Adapt an agent to a task; an agent that does not adapt gets the task it was trained on.

    :param agent: agent
    :param adaptation: task and settings of the adaptation
    :return: model to play with, and the task, None if the environment has no tasks
    :raises ValueError: if there is no such task or rule, or the spaces of the environment are not those of the model
    """
    words = list(adaptation.task) if agent.adapts else list(agent.task)
    split = adaptation.split if agent.adapts else "train"
    task = find_task(words, agent.test_env_id, split) if words else None
    if not agent.adapts or adaptation.n_rounds == 0:
        return agent.model, task
    model: Any = agent.model
    rule = {} if adaptation.rule is None else {"rule": adaptation.rule}
    rounds = {"n_rounds": adaptation.n_rounds, "n_episodes": adaptation.n_episodes, "seed": adaptation.seed}
    return model.adapt(agent.test_env_id, task=task, **rounds, **rule), task


def describe_adaptation(model: OnPolicyAlgorithm) -> str:
    """Format the rounds of an adaptation as a table of plain text.

    :param model: model that :func:`prepare` returned
    :return: table, empty if the model was not adapted or keeps no record of its adaptation
    """
    history = getattr(model, "adaptation", None)
    return "" if history is None else format_table(latent_rows(history))


def make_stage(env_id: str, task: Any, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make a single environment with a given task.

    :param env_id: environment id
    :param task: task, as ``set_task`` takes it; None if the environment has no tasks
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :return: environment
    :raises ConfigError: if the environment cannot be rendered
    """
    env = gym.make(env_id, render_mode=render_mode)
    try:
        if task is not None:
            env.get_wrapper_attr("set_task")(task)
        if render_mode is not None:
            env.reset()  # opens the window
            env.render()
    except RuntimeError as error:
        env.close()
        hint = "; --no-render opens no window" if render_mode == "human" else ""
        raise ConfigError(f"cannot show {env_id}: {error}{hint}") from error
    except BaseException:
        env.close()
        raise
    return env


def steps(
    model: OnPolicyAlgorithm, env: gym.Env[Any, Any], deterministic: bool = True, seed: int = 0
) -> Iterator[Episode | None]:
    """Play without end, yielding after every step.

    :param model: model that chooses the actions; its recurrent state is carried through an episode
    :param env: environment
    :param deterministic: whether to take the most likely actions instead of sampling them
    :param seed: seed of the environment; the model draws from torch's global generator
    :return: iterator over steps: the episode that the step ended, or None
    """
    observation, _ = env.reset(seed=seed)
    state, start, reward, length = None, True, 0.0, 0
    while True:
        action, state = model.predict(observation, state, np.array([start]), deterministic)
        observation, step_reward, terminated, truncated, info = env.step(action)
        start, reward, length = terminated or truncated, reward + float(step_reward), length + 1
        yield Episode(reward, length, info.get("is_success")) if start else None
        if start:
            observation, _ = env.reset()
            reward, length = 0.0, 0


def play(
    model: OnPolicyAlgorithm,
    env: gym.Env[Any, Any],
    n_timesteps: int | None = None,
    n_episodes: int | None = None,
    deterministic: bool = True,
    seed: int = 0,
    watch: Callable[[], Any] = lambda: None,
) -> list[Episode]:
    """Play until a number of steps or of episodes is reached; at least one of them must be given.

    :param model: model that chooses the actions
    :param env: environment
    :param n_timesteps: number of steps, None for no limit
    :param n_episodes: number of episodes, None for no limit
    :param deterministic: whether to take the most likely actions instead of sampling them
    :param seed: seed of the environment and of the model's random draws
    :param watch: function to call after every step
    :return: completed episodes
    """
    episodes: list[Episode] = []
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        for ended in islice(steps(model, env, deterministic, seed), n_timesteps):
            watch()
            if ended is not None:
                episodes.append(ended)
            if len(episodes) == n_episodes:
                break
    return episodes


def summarise(episodes: Sequence[Episode]) -> list[str]:
    """Summarise episodes in the wording of rl-zoo.

    :param episodes: completed episodes
    :return: lines to print
    """
    if not episodes:
        return ["No episode came to an end: raise -n"]
    rewards, lengths = ([getattr(episode, key) for episode in episodes] for key in ("reward", "length"))
    successes = [episode.success for episode in episodes if episode.success is not None]
    return [
        *([f"Success rate: {100 * np.mean(successes):.2f}%"] if successes else []),
        f"{len(episodes)} Episodes",
        f"Mean reward: {np.mean(rewards):.2f} +/- {np.std(rewards):.2f}",
        f"Mean episode length: {np.mean(lengths):.2f} +/- {np.std(lengths):.2f}",
    ]
