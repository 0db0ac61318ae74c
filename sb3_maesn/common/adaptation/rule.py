"""The interface of adaptation rules, and the state that they pass from round to round.

A rule is an immutable object. All that it knows about the tasks at hand is in an :class:`AdaptationState`, a value that
is passed in and returned. Every rule handles all tasks at once (leading axis B) and never looks across tasks.

One round consists of ``latents = rule.propose(state, n_episodes, rng)``, the episodes with these latents, and
``state = rule.update(state, latents, returns, advantages, rng)``. The mean and log std of the state are those of the
policy that adaptation would return at that point.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.score_prior import Array

ALL_TASKS = slice(None)


@dataclass(frozen=True)
class AdaptationState:
    """The knowledge about B tasks: prior, current latent distribution, and all N episodes of each task so far.

    :param prior_mean: mean of the prior (B, L)
    :param prior_log_std: log std of the prior (B, L)
    :param mean: mean of the current latent distribution (B, L)
    :param log_std: log std of the current latent distribution (B, L)
    :param latents: latents of the episodes (B, N, L)
    :param returns: undiscounted returns of the episodes (B, N)
    :param advantages: advantages of whole episodes, not normalised: discounted return minus value baseline at the first
        step (B, N)
    :param valid: whether the episodes did not diverge (B, N); one that did has the worst return and advantage of its
        task so far
    :param n_rounds: number of rounds so far
    :raises ValueError: if shapes disagree or a value is not finite
    """

    prior_mean: Array
    prior_log_std: Array
    mean: Array
    log_std: Array
    latents: Array
    returns: Array
    advantages: Array
    valid: NDArray[np.bool_]
    n_rounds: int = 0

    def __post_init__(self) -> None:
        if self.prior_mean.ndim != 2:
            raise ValueError(f"prior_mean must have shape (tasks, latent_dim), got {self.prior_mean.shape}")
        n_tasks, latent_dim = self.prior_mean.shape
        n_episodes = self.latents.shape[1] if self.latents.ndim == 3 else 0
        expected = {
            "prior_log_std": (n_tasks, latent_dim),
            "mean": (n_tasks, latent_dim),
            "log_std": (n_tasks, latent_dim),
            "latents": (n_tasks, n_episodes, latent_dim),
            "returns": (n_tasks, n_episodes),
            "advantages": (n_tasks, n_episodes),
            "valid": (n_tasks, n_episodes),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        for name in ("prior_mean", *expected):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} must be finite, got {_first_non_finite(getattr(self, name))}")

    @property
    def whitened(self) -> Array:
        """Latents in units of the prior, (z - prior mean) / prior std (B, N, L)."""
        return (self.latents - self.prior_mean[:, None]) * np.exp(-self.prior_log_std[:, None])

    def unwhiten(self, whitened: Array, tasks: NDArray[np.int64] | slice = ALL_TASKS) -> Array:
        """Convert latents in units of the prior to latents.

        :param whitened: latents in units of the prior, of the given tasks (B, K, L)
        :param tasks: indices of these tasks, all by default
        :return: latents (B, K, L)
        """
        return self.prior_mean[tasks, None] + np.exp(self.prior_log_std[tasks, None]) * whitened


def _first_non_finite(values: Array) -> str:
    """Describe the first value that is not finite, for an error message."""
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return f"{values[index]} at index {index}"


class AdaptationRule(ABC):
    """Base class of all rules, which keeps the history and draws latents from the current distribution.

    A subclass defines ``_adapt``, the update of the distribution; one that also chooses which latents to try overrides
    ``propose``.
    """

    def start(self, prior_mean: Array, prior_log_std: Array) -> AdaptationState:
        """Build the state before the first round, whose latent distribution is the prior.

        :param prior_mean: mean of the prior (B, L)
        :param prior_log_std: log std of the prior (B, L)
        :return: the state
        :raises ValueError: if shapes disagree or a value is not finite
        """
        mean, log_std = np.array(prior_mean, dtype=np.float64), np.array(prior_log_std, dtype=np.float64)
        if mean.ndim != 2:
            raise ValueError(f"prior_mean must have shape (tasks, latent_dim), got {mean.shape}")
        n_tasks, latent_dim = mean.shape
        none = np.zeros((n_tasks, 0))
        latents = np.zeros((n_tasks, 0, latent_dim))
        return AdaptationState(mean, log_std, mean, log_std, latents, none, none, none.astype(bool))

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Choose the latents of the next round's episodes, by default draws from the current distribution.

        :param state: state before the round
        :param n_episodes: number of episodes of the round per task (K)
        :param rng: source of randomness
        :return: latents (B, K, L)
        :raises ValueError: if ``n_episodes`` is less than 1
        """
        if n_episodes < 1:
            raise ValueError(f"n_episodes must be at least 1, got {n_episodes}")
        return draw_latents(state.mean, state.log_std, n_episodes, rng)

    def update(
        self,
        state: AdaptationState,
        latents: Array,
        returns: Array,
        advantages: Array,
        rng: np.random.Generator,
        valid: NDArray[np.bool_] | None = None,
    ) -> AdaptationState:
        """Add a round's episodes to the history and update the latent distribution.

        :param state: state before the round
        :param latents: latents of the round's episodes (B, K, L)
        :param returns: undiscounted returns of the episodes (B, K)
        :param advantages: advantages of whole episodes, not normalised (B, K)
        :param rng: source of randomness
        :param valid: whether the episodes did not diverge (B, K); None if none did. What they returned does not count
        :return: state after the round
        :raises ValueError: if shapes disagree, a value is not finite, or the round has no episode
        """
        if valid is not None and np.shape(valid) == np.shape(returns) == np.shape(advantages):
            returns, advantages = (np.where(valid, part, 0.0) for part in (returns, advantages))
        known = replace(
            state,
            latents=_append(state.latents, latents, "latents"),
            returns=_append(state.returns, returns, "returns"),
            advantages=_append(state.advantages, advantages, "advantages"),
            valid=_append(state.valid, np.ones(np.shape(returns)) if valid is None else valid, "valid"),
            n_rounds=state.n_rounds + 1,
        )
        if not known.valid.all():
            returns, advantages = (worst_for_diverged(part, known.valid) for part in (known.returns, known.advantages))
            known = replace(known, returns=returns, advantages=advantages)
        n_new = known.returns.shape[1] - state.returns.shape[1]
        if n_new < 1:
            raise ValueError("a round must have at least 1 episode, got 0")
        mean, log_std = self._adapt(known, n_new, rng)
        return replace(known, mean=mean, log_std=log_std)

    @abstractmethod
    def _adapt(self, state: AdaptationState, n_new: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Compute the new latent distribution.

        :param state: state with all episodes, the last ``n_new`` of each task being new, and with the distribution
            before the update
        :param n_new: number of episodes of the last round (K)
        :param rng: source of randomness
        :return: mean and log std, both (B, L)
        """


def draw_latents(mean: Array, log_std: Array, n_episodes: int, rng: np.random.Generator) -> Array:
    """Draw from the latent distributions of B tasks.

    :param mean: means (B, L)
    :param log_std: log stds (B, L)
    :param n_episodes: number of draws for each task (K)
    :param rng: source of randomness
    :return: latents (B, K, L)
    """
    noise = rng.standard_normal((len(mean), n_episodes, mean.shape[1]))
    return mean[:, None] + np.exp(log_std)[:, None] * noise


def worst_for_diverged(values: Array, valid: NDArray[np.bool_], otherwise: float = 0.0) -> Array:
    """Replace the values of episodes that diverged by the worst value of their task.

    :param values: values of the episodes (B, N)
    :param valid: whether the episodes did not diverge (B, N)
    :param otherwise: value for a task whose episodes have all diverged
    :return: the values, with replacements (B, N)
    """
    if valid.all():
        return values
    worst = np.where(valid, values, np.inf).min(axis=1, keepdims=True)  # (B, 1)
    return np.where(valid, values, np.where(np.isfinite(worst), worst, otherwise))


def _append(old: NDArray[Any], new: NDArray[Any], name: str) -> NDArray[Any]:
    """Append a round's values to those of earlier rounds, along the axis of episodes."""
    new = np.asarray(new, dtype=old.dtype)
    if new.ndim != old.ndim or new.shape[0] != old.shape[0] or new.shape[2:] != old.shape[2:]:
        expected = (old.shape[0], "episodes", *old.shape[2:])
        raise ValueError(f"{name} of a round must have shape {expected}, got {new.shape}")
    return np.concatenate([old, new], axis=1)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value out of range.

    :param name: name of the argument, for the error message
    :param value: value to check
    :param low: least value allowed
    :param high: greatest value allowed
    :raises ValueError: if the value is out of range or NaN
    """
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}")
