"""What an episode of one task would have returned in another task of the same dynamics."""

import numpy as np
from numpy.typing import NDArray

from sb3_maesn.envs.task_family import TaskFamily

Array = NDArray[np.float64]


def can_relabel(family: TaskFamily) -> bool:
    """Whether the observations of a family tell its reward.

    :param family: the family
    """
    return type(family).state_of is not TaskFamily.state_of


def relabelled_returns(
    family: TaskFamily, observations: Array, actions: Array, mask: Array, tasks: Array, gamma: float
) -> Array:
    """Discounted returns of the same episodes in other tasks.

    The reward of a step is a function of the state that it leads to, which is read from the next observation; the last
    step of an episode, whose next observation is that of another episode, does not count.

    :param family: whose reward
    :param observations: (T, N, O)
    :param actions: (T, N, A)
    :param mask: (T, N), 1 for a valid step
    :param tasks: (B, G)
    :param gamma: discount factor
    :return: (B, N)
    """
    n_steps, n = mask.shape
    arrived = observations[1:].reshape((n_steps - 1) * n, -1)  # (T - 1, N, O) -> (S, O)
    controls = family.controls(np.clip(actions[:-1], -1.0, 1.0).reshape((n_steps - 1) * n, -1))  # (S, A)
    state = family.state_of(arrived)
    weights = mask[1:] * gamma ** np.arange(n_steps - 1)[:, None]  # (T - 1, N), 0 from the last step on
    returns = np.empty((len(tasks), n))
    for row, task in enumerate(tasks):  # one task at a time keeps the memory small
        rewards = family.reward(state, controls, np.broadcast_to(task, (len(controls), len(task))))
        returns[row] = (rewards.reshape(n_steps - 1, n) * weights).sum(axis=0)
    return returns
