"""Intrinsic reward for what is learned about the dynamics: VIME (Houthooft et al. 2016, arXiv:1605.09674)."""

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

#: Transitions whose gradients are held at once.
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
    """What each transition alone would teach: KL(q(phi + lambda dphi) || q(phi)) to second order, Eq. 16.

    dphi = H^-1 grad l is the Newton step on l = KL(q(phi') || q(phi)) - E_q[log p(transition)], H the KL's Hessian, so
    that the KL is lambda^2 / 2 grad l^T H^-1 grad l.

    :param posterior: q(theta; phi)
    :param sizes: units of each layer of the dynamics network
    :param inputs: states and actions (N, n_in)
    :param targets: next states (N, n_out)
    :param noise: standard normal draws (S, P) of the weights; all transitions are judged by the same
    :param likelihood_std: standard deviation of the targets around the network's output
    :param step_size: lambda
    :return: nats (N,)
    """

    def loss(mean: th.Tensor, rho: th.Tensor, one_input: th.Tensor, one_target: th.Tensor) -> th.Tensor:
        # at phi' = phi the KL between them has no gradient
        q = WeightPosterior(mean, rho)
        return -expected_log_likelihood(q, sizes, one_input[None], one_target[None], noise, likelihood_std).squeeze()

    gradients = th.func.vmap(th.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0), chunk_size=CHUNK)
    by_mean, by_rho = gradients(*posterior, inputs, targets)  # (N, P) each
    curvature = posterior.kl_curvature()
    return 0.5 * step_size**2 * ((by_mean.square() / curvature.mean) + (by_rho.square() / curvature.rho)).sum(dim=1)


class Transitions(NamedTuple):
    """N steps of an environment as vectors.

    :param observations: (N, O)
    :param actions: (N, A)
    :param next_observations: (N, O)
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor


class TransitionPool:
    """The latest transitions, of which the dynamics are learned (section 2.5).

    :param capacity: how many are kept
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the replay pool must hold at least 1 transition, got {capacity}")
        self.capacity = capacity
        self.transitions: Transitions | None = None

    def __len__(self) -> int:
        return 0 if self.transitions is None else len(self.transitions.observations)

    def add(self, new: Transitions) -> None:
        """Append transitions; the oldest make room.

        :param new: (N, ...)
        """
        parts = new if self.transitions is None else map(th.cat, zip(self.transitions, new, strict=True))
        self.transitions = Transitions(*(part[-self.capacity :] for part in parts))

    def sample(self, n: int, generator: th.Generator) -> Transitions:
        """Draw transitions with replacement.

        :param n: how many
        :param generator: source of the choice
        """
        assert self.transitions is not None
        chosen = th.randint(len(self), (n,), generator=generator)
        return Transitions(*(part[chosen] for part in self.transitions))

    def scale(self) -> Transitions:
        """Mean and standard deviation of observations and actions (2, .); next observations share the observations'."""
        assert self.transitions is not None
        observations, actions = (_mean_and_std(part) for part in self.transitions[:2])
        return Transitions(observations, actions, observations)


def _mean_and_std(values: th.Tensor) -> th.Tensor:
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    return th.stack([mean, th.where(std > 1e-6, std, 1.0)])  # what has never varied stays near 0


def as_vectors(values: np.ndarray, space: spaces.Space) -> th.Tensor:
    """SB3's preprocessing, one-hot for discrete spaces.

    :param values: elements of the space (..., *shape)
    :param space: the space
    :return: (N, size)
    """
    tensor = th.as_tensor(values).reshape(-1, *(space.shape or ()))  # (..., *shape) -> (N, *shape)
    processed = preprocess_obs(tensor, space)
    assert isinstance(processed, th.Tensor)
    return processed.flatten(1)


def action_vectors(actions: np.ndarray, space: spaces.Space) -> th.Tensor:
    """Actions as the environment gets them: clipped to a Box.

    :param actions: as sampled (..., A), or integers
    :param space: the action space
    :return: (N, size)
    """
    if isinstance(space, spaces.Box):
        actions = np.clip(actions, space.low.ravel(), space.high.ravel())
    return as_vectors(actions, space)


class Curiosity(nn.Module):
    """A Bayesian model of the dynamics, learned from a replay pool, and the reward for learning about them.

    :param n_observations: O
    :param n_actions: A
    :param n_hidden: units of the hidden layers
    :param pool_size: transitions in the replay pool
    :param learning_rate: of the model
    :param prior_std: of the weights
    :param likelihood_std: of the normalised next observations around the model's prediction
    :param n_samples: draws of the weights for each estimate
    :param n_data: transitions that the posterior is to believe to have seen; None for those in the pool
    :param n_medians: iterations over whose medians the reward's scale averages
    :param seed: of the initial weights
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
        """The variational posterior of the weights."""
        return WeightPosterior(self.mean, self.rho)

    def rewards(self, transitions: Transitions, generator: th.Generator) -> th.Tensor:
        """Information gains over their typical size: the mean of the last iterations' medians (section 2.5).

        The step size lambda of Eq. 16 cancels. The transitions enter the pool first, whose mean and spread normalise
        them, but the model has not learned from them yet.

        :param transitions: of one iteration (N, ...)
        :param generator: source of the weights' draws
        :return: (N,)
        """
        self.pool.add(transitions)
        posterior = WeightPosterior(self.mean.detach(), self.rho.detach())
        noise = self._noise(generator)
        gains = information_gain(posterior, self.sizes, *self._pairs(transitions), noise, self.likelihood_std)
        self.medians.append(gains.median().item())
        return gains / max(float(np.mean(self.medians)), 1e-12)

    def learn(self, n_updates: int, batch_size: int, generator: th.Generator) -> float:
        """Fit the model to the pool.

        :param n_updates: gradient steps
        :param batch_size: transitions of each
        :param generator: source of batches and of the weights' draws
        :return: mean loss (Eq. 10, per transition)
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
        return float(np.mean(losses))

    def _noise(self, generator: th.Generator) -> th.Tensor:
        return th.randn(self.n_samples, n_weights(self.sizes), generator=generator)

    def _pairs(self, transitions: Transitions) -> tuple[th.Tensor, th.Tensor]:
        """Normalised inputs (N, O + A) and targets (N, O)."""
        pairs = zip(transitions, self.pool.scale(), strict=True)
        observations, actions, following = ((values - scale[0]) / scale[1] for values, scale in pairs)
        return th.cat([observations, actions], dim=1), following

    def get_extra_state(self) -> dict[str, Any]:
        """The pool and the reward's scale, for ``state_dict``."""
        pool = None if self.pool.transitions is None else list(self.pool.transitions)
        return {"pool": pool, "medians": list(self.medians)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned.

        :param state: from a ``state_dict``
        """
        self.pool.transitions = None if state["pool"] is None else Transitions(*state["pool"])
        self.medians.clear()
        self.medians.extend(state["medians"])
