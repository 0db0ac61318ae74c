"""Selection of every n-th time step of each episode, for estimates that do not need all steps."""

import torch as th


class Thinning:
    """Selection of every ``stride``-th time step of each episode.

    :param n_steps: number of time steps, T
    :param n_episodes: number of episodes per task, K
    :param stride: distance between selected steps, at least 1; values above T count as T
    :param spread: whether each episode starts at a different phase of the stride, so that the episodes together
        represent all times equally; otherwise all start at the first step
    """

    def __init__(self, n_steps: int, n_episodes: int, stride: int, spread: bool = False):
        stride = min(stride, n_steps)
        phases = (2 * th.arange(n_episodes) + 1) * stride // (2 * n_episodes) * int(spread)  # (K,)
        steps = th.arange(0, n_steps, stride).unsqueeze(1) + phases
        self.steps = steps.clamp(max=n_steps - 1).unsqueeze(1)  # (T', 1, K)
        self.mask = (steps < n_steps).float().unsqueeze(1)  # (T', 1, K), 0 past the horizon

    def __call__(self, values: th.Tensor) -> th.Tensor:
        """Select the steps of an array of values.

        :param values: values of all steps (T, B, K, ...)
        :return: values of the selected steps (T', B, K, ...); those past the horizon repeat the last step and are
            masked by ``mask``
        """
        return th.take_along_dim(values, self.steps.view(*self.steps.shape, *(1,) * (values.ndim - 3)), dim=0)
