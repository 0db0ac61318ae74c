"""Pre-update episodes that all tasks of equal dynamics share.

If every task's latent distribution is the prior, the return of an episode can be recomputed for every other task of
equal dynamics. One bank of prior episodes then serves all these tasks, and each task learns about more latents than it
could afford to try on its own.
"""

import numpy as np
import torch as th

from sb3_maesn.common.type_aliases import EpisodeBatch, Rollout, Tasks
from sb3_maesn.envs.multi_task import MultiTaskVecEnv
from sb3_maesn.envs.relabel import relabelled_returns


def dynamics_groups(env: MultiTaskVecEnv, tasks: Tasks) -> tuple[np.ndarray, Tasks]:
    """Group the tasks that may share episodes.

    :param env: environment of one of this package's task families
    :param tasks: B tasks
    :return: group numbers (B,), and the first task of each group
    :raises ValueError: for any other environment
    """
    groups = env.family.dynamics_groups(np.stack(tasks.values))
    first = np.unique(groups, return_index=True)[1]
    return groups, Tasks(tasks.ids[first], [tasks.values[i] for i in first])


def share_episodes(env: MultiTaskVecEnv, tasks: Tasks, groups: np.ndarray, bank: Rollout, gamma: float) -> EpisodeBatch:
    """Compute the data of each task from shared episodes, with the returns that they have in that task.

    :param env: environment of one of this package's task families
    :param tasks: B tasks
    :param groups: group number of each task (B,)
    :param bank: n episodes of the first task of each group, with equal latents in all groups (T, n_groups, n, ...)
    :param gamma: discount factor
    :return: whole-episode data, with discounted returns as advantages (B, n)
    :raises ValueError: for any other environment
    :raises NotImplementedError: if the family's observations do not determine its rewards
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
    """Sample different tasks from as few groups as possible.

    :param groups: group number of each training task (N,)
    :param n: number of tasks to sample
    :param rng: source of the choice
    :return: sorted indices of the tasks (n,)
    """
    rank = rng.permutation(int(groups.max()) + 1)[groups]
    order = np.lexsort((rng.random(len(groups)), rank))
    return np.sort(order[:n])
