"""Trials of several episodes on one task, and what a policy with a memory sees of them."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.task_family import SPLITS


class Trial(NamedTuple):
    """What ``info["trial"]`` says of a trial that ended, in order of its K episodes.

    :param returns: undiscounted returns (K,)
    :param lengths: steps (K,)
    :param success: 1 or 0, NaN where the environment does not say (K,)
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray


class TrialVecEnv(MultiTaskVecEnv):
    """A MultiTaskVecEnv whose episodes are trials: several episodes of one task, one after another (Duan et al. 2016,
    arXiv:1611.02779, section 2.2).

    ``dones`` are the trials' ends, so that whatever SB3 does where an episode ends, it does where a trial ends: a
    recurrent policy keeps its state across the episodes of a trial and begins the next one afresh, and returns are
    summed over the trial. Observations are followed by the previous action, reward and done (all 0 at a trial's start),
    discrete ones as one-hot vectors. Where an episode ends within a trial, the observation is the next one's first.

    At a trial's end the info has ``trial``, a :class:`Trial`; ``is_success`` is that of its last episode, and
    ``episode``, where a monitor says it, of the whole trial. A trial is as long as it is by design, so its end is never
    a time limit's.

    :param env: whose members' episodes are single
    :param n_episodes: K, episodes of a trial
    :param split: set from which every trial's task is drawn; None leaves the tasks to ``set_tasks``
    :raises ValueError: for a trial without episodes, an environment that has trials already, or Dict observations
    """

    def __init__(self, env: MultiTaskVecEnv, n_episodes: int, split: str | None = "train"):
        if n_episodes < 1:
            raise ValueError(f"expected trials of at least 1 episode, got n_episodes={n_episodes}")
        if has_trials(env):
            raise ValueError("expected an environment whose episodes are single, got one that has trials already")
        if isinstance(env.observation_space, spaces.Dict):
            raise ValueError(
                "expected an observation space that is no Dict: wrap the environment in"
                f" gymnasium.wrappers.FlattenObservation; got {env.observation_space}"
            )
        train, validation, test = (env._task_sets[name] for name in SPLITS)
        super().__init__(env, n_episodes * env.horizon, train, validation, test, task_adapter=env.task_adapter)
        self.single = env
        self.n_episodes = n_episodes
        self._trial_tasks = None if split is None else self.task_set(split)
        self._rng = np.random.default_rng()
        size = get_flattened_obs_dim(env.observation_space) + transition_size(env.action_space)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        shape = (self.num_envs, n_episodes)
        self._returns, self._lengths, self._success = np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
        self._episode = np.zeros(self.num_envs, dtype=np.int64)  # of the trial, from 0

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed the draws of tasks, and the members with their next reset.

        :param seed: of everything
        :return: the members' seeds
        """
        # another stream than the first member's, whose generator is seeded with the number itself
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        return list(super().seed(seed))

    def reset(self) -> np.ndarray:
        """Start new trials in all members.

        :return: observations (n, O + A + 2)
        """
        everyone = np.arange(self.num_envs)
        self._draw_tasks(everyone)
        observations = super().reset()
        self._forget(everyone)
        if self.n_episodes == 1:
            self._draw_tasks(everyone)
        assert isinstance(observations, np.ndarray)
        return self._augment(observations, np.zeros((self.num_envs, transition_size(self.action_space)), np.float32))

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: one for each member
        """
        self._actions = actions
        super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Observations (n, O + A + 2), rewards, ends of trials and infos of all members.

        :raises ValueError: for a reward that is not finite, which the policy would have to remember
        """
        observations, rewards, ended, infos = super().step_wait()
        assert isinstance(observations, np.ndarray)
        _check_finite(rewards)
        infos = list(infos)
        over = self._note_step(rewards, ended, infos)
        last = np.stack([rewards, ended], axis=1).astype(np.float32)
        transitions = np.concatenate([encode(self._actions, self.action_space), last], axis=1)
        for member in np.flatnonzero(over).tolist():
            infos[member] = self._end_trial(member, infos[member], transitions[member])
        transitions[over] = 0.0
        self._forget(np.flatnonzero(over))
        # a task counts from the next reset: it is drawn where a trial's last episode begins
        self._draw_tasks(np.flatnonzero(ended & (self._episode == self.n_episodes - 1)))
        return self._augment(observations, transitions), rewards, over, infos

    def _draw_tasks(self, members: np.ndarray) -> None:
        if self._trial_tasks is not None and members.size:
            chosen = self._rng.integers(len(self._trial_tasks), size=members.size)
            self.set_tasks([self._trial_tasks[i] for i in chosen], members.tolist())

    def _forget(self, members: np.ndarray) -> None:
        self._returns[members] = self._lengths[members] = 0.0
        self._success[members] = np.nan
        self._episode[members] = 0

    def _note_step(self, rewards: np.ndarray, ended: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """Count the step and the episodes that it ended; which trials it ended (n,)."""
        everyone = np.arange(self.num_envs)
        self._returns[everyone, self._episode] += rewards
        self._lengths[everyone, self._episode] += 1
        for member in np.flatnonzero(ended):
            self._success[member, self._episode[member]] = infos[member].get("is_success", np.nan)
            if self._episode[member] < self.n_episodes - 1:  # to SB3 an episode is over with its trial only
                infos[member] = {key: value for key, value in infos[member].items() if key != "episode"}
        over: np.ndarray = ended & (self._episode == self.n_episodes - 1)
        self._episode += ended & ~over
        return over

    def _end_trial(self, member: int, info: dict[str, Any], transition: np.ndarray) -> dict[str, Any]:
        rows = (self._returns[member], self._lengths[member], self._success[member])
        trial = Trial(*(row.copy() for row in rows))
        described = {**info, "trial": trial, "TimeLimit.truncated": False}
        if "episode" in info:
            described["episode"] = {**info["episode"], "r": float(trial.returns.sum()), "l": int(trial.lengths.sum())}
        if "terminal_observation" in info:
            terminal = np.asarray(info["terminal_observation"])
            described["terminal_observation"] = self._augment(terminal[None], transition[None])[0]
        return described

    def _augment(self, observations: np.ndarray, transitions: np.ndarray) -> np.ndarray:
        return np.concatenate([encode(observations, self.single.observation_space), transitions], axis=1)


def encode(values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Observations or actions as SB3's networks see them, discrete ones as one-hot vectors.

    :param values: (n, ...)
    :param space: which they are of
    :return: float32 (n, size)
    """
    processed = preprocess_obs(th.as_tensor(values), space)
    assert isinstance(processed, th.Tensor)
    return processed.flatten(1).float().numpy()


def transition_size(action_space: spaces.Space) -> int:
    """Numbers that say what happened last: the action, the reward and whether an episode ended.

    :param action_space: of the environment
    """
    return get_flattened_obs_dim(action_space) + 2


def single_episodes(env: MultiTaskVecEnv) -> MultiTaskVecEnv:
    """The environment in which an episode is an episode.

    :param env: perhaps a TrialVecEnv
    """
    return env.single if isinstance(env, TrialVecEnv) else env


def has_trials(env: VecEnv) -> bool:
    """Whether there is a TrialVecEnv among the wrappers of a VecEnv.

    :param env: perhaps wrapped
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, TrialVecEnv):
            return True
        env = env.venv
    return False


def _check_finite(rewards: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(rewards))
    if wrong.size:
        raise ValueError(f"expected finite rewards, got {rewards[wrong[0]]} from member {wrong[0]}")
