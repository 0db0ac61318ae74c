"""Trials of several episodes on one task, for policies with a memory."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.task_family import SPLITS
from sb3_maesn.envs.wrappers import normalizers


class Trial(NamedTuple):
    """The episodes of a trial that ended, in order, as reported in ``info["trial"]``.

    :param returns: undiscounted returns, before a VecNormalize (K,)
    :param lengths: numbers of steps (K,)
    :param success: 1 or 0, NaN where the environment does not report success (K,)
    :param diverged: whether the simulation diverged, bool (K,); such an episode's return includes the penalty that
        :class:`TrialVecEnv` describes, and its length counts the steps up to the divergence
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    diverged: np.ndarray


class TrialVecEnv(MultiTaskVecEnv):
    """A MultiTaskVecEnv whose episodes are trials, each a sequence of K episodes of one task.

    Trials are those of Duan et al. 2016 (arXiv:1611.02779, section 2.2).

    - **Ends.** ``dones`` mark the ends of trials, so that SB3 treats a trial as one episode: a recurrent policy keeps
      its state across the episodes of a trial and starts the next trial afresh, and returns are summed over the trial.
      A trial's length is part of the problem, so its end never counts as a time limit (``TimeLimit.truncated`` is
      False).
    - **Observations.** float32 vectors of the observation, the previous action, the previous reward and whether an
      episode ended with it (O + A + 2 numbers); the last A + 2 are 0 at a trial's start. Discrete observations and
      actions are one-hot vectors. Where an episode ends within a trial, the observation is the first one of the next
      episode.
    - **Infos.** At a trial's end the info has ``trial``, a :class:`Trial`; ``is_success`` of its last episode;
      ``terminal_observation`` in the format above; and, if there is a monitor below, ``episode`` with return and length
      of the whole trial. Infos at the ends of the other episodes have no ``episode``.
    - **Divergence.** An episode whose last info has ``diverged`` (True) is an episode of its trial like any other, but
      its last step receives a penalty: the worst reward of the episode, if it is negative, once for each of the steps
      left to the horizon. The episode thus counts as if its worst step went on to the horizon, so that it does not pay
      to escape negative rewards by diverging. Positive rewards are not continued, because a discounted learner would
      gain by having them at once. The previous reward in the observation is without the penalty, in the range of the
      rewards of other steps. If the last step's own reward is not finite, the lowest earlier reward of all members
      since the last ``reset``, or 0 if that is positive, takes its place.
    - **Horizon.** Single members of a VecEnv cannot be reset, so an episode that goes on after ``env.horizon`` steps is
      an error; it is not cut.
    - **Tasks.** With a ``split``, every trial's task is drawn uniformly from that set, with the generator of ``seed``.
      A task takes effect at the member's next reset, so it is drawn when the last episode of the trial before it
      begins.

    :param env: environment whose episodes are not trials
    :param n_episodes: number of episodes of a trial (K)
    :param split: name of the set from which every trial's task is drawn; None to set tasks by ``set_tasks`` only
    :raises ValueError: if ``n_episodes`` is less than 1, or the environment has trials already, Dict observations, or
        actions of a kind that a policy cannot choose
    """

    def __init__(self, env: MultiTaskVecEnv, n_episodes: int, split: str | None = "train"):
        if n_episodes < 1:
            raise ValueError(f"expected trials of at least 1 episode, got n_episodes={n_episodes}")
        if has_trials(env):
            raise ValueError("expected an environment whose episodes are single, got one that has trials already")
        actions = env.action_space
        if isinstance(actions, spaces.MultiBinary) or (isinstance(actions, spaces.Discrete) and actions.start != 0):
            raise ValueError(
                f"expected a Box, a MultiDiscrete, or a Discrete action space that starts at 0, got {actions}"
            )
        if isinstance(env.observation_space, spaces.Dict):
            raise ValueError(
                "expected an observation space that is no Dict: wrap the environment in"
                f" gymnasium.wrappers.FlattenObservation; got {env.observation_space}"
            )
        train, validation, test = (env._task_sets[name] for name in SPLITS)
        super().__init__(env, n_episodes * env.horizon, train, validation, test, task_adapter=env.task_adapter)
        self.single = env
        self._normalizers = normalizers(env)
        self.n_episodes = n_episodes
        self._trial_tasks = None if split is None else self.task_set(split)
        self._rng = np.random.default_rng()
        size = get_flattened_obs_dim(env.observation_space) + transition_size(env.action_space)
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        shape = (self.num_envs, n_episodes)
        self._returns, self._lengths, self._success = np.zeros(shape), np.zeros(shape), np.full(shape, np.nan)
        self._diverged = np.zeros(shape, dtype=bool)
        self._episode = np.zeros(self.num_envs, dtype=np.int64)  # index of the running episode in its trial
        self._worst = np.zeros(self.num_envs, dtype=np.float32)  # worst reward of the running episode, at most 0
        self._lowest = 0.0  # lowest reward of all members since the last reset, at most 0

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed the draws of tasks, and the members at their next reset.

        :param seed: seed, None for unpredictable draws
        :return: the members' seeds
        """
        # not the stream of the first member, whose generator is seeded with the number itself
        self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        return list(super().seed(seed))

    def reset(self) -> np.ndarray:
        """Start new trials in all members.

        :return: first observations (n, O + A + 2)
        """
        everyone = np.arange(self.num_envs)
        self._draw_tasks(everyone)
        observations = super().reset()
        self._forget(everyone)
        self._worst[:] = self._lowest = 0.0
        if self.n_episodes == 1:
            self._draw_tasks(everyone)
        assert isinstance(observations, np.ndarray)
        return self._augment(observations, np.zeros((self.num_envs, transition_size(self.action_space)), np.float32))

    def step_async(self, actions: np.ndarray) -> None:
        """Begin a step.

        :param actions: actions, one for each member (n, ...)
        """
        self._actions = actions
        super().step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Finish the step that ``step_async`` began.

        :return: observations (n, O + A + 2), rewards (n,), ends of trials (n,) and n infos
        :raises ValueError: if an episode goes on after the horizon, or a reward is not finite although the simulation
            did not diverge, because the policy's memory would keep it
        """
        observations, rewards, ended, infos = super().step_wait()
        assert isinstance(observations, np.ndarray)
        infos = list(infos)
        diverged = np.array([bool(end and info.get("diverged")) for end, info in zip(ended, infos, strict=True)])
        rewards = np.where(diverged & ~np.isfinite(rewards), np.float32(self._lowest), rewards)
        _check_finite(rewards)
        last = np.stack([rewards, ended], axis=1).astype(np.float32)
        transitions = np.concatenate([encode(self._actions, self.action_space), last], axis=1)
        before = rewards
        rewards = self._penalise(rewards, diverged)
        # returns are those of the members, like a monitor's
        normalizing = [wrapper for wrapper in self._normalizers if wrapper.norm_reward]
        earned = rewards if not normalizing else normalizing[-1].get_original_reward() + (rewards - before)
        over = self._note_step(earned, ended, diverged, infos)
        for member in np.flatnonzero(over).tolist():
            infos[member] = self._end_trial(member, infos[member], transitions[member])
        transitions[over] = 0.0
        self._forget(np.flatnonzero(over))
        # a task takes effect at the next reset, so it is drawn when the last episode of a trial begins
        self._draw_tasks(np.flatnonzero(ended & (self._episode == self.n_episodes - 1)))
        return self._augment(observations, transitions), rewards, over, infos

    def _draw_tasks(self, members: np.ndarray) -> None:
        """Draw the next tasks of some members, if the wrapper draws tasks at all."""
        if self._trial_tasks is not None and members.size:
            chosen = self._rng.integers(len(self._trial_tasks), size=members.size)
            self.set_tasks([self._trial_tasks[i] for i in chosen], members.tolist())

    def _forget(self, members: np.ndarray) -> None:
        """Clear the record of some members' trials."""
        self._returns[members] = self._lengths[members] = 0.0
        self._success[members] = np.nan
        self._diverged[members] = False
        self._episode[members] = 0

    def _penalise(self, rewards: np.ndarray, diverged: np.ndarray) -> np.ndarray:
        """Add the penalties of the episodes that diverged at this step, and keep track of the worst rewards."""
        self._lowest = min(self._lowest, float(rewards.min()))
        self._worst = np.minimum(self._worst, rewards)
        left = self.single.horizon - 1 - self._lengths[np.arange(self.num_envs), self._episode]
        penalised: np.ndarray = rewards + np.where(diverged, left * self._worst, 0.0).astype(rewards.dtype)
        return penalised

    def _note_step(
        self, rewards: np.ndarray, ended: np.ndarray, diverged: np.ndarray, infos: list[dict[str, Any]]
    ) -> np.ndarray:
        """Record the step and the episodes that it ended, and return the mask of the trials that it ended (n,)."""
        everyone = np.arange(self.num_envs)
        self._returns[everyone, self._episode] += rewards
        self._lengths[everyone, self._episode] += 1
        self._check_horizon(ended)
        self._worst[ended] = 0.0
        for member in np.flatnonzero(ended):
            self._success[member, self._episode[member]] = infos[member].get("is_success", np.nan)
            self._diverged[member, self._episode[member]] = diverged[member]
            if self._episode[member] < self.n_episodes - 1:  # for SB3, the trial is the episode
                infos[member] = {key: value for key, value in infos[member].items() if key != "episode"}
        over: np.ndarray = ended & (self._episode == self.n_episodes - 1)
        self._episode += ended & ~over
        return over

    def _check_horizon(self, ended: np.ndarray) -> None:
        """Refuse an episode that has reached the horizon and goes on."""
        horizon = self.single.horizon
        late = np.flatnonzero(~ended & (self._lengths[np.arange(self.num_envs), self._episode] >= horizon))
        if late.size:
            raise ValueError(
                f"expected episodes of at most {horizon} steps, the horizon of the MultiTaskVecEnv, got one of member"
                f" {late[0]} that goes on after {horizon} steps: leave out MultiTaskVecEnv(venv, horizon={horizon}), or"
                " pass the number of steps after which the members end an episode"
            )

    def _end_trial(self, member: int, info: dict[str, Any], transition: np.ndarray) -> dict[str, Any]:
        """Build the info of a member whose trial ended."""
        rows = (self._returns[member], self._lengths[member], self._success[member], self._diverged[member])
        trial = Trial(*(row.copy() for row in rows))
        described = {**info, "trial": trial, "TimeLimit.truncated": False}
        if "episode" in info:
            described["episode"] = {**info["episode"], "r": float(trial.returns.sum()), "l": int(trial.lengths.sum())}
        if "terminal_observation" in info:
            terminal = np.asarray(info["terminal_observation"])
            described["terminal_observation"] = self._augment(terminal[None], transition[None])[0]
        return described

    def _augment(self, observations: np.ndarray, transitions: np.ndarray) -> np.ndarray:
        """Append the encoded transitions to the encoded observations (n, O + A + 2)."""
        return np.concatenate([encode(observations, self.single.observation_space), transitions], axis=1)


def encode(values: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Encode observations or actions as SB3's networks see them, discrete ones as one-hot vectors.

    :param values: observations or actions (n, ...)
    :param space: their space
    :return: float32 vectors (n, size)
    """
    processed = preprocess_obs(th.as_tensor(values), space)
    assert isinstance(processed, th.Tensor)
    return processed.flatten(1).float().numpy()


def transition_size(action_space: spaces.Space) -> int:
    """Count the numbers that describe the previous step: action, reward and whether an episode ended.

    :param action_space: action space of the environment
    :return: A + 2, where A is the size of an encoded action
    """
    return get_flattened_obs_dim(action_space) + 2


def single_episodes(env: MultiTaskVecEnv) -> MultiTaskVecEnv:
    """Return the environment below the trials, whose episodes are those of the task.

    :param env: environment, possibly a TrialVecEnv
    :return: the environment itself if it has no trials
    """
    return env.single if isinstance(env, TrialVecEnv) else env


def has_trials(env: VecEnv) -> bool:
    """Tell whether there is a TrialVecEnv among the wrappers of a VecEnv.

    :param env: VecEnv, possibly wrapped
    :return: whether there is one
    """
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, TrialVecEnv):
            return True
        env = env.venv
    return False


def _check_finite(rewards: np.ndarray) -> None:
    """Refuse rewards that are not finite."""
    wrong = np.flatnonzero(~np.isfinite(rewards))
    if wrong.size:
        raise ValueError(f"expected finite rewards, got {rewards[wrong[0]]} from member {wrong[0]}")
