"""Intrinsic reward for information gain about the dynamics.

Equations and sections refer to VIME (Houthooft et al. 2016, arXiv:1605.09674).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn

from sb3_maesn.common.bayesian_network import (
    WeightPosterior,
    expected_log_likelihood,
    initial_posterior,
    n_weights,
    variational_loss,
)

#: Number of transitions whose gradients are in memory at the same time.
CHUNK = 1024


def information_gain(
    posterior: WeightPosterior,
    sizes: Sequence[int],
    inputs: th.Tensor,
    targets: th.Tensor,
    noise: th.Tensor,
    likelihood_std: float = 1.0,
    step_size: float = 1.0,
) -> th.Tensor:
    """Compute the information gain of each transition, KL(q(phi + lambda dphi) || q(phi)) to second order, Eq. 16.

    dphi = H^-1 grad l is the Newton step on l = KL(q(phi') || q(phi)) - E_q[log p(transition)], where H is the Hessian
    of the KL. The gain is then lambda^2 / 2 grad l^T H^-1 grad l.

    :param posterior: variational posterior q(theta; phi)
    :param sizes: units of each layer of the dynamics network
    :param inputs: states and actions (N, n_in)
    :param targets: next states (N, n_out)
    :param noise: standard normal noise of the draws of the weights, which all transitions share (S, P)
    :param likelihood_std: standard deviation of the targets around the network's output
    :param step_size: step size lambda
    :return: information gains in nats (N,)
    """

    def loss(mean: th.Tensor, rho: th.Tensor, one_input: th.Tensor, one_target: th.Tensor) -> th.Tensor:
        # the KL term of l is left out: its gradient at phi' = phi is 0
        q = WeightPosterior(mean, rho)
        return -expected_log_likelihood(q, sizes, one_input[None], one_target[None], noise, likelihood_std).squeeze()

    gradients = th.func.vmap(th.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0), chunk_size=CHUNK)
    by_mean, by_rho = gradients(*posterior, inputs, targets)  # (N, P) each
    curvature = posterior.kl_curvature()
    return 0.5 * step_size**2 * ((by_mean.square() / curvature.mean) + (by_rho.square() / curvature.rho)).sum(dim=1)


class Transitions(NamedTuple):
    """N environment transitions as vectors.

    :param observations: observations (N, O)
    :param actions: actions (N, A)
    :param next_observations: observations after the actions (N, O)
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor


class TransitionPool:
    """Replay pool of the latest transitions, from which the dynamics model learns (section 2.5).

    :param capacity: largest number of transitions in the pool
    :raises ValueError: if the capacity is below 1
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the replay pool must hold at least 1 transition, got {capacity}")
        self.capacity = capacity
        self.transitions: Transitions | None = None

    def __len__(self) -> int:
        return 0 if self.transitions is None else len(self.transitions.observations)

    def add(self, new: Transitions) -> None:
        """Append transitions and drop the oldest ones beyond the capacity.

        :param new: transitions (N, ...)
        """
        parts = new if self.transitions is None else map(th.cat, zip(self.transitions, new, strict=True))
        self.transitions = Transitions(*(part[-self.capacity :] for part in parts))

    def sample(self, n: int, generator: th.Generator) -> Transitions:
        """Draw transitions uniformly with replacement.

        :param n: number of transitions
        :param generator: random generator
        :return: transitions (n, ...)
        """
        assert self.transitions is not None
        chosen = th.randint(len(self), (n,), generator=generator)
        return Transitions(*(part[chosen] for part in self.transitions))

    def scale(self) -> Transitions:
        """Compute means and standard deviations for normalisation; next observations use those of observations.

        :return: mean and standard deviation of each part (2, O), (2, A), (2, O)
        """
        assert self.transitions is not None
        observations, actions = (_mean_and_std(part) for part in self.transitions[:2])
        return Transitions(observations, actions, observations)


def _mean_and_std(values: th.Tensor) -> th.Tensor:
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    return th.stack([mean, th.where(std > 1e-6, std, 1.0)])  # a constant component is only centred


def as_vectors(values: np.ndarray, space: spaces.Space) -> th.Tensor:
    """Turn observations or actions into vectors by SB3's preprocessing, one-hot for discrete spaces.

    :param values: elements of the space (..., *shape)
    :param space: observation or action space
    :return: vectors (N, size)
    """
    tensor = th.as_tensor(values).reshape(-1, *(space.shape or ()))  # (..., *shape) -> (N, *shape)
    processed = preprocess_obs(tensor, space)
    assert isinstance(processed, th.Tensor)
    return processed.flatten(1)


def action_vectors(actions: np.ndarray, space: spaces.Space) -> th.Tensor:
    """Turn sampled actions into vectors as the environment receives them, clipped to a Box.

    :param actions: actions as sampled (..., A), or integers (...)
    :param space: action space
    :return: vectors (N, size)
    """
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low.ravel(), space.high.ravel())
    return as_vectors(actions, space)


class Curiosity(nn.Module):
    """Bayesian model of the dynamics that learns from a replay pool, and the intrinsic reward that it gives.

    :param n_observations: size of an observation vector (O)
    :param n_actions: size of an action vector (A)
    :param n_hidden: units of each hidden layer
    :param pool_size: largest number of transitions in the replay pool
    :param learning_rate: learning rate of Adam
    :param prior_std: standard deviation of the weights' prior
    :param likelihood_std: standard deviation of the normalised next observation around the prediction
    :param n_samples: number of draws of the weights in each estimate (S)
    :param n_data: number of transitions in the bound of Eq. 10, by which the KL to the prior is divided; None for the
        number in the pool
    :param n_medians: number of iterations over whose median gains the scale of the reward averages
    :param seed: seed of the initial weights
    """

    def __init__(
        self,
        n_observations: int,
        n_actions: int,
        n_hidden: Sequence[int] = (32,),
        pool_size: int = 100_000,
        learning_rate: float = 1e-3,
        prior_std: float = 0.5,
        likelihood_std: float = 5.0,
        n_samples: int = 10,
        n_data: int | None = 50,
        n_medians: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sizes = (n_observations + n_actions, *n_hidden, n_observations)
        self.prior_std, self.likelihood_std = prior_std, likelihood_std
        self.n_samples, self.n_data = n_samples, n_data
        start = initial_posterior(self.sizes, prior_std, th.Generator().manual_seed(seed))
        self.mean, self.rho = nn.Parameter(start.mean), nn.Parameter(start.rho)
        self.optimizer = th.optim.Adam(self.parameters(), lr=learning_rate)
        self.pool = TransitionPool(pool_size)
        self.medians: deque[float] = deque(maxlen=n_medians)

    def posterior(self) -> WeightPosterior:
        """Return the variational posterior of the weights."""
        return WeightPosterior(self.mean, self.rho)

    def rewards(self, transitions: Transitions, generator: th.Generator) -> th.Tensor:
        """Add transitions to the pool and compute their intrinsic rewards, before the model learns from them.

        A reward is the information gain divided by the mean of the last iterations' median gains (section 2.5), so the
        step size lambda of Eq. 16 cancels. The pool, with the new transitions, gives the normalisation.

        :param transitions: transitions of one iteration (N, ...)
        :param generator: random generator of the draws of the weights
        :return: intrinsic rewards (N,)
        """
        self.pool.add(transitions)
        posterior = WeightPosterior(self.mean.detach(), self.rho.detach())
        noise = self._noise(generator)
        gains = information_gain(posterior, self.sizes, *self._pairs(transitions), noise, self.likelihood_std)
        self.medians.append(gains.median().item())
        return gains / max(float(np.mean(self.medians)), 1e-12)

    def learn(self, n_updates: int, batch_size: int, generator: th.Generator) -> float:
        """Fit the model to the pool by gradient steps on the negative evidence lower bound.

        :param n_updates: number of gradient steps
        :param batch_size: number of transitions in each step
        :param generator: random generator of the batches and of the draws of the weights
        :return: mean loss (Eq. 10 per transition) in nats; NaN without steps
        """
        losses = []
        for _ in range(n_updates):
            pairs = self._pairs(self.pool.sample(batch_size, generator))
            loss = variational_loss(
                self.posterior(),
                self.sizes,
                *pairs,
                self._noise(generator),
                self.likelihood_std,
                self.prior_std,
                len(self.pool) if self.n_data is None else self.n_data,
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses)) if losses else float("nan")

    def _noise(self, generator: th.Generator) -> th.Tensor:
        return th.randn(self.n_samples, n_weights(self.sizes), generator=generator)

    def _pairs(self, transitions: Transitions) -> tuple[th.Tensor, th.Tensor]:
        """Normalise transitions into inputs (N, O + A) and targets (N, O) of the model."""
        pairs = zip(transitions, self.pool.scale(), strict=True)
        observations, actions, following = ((values - scale[0]) / scale[1] for values, scale in pairs)
        return th.cat([observations, actions], dim=1), following

    def get_extra_state(self) -> dict[str, Any]:
        """Return the pool and the recent median gains, which ``state_dict`` includes."""
        pool = None if self.pool.transitions is None else list(self.pool.transitions)
        return {"pool": pool, "medians": list(self.medians)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the pool and the recent median gains.

        :param state: value returned by :meth:`get_extra_state`
        """
        self.pool.transitions = None if state["pool"] is None else Transitions(*state["pool"])
        self.medians.clear()
        self.medians.extend(state["medians"])
