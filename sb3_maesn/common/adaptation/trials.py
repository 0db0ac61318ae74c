"""Adaptation by memory: trials of a recurrent policy on given tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_maesn.common.adaptation.rounds import AdaptationResult, report_returns, report_success
from sb3_maesn.common.global_seed import global_seed
from sb3_maesn.common.trial_policy import Memory, TrialLstmPolicy
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.trials import Trial, TrialVecEnv, transition_size


def run_trials(
    policy: TrialLstmPolicy,
    env: MultiTaskVecEnv,
    tasks: Sequence[Any],
    n_episodes: int,
    n_trials: int,
    rng: np.random.Generator,
    deterministic: bool = False,
) -> tuple[AdaptationResult, Memory]:
    """Run trials of a recurrent policy on each of B tasks, in waves if the environment has fewer members.

    :param policy: policy with a memory
    :param env: environment in which the tasks are set, without trials
    :param tasks: B tasks that ``set_task`` takes
    :param n_episodes: number of episodes of a trial (K)
    :param n_trials: number of trials of each task, each with a memory of its own
    :param rng: source of all randomness
    :param deterministic: whether to take the most likely actions
    :return: the history, in which round k holds the k-th episodes of all trials (arrays (K, B, n_trials)), and the
        memory at the end of the first trial
    :raises ValueError: if there is no task or no trial
    """
    for name, value in {"the number of tasks": len(tasks), "the number of trials": n_trials}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    owners = [task for task in tasks for _ in range(n_trials)]
    trials: list[Trial] = []
    memories: list[Memory] = []
    with global_seed(int(rng.integers(2**32))):
        for start in range(0, len(owners), env.num_envs):
            wave = owners[start : start + env.num_envs]
            members = TrialVecEnv(env.with_room_for(len(wave)), n_episodes, split=None)
            members.set_tasks(wave + [wave[-1]] * (members.num_envs - len(wave)))
            members.seed(int(rng.integers(2**31 - members.num_envs)))
            for trial, memory in _one_trial_each(policy, members, len(wave), deterministic):
                trials.append(trial)
                memories.append(memory)
    return _result(trials, len(tasks)), memories[0]


def _one_trial_each(
    policy: TrialLstmPolicy, env: TrialVecEnv, n: int, deterministic: bool
) -> list[tuple[Trial, Memory]]:
    """Run one trial in each of the first ``n`` members; what those that finish early do afterwards is ignored."""
    found: dict[int, tuple[Trial, Memory]] = {}
    observations, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    while len(found) < n:
        actions, state = policy.predict(observations, state, starts, deterministic)
        assert state is not None
        observations, _, starts, infos = env.step(actions)  # type: ignore[assignment]  # no Dict: a Box
        for member in np.flatnonzero(starts[:n]).tolist():
            if member not in found:
                hidden, cell = (part[:, [member]] for part in state)
                transition = infos[member]["terminal_observation"][-transition_size(env.action_space) :]
                found[member] = infos[member]["trial"], Memory((hidden, cell), transition)
    return [found[member] for member in range(n)]


def _result(trials: Sequence[Trial], n_tasks: int) -> AdaptationResult:
    """Arrange the trials of all tasks as a history."""
    returns, lengths, success, diverged = (
        np.stack(rows).reshape(n_tasks, -1, len(rows[0])).transpose(2, 0, 1)  # (B * n, K) -> (K, B, n)
        for rows in zip(*trials, strict=True)
    )
    returns = np.stack([report_returns(*of_round) for of_round in zip(returns, ~diverged, strict=True)])
    success = np.stack([report_success(*of_round) for of_round in zip(success, ~diverged, strict=True)])
    lengths = np.where(diverged, 0.0, lengths)
    # a memory has no latent distribution, and there are no evaluation episodes
    nothing = np.zeros((*returns.shape[:2], 0))
    return AdaptationResult(
        returns=returns,
        success=success,
        lengths=lengths,
        latents=np.zeros((*returns.shape, 0)),
        mean=nothing,
        log_std=nothing,
        eval_returns=nothing,
        eval_success=nothing,
    )
