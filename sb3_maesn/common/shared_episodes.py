"""Pre-update episodes of the prior that all tasks of equal dynamics share.

Where every task's latent distribution is the prior, an episode of one task says what it would have returned in every
other: one bank of prior episodes then serves all tasks of the batch, each seeing far more latents than it could pay for
on its own.
"""

import numpy as np
import torch as th

from sb3_maesn.common.type_aliases import EpisodeBatch, Rollout, Tasks
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.relabel import relabelled_returns


def dynamics_groups(env: MultiTaskVecEnv, tasks: Tasks) -> tuple[np.ndarray, Tasks]:
    """Which tasks may share episodes, and one task of each group.

    :param env: a native environment
    :param tasks: B tasks
    :return: group numbers (B,), and the groups' first tasks
    """
    groups = env.family.dynamics_groups(np.stack(tasks.values))
    first = np.unique(groups, return_index=True)[1]
    return groups, Tasks(tasks.ids[first], [tasks.values[i] for i in first])


def share_episodes(env: MultiTaskVecEnv, tasks: Tasks, groups: np.ndarray, bank: Rollout, gamma: float) -> EpisodeBatch:
    """The bank as each task sees it.

    :param env: a native environment
    :param tasks: B tasks
    :param groups: their groups (B,)
    :param bank: n episodes of each group's first task, (T, n_groups, n, ...)
    :param gamma: discount factor
    :return: (B, n)
    """
    family, values = env.family, np.stack(tasks.values)  # (B, G)
    returns = np.empty((len(groups), bank.latents.shape[1]))
    for group in range(bank.latents.shape[0]):
        own = groups == group
        steps = (bank.observations, bank.actions, bank.mask)
        observations, actions, mask = (part[:, group].double().numpy() for part in steps)
        returns[own] = relabelled_returns(family, observations, actions, mask, values[own], gamma)
    owner = th.as_tensor(groups)
    advantages = th.as_tensor(returns, dtype=th.float32)
    return EpisodeBatch(bank.latents[owner], bank.noise[owner], advantages, bank.mask[0][owner], th.zeros_like(owner))


def sample_by_group(groups: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Different tasks from as few groups as possible.

    :param groups: group numbers of all tasks (N,)
    :param n: how many
    :param rng: source of the choice
    :return: sorted indices (n,)
    """
    rank = rng.permutation(int(groups.max()) + 1)[groups]
    order = np.lexsort((rng.random(len(groups)), rank))
    return np.sort(order[:n])
