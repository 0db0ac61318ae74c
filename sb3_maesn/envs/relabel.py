"""Relabelling: the returns that episodes of one task would have had in other tasks of the same dynamics."""

import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.task_family import TaskFamily

Array = NDArray[np.float64]


def can_relabel(family: TaskFamily) -> bool:
    """Tell whether the observations of a family determine its reward.

    :param family: task family
    :return: whether the family implements ``state_of``
    """
    return type(family).state_of is not TaskFamily.state_of


def relabelled_returns(
    family: TaskFamily, observations: Array, actions: Array, mask: Array, tasks: Array, gamma: float
) -> Array:
    """Compute the discounted returns that the same episodes would have had in other tasks.

    The reward of a step is a function of the state to which it leads, and that is read from the next observation. The
    last step of an episode does not count, because the next observation is missing or belongs to another episode.

    :param family: task family whose reward is used
    :param observations: observations of N episodes (T, N, O)
    :param actions: actions, clipped to [-1, 1] here (T, N, A)
    :param mask: 1 for a step of a valid episode, else 0 (T, N)
    :param tasks: tasks in which to evaluate the episodes (B, G)
    :param gamma: discount factor
    :return: discounted returns, 0 for an episode that is not valid (B, N)
    """
    n_steps, n = mask.shape
    arrived = observations[1:].reshape((n_steps - 1) * n, -1)  # (T - 1, N, O) -> (S, O)
    controls = family.controls(np.clip(actions[:-1], -1.0, 1.0).reshape((n_steps - 1) * n, -1))  # (S, A)
    state = family.state_of(arrived)
    weights = mask[1:] * gamma ** np.arange(n_steps - 1)[:, None]  # (T - 1, N), 0 at the last step and after
    returns = np.empty((len(tasks), n))
    for row, task in enumerate(tasks):  # one task at a time keeps the memory small
        rewards = family.reward(state, controls, np.broadcast_to(task, (len(controls), len(task))))
        returns[row] = (rewards.reshape(n_steps - 1, n) * weights).sum(axis=0)
    return returns
