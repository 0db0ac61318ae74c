"""An agent at one task of a family: adapted to it first, then played episode by episode."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_maesn.cli import find_task
from sb3_maesn.config import ConfigError
from sb3_maesn.results import format_table, latent_rows
from sb3_maesn.trained import TrainedAgent


@dataclass(frozen=True)
class Adaptation:
    """How to adapt before playing.

    :param task: the task, in the words of ``--task``
    :param split: set of tasks that an index counts in
    :param n_rounds: adaptation rounds
    :param n_episodes: episodes of a round
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
        """Read the flags that all scripts have in common.

        :param args: parsed arguments
        """
        return cls(args.task, n_rounds=args.rounds, n_episodes=args.episodes, rule=args.rule, seed=args.seed)


@dataclass(frozen=True)
class Episode:
    """What an episode came to.

    :param reward: sum of its rewards
    :param length: its steps
    :param success: whether it succeeded, None where the environment does not say
    """

    reward: float
    length: int
    success: bool | None


def prepare(agent: TrainedAgent, adaptation: Adaptation) -> tuple[OnPolicyAlgorithm, Any]:
    """Find the task and adapt the agent to it; one that does not adapt plays the task it was trained on.

    :param agent: from ``load_agent``
    :param adaptation: how to adapt
    :return: the model to play with, and the task, None where the environment has none
    :raises ValueError: if there is no such task or rule, or the environment is not the model's
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
    """Lay the rounds of an adaptation out for a terminal.

    :param model: from ``prepare``
    :return: a table, empty where there was no adaptation of a latent
    """
    history = getattr(model, "adaptation", None)
    return "" if history is None else format_table(latent_rows(history))


def make_stage(env_id: str, task: Any, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make the single environment to play in.

    :param env_id: environment id
    :param task: whatever ``set_task`` takes, None where the environment has no tasks
    :param render_mode: None, ``"rgb_array"`` or ``"human"``
    :return: the environment
    :raises ConfigError: if it cannot be shown
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
    """Play on and on.

    :param model: who plays; its state is carried through an episode
    :param env: where
    :param deterministic: take the most likely actions
    :param seed: of the environment; what the model draws comes from torch's generator
    :return: after every step the episode that it ended, or None
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
    """Play for a number of steps or of episodes.

    :param model: who plays
    :param env: where
    :param n_timesteps: steps, None for any number
    :param n_episodes: episodes, None for any number
    :param deterministic: take the most likely actions
    :param seed: of the environment and of what the model draws
    :param watch: is called after every step
    :return: the episodes that came to an end
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
    """Say what episodes came to, in rl-zoo's words.

    :param episodes: from ``play``
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
