"""Adaptation of an agent to one task, and episodes that it then plays in a single environment."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim

from sb3_maesn.config import ConfigError
from sb3_maesn.envs.trials import encode, transition_size
from sb3_maesn.results import format_table, latent_rows
from sb3_maesn.rl2 import RL2
from sb3_maesn.tasks import brings_tasks, find_task
from sb3_maesn.trained import TrainedAgent

DEFAULT_ROUNDS, DEFAULT_EPISODES = 3, 20


@dataclass(frozen=True)
class Adaptation:
    """Task and settings of an adaptation; :meth:`complete` chooses those that are left open.

    :param task: words of ``--task``, see :func:`sb3_maesn.tasks.parse_task`. If empty, the first task of the set, or
        the training task of an agent that learned one task
    :param split: set of tasks in which an index without the name of a set counts; for an agent that learned one task,
        it counts in the training set
    :param n_rounds: number of adaptation rounds, 0 for no adaptation; for RL2, number of episodes of the trial that it
        adapts in. If None, 3, or for RL2 one less than the episodes of a trial in training
    :param n_episodes: episodes per round, None for 20; RL2 adapts in every episode, so its rounds have 1
    :param rule: adaptation rule, None for the default
    :param seed: seed
    :raises ConfigError: if a number is out of range
    """

    task: Sequence[str] = ()
    split: str = "test"
    n_rounds: int | None = None
    n_episodes: int | None = None
    rule: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("rounds", self.n_rounds, 0),
            ("episodes", self.n_episodes, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise ConfigError(f"--{flag} must be at least {least}, got {value}")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Adaptation":
        """Make an adaptation from the flags of the scripts that play one task.

        :param args: parsed arguments with ``task``, ``rounds``, ``episodes``, ``rule`` and ``seed``
        :return: task and settings of the adaptation
        :raises ConfigError: if a number is out of range
        """
        return cls(args.task, n_rounds=args.rounds, n_episodes=args.episodes, rule=args.rule, seed=args.seed)

    def complete(self, agent: TrainedAgent) -> "Adaptation":
        """Choose the settings that are left open, as suits an agent.

        :param agent: agent
        :return: complete settings; ``task`` is empty only if the environment has no tasks, or draws them itself because
            the training task is unknown
        :raises ValueError: if a setting makes no sense for the agent, or the agent learned another task
        """
        if not agent.adapts:
            _refuse(
                f"{agent.algo} does not adapt",
                {"rounds": self.n_rounds or None, "episodes": self.n_episodes, "rule": self.rule},
            )
            return replace(self, task=_training_task(agent, self.task), split="train", n_rounds=0)
        task = self.task or ("0",)
        if isinstance(agent.model, RL2):
            n_episodes = None if self.n_episodes == 1 else self.n_episodes
            _refuse(
                "RL2 adapts by its memory, in a trial of as many episodes as --rounds says",
                {"episodes": n_episodes, "rule": self.rule},
            )
            n_rounds = agent.model.n_episodes - 1 if self.n_rounds is None else self.n_rounds
            return replace(self, task=task, n_rounds=n_rounds, n_episodes=1)
        n_rounds = DEFAULT_ROUNDS if self.n_rounds is None else self.n_rounds
        return replace(self, task=task, n_rounds=n_rounds, n_episodes=self.n_episodes or DEFAULT_EPISODES)

    def describe(self) -> str:
        """Describe the amount of adaptation for a title, such as "3 rounds of 20 episodes"; it must be complete."""
        assert self.n_rounds is not None
        assert self.n_episodes is not None
        if self.n_episodes == 1:
            return _count(self.n_rounds, "episode")
        return f"{_count(self.n_rounds, 'round')} of {self.n_episodes} episodes"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _refuse(reason: str, flags: Mapping[str, Any]) -> None:
    """Raise an error if any of these flags has a value."""
    given = [f"--{name} {value}" for name, value in flags.items() if value is not None]
    if given:
        raise ConfigError(f"{reason}: leave out {' and '.join(given)}")


def _training_task(agent: TrainedAgent, words: Sequence[str]) -> Sequence[str]:
    """Choose the task of an agent that learned one task.

    :param agent: agent that does not adapt
    :param words: words of ``--task``, empty if the user chose none
    :return: words of the training task, or of the user's if the run does not tell the training task
    :raises ValueError: if the environment has no tasks or no such task, or the agent learned another one
    """
    if not words:
        return agent.task
    env_id = agent.test_env_id
    if not brings_tasks(env_id):
        raise ConfigError(f"{env_id} has no tasks to choose from: leave --task out")
    if not agent.task:
        return words
    learned, chosen = (find_task(each, env_id, "train") for each in (agent.task, words))
    if not np.array_equal(learned, chosen):
        raise ConfigError(
            f"{agent.name} was trained with --task {' '.join(agent.task)} ({learned}) and plays no other task, got"
            f" --task {' '.join(words)} ({chosen})"
        )
    return agent.task


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
    """Find the task and adapt an agent to it; an agent that does not adapt gets the task it was trained on.

    :param agent: agent
    :param adaptation: task and settings of the adaptation
    :return: model to play with, and the task, None if the environment has no tasks
    :raises ValueError: if there is no such task or rule, a setting makes no sense for the agent, or the spaces of the
        environment are not those of the model
    """
    adaptation = adaptation.complete(agent)
    task = task_to_play(agent, adaptation)
    return adapt(agent, task, adaptation), task


def task_to_play(agent: TrainedAgent, adaptation: Adaptation) -> Any:
    """Find the task to play.

    :param agent: agent
    :param adaptation: settings that :meth:`Adaptation.complete` returned
    :return: task, as ``set_task`` takes it; None if there is none to choose
    :raises ValueError: if there is no such task
    """
    return find_task(adaptation.task, agent.test_env_id, adaptation.split) if adaptation.task else None


def adapt(agent: TrainedAgent, task: Any, adaptation: Adaptation) -> OnPolicyAlgorithm:
    """Adapt an agent to a task.

    :param agent: agent
    :param task: task that :func:`task_to_play` returned
    :param adaptation: settings that :meth:`Adaptation.complete` returned
    :return: adapted model, or the agent's own model without adaptation rounds
    :raises ValueError: if there is no such rule, or the spaces of the environment are not those of the model
    """
    model: Any = agent.model
    if not adaptation.n_rounds:
        return agent.model
    if isinstance(model, RL2):
        return model.adapt(agent.test_env_id, task=task, n_episodes=adaptation.n_rounds, seed=adaptation.seed)
    rule = {} if adaptation.rule is None else {"rule": adaptation.rule}
    rounds = {"n_rounds": adaptation.n_rounds, "n_episodes": adaptation.n_episodes, "seed": adaptation.seed}
    adapted: OnPolicyAlgorithm = model.adapt(agent.test_env_id, task=task, **rounds, **rule)
    return adapted


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
    # an environment that cannot be rendered need not have the argument
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    env = gym.make(env_id, **rendering)
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


class TrialObservation(gym.Wrapper[np.ndarray, Any, Any, Any]):
    """Wrapper that adds the previous action, reward and done to observations, as a TrialVecEnv does.

    Every episode begins like a trial. A policy that was adapted puts its memory of the last trial in place of the
    previous action, reward and done of the first observation, so every episode is played as the next one of that trial.

    :param env: environment whose observations are no Dict
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._n_added = transition_size(env.action_space)
        size = get_flattened_obs_dim(env.observation_space) + self._n_added
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        """Start an episode; nothing precedes its first observation (O + A + 2,)."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with(observation, np.zeros(self._n_added, np.float32)), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step; the observation contains its action, reward and done (O + A + 2,)."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        encoded = encode(np.asarray(action)[None], self.env.action_space)[0]
        last = np.array([*encoded, float(reward), terminated or truncated], np.float32)
        return self._with(observation, last), float(reward), terminated, truncated, info

    def _with(self, observation: Any, transition: np.ndarray) -> np.ndarray:
        encoded = encode(np.asarray(observation)[None], self.env.observation_space)[0]
        return np.concatenate([encoded, transition])


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
    if isinstance(model, RL2):
        env = TrialObservation(env)
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
    :raises ValueError: if both numbers are None, or one is less than 1
    """
    if n_timesteps is None and n_episodes is None:
        raise ValueError("expected n_timesteps, n_episodes or both, got neither: playing would never end")
    for name, value in {"n_timesteps": n_timesteps, "n_episodes": n_episodes}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
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
