"""Every n-th time step of each episode, for estimates that need not see all of them."""

import torch as th


class Thinning:
    """Every ``stride``-th time step of each episode.

    :param n_steps: T
    :param n_episodes: K of each task
    :param stride: at least 1; no more than T counts
    :param spread: begin in every episode at another phase of the stride, so that together they stand for all times
        alike, and not all at the first step
    """

    def __init__(self, n_steps: int, n_episodes: int, stride: int, spread: bool = False):
        stride = min(stride, n_steps)
        phases = (2 * th.arange(n_episodes) + 1) * stride // (2 * n_episodes) * int(spread)  # (K,)
        steps = th.arange(0, n_steps, stride).unsqueeze(1) + phases
        self.steps = steps.clamp(max=n_steps - 1).unsqueeze(1)  # (T', 1, K)
        self.mask = (steps < n_steps).float().unsqueeze(1)  # (T', 1, K), 0 past the horizon

    def __call__(self, values: th.Tensor) -> th.Tensor:
        """The chosen steps (T', B, K, ...).

        :param values: of all steps (T, B, K, ...)
        """
        return th.take_along_dim(values, self.steps.view(*self.steps.shape, *(1,) * (values.ndim - 3)), dim=0)
