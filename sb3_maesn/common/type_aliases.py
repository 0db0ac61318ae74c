"""Frozen data that crosses module boundaries.

Shapes: B tasks, K episodes of each, T time steps, L latent dimensions, O observation and A action dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian
from sb3_maesn.common.thinning import Thinning

NamedParameters: TypeAlias = dict[str, th.Tensor]

STEP_FIELDS = ("observations", "actions", "log_prob", "rewards", "mask")
"""The fields of a rollout that hold a value for every step, beside the distribution."""


@dataclass(frozen=True)
class Tasks:
    """One draw of tasks from a family's training set.

    :param ids: indices into the training set (B,)
    :param values: what the environments' ``set_task`` takes, one for each id
    """

    ids: np.ndarray
    values: Sequence[Any]

    def __post_init__(self) -> None:
        if self.ids.shape != (len(self.values),):
            raise ValueError(f"expected one id for each of {len(self.values)} tasks, got ids of shape {self.ids.shape}")


class RolloutSummary(NamedTuple):
    """What the log says about a rollout.

    :param returns: undiscounted returns of its n valid episodes (n,)
    :param lengths: their lengths (n,)
    :param success: 1 or 0, of the valid episodes of an environment that says it
    :param n_episodes: all episodes
    :param n_diverged: episodes that were dropped because the simulation diverged
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    n_episodes: int
    n_diverged: int


@dataclass(frozen=True)
class Rollout:
    """K episodes for each of B tasks.

    :param observations: preprocessed observations (T, B, K, *obs_shape), float
    :param actions: as sampled, before clipping to the action space: (T, B, K, A), or (T, B, K) integers
    :param distribution: the behaviour policy's distributions, mean or logits (T, B, K, A)
    :param log_prob: of the actions under the behaviour policy (T, B, K)
    :param rewards: (T, B, K), zero where the mask is
    :param mask: (T, B, K), 1 for a real step of a valid episode, else 0
    :param latents: z, one for each episode (B, K, L)
    :param noise: eps of z = mean + std * eps (B, K, L)
    :param success: (B, K), 1 or 0, NaN where the environment does not say
    :param n_diverged: episodes that ended because the simulation diverged; their mask is 0
    """

    observations: th.Tensor
    actions: th.Tensor
    distribution: ActionDistribution
    log_prob: th.Tensor
    rewards: th.Tensor
    mask: th.Tensor
    latents: th.Tensor
    noise: th.Tensor
    success: np.ndarray
    n_diverged: int = 0

    def __post_init__(self) -> None:
        steps = self.rewards.shape
        if len(steps) != 3:
            raise ValueError(f"expected rewards of shape (T, B, K), got {tuple(steps)}")
        for name in ("observations", "actions", "log_prob", "mask"):
            if getattr(self, name).shape[:3] != steps:
                raise ValueError(
                    f"expected {name} to begin with {tuple(steps)}, got {tuple(getattr(self, name).shape)}"
                )
        for name in ("latents", "noise", "success"):
            shape = tuple(getattr(self, name).shape)
            if shape[:2] != tuple(steps[1:]):
                raise ValueError(f"expected {name} to begin with {tuple(steps[1:])}, got {shape}")

    @property
    def returns(self) -> th.Tensor:
        """Undiscounted return of each episode (B, K)."""
        return self.rewards.sum(dim=0)

    @property
    def lengths(self) -> th.Tensor:
        """Number of valid steps of each episode (B, K)."""
        return self.mask.sum(dim=0)

    def first_episodes(self, n: int) -> "Rollout":
        """The first ``n`` episodes of each task.

        :param n: at most K
        """
        distribution = type(self.distribution)(*(part[:, :, :n] for part in self.distribution))
        steps = {name: getattr(self, name)[:, :, :n] for name in STEP_FIELDS}
        episodes = {name: getattr(self, name)[:, :n] for name in ("latents", "noise", "success")}
        return replace(self, distribution=distribution, **steps, **episodes)

    def at_tasks(self, tasks: slice) -> "Rollout":
        """Some of the tasks, without copying.

        :param tasks: which
        """
        # a Gaussian's log std that all tasks share has a task dimension of 1
        parts = (part if part.shape[1] == 1 else part[:, tasks] for part in self.distribution)
        steps = {name: getattr(self, name)[:, tasks] for name in STEP_FIELDS}
        episodes = {name: getattr(self, name)[tasks] for name in ("latents", "noise", "success")}
        return replace(self, distribution=type(self.distribution)(*parts), **steps, **episodes)

    def every_nth_step(self, stride: int, spread: bool = False) -> "Rollout":
        """Every ``stride``-th time step, for the Fisher product.

        :param stride: at least 1
        :param spread: begin in every episode at another phase, as in :class:`Thinning`
        """
        if stride == 1:
            return self
        chosen = Thinning(len(self.rewards), self.rewards.shape[2], stride, spread)
        # a Gaussian's log std has a time dimension of 1
        parts = (chosen(part) if part.shape[0] > 1 else part for part in self.distribution)
        thinned = {name: chosen(getattr(self, name)) for name in STEP_FIELDS if name != "mask"}
        mask = chosen(self.mask) * chosen.mask
        return replace(self, distribution=type(self.distribution)(*parts), mask=mask, **thinned)  # type: ignore[arg-type]  # fields of steps

    def summary(self) -> RolloutSummary:
        """Returns, lengths and success of the valid episodes."""
        valid = self.mask[0].numpy() > 0  # (B, K)
        success = self.success[valid]
        return RolloutSummary(
            self.returns.numpy()[valid],
            self.lengths.numpy()[valid],
            success[~np.isnan(success)],
            valid.size,
            self.n_diverged,
        )


@dataclass(frozen=True)
class EpisodeBatch:
    """What an update of the latents alone needs of a rollout.

    :param latents: z (B, K, L)
    :param noise: eps of z = mean + std * eps (B, K, L)
    :param advantages: of the whole episodes, what the likelihood-ratio estimator credits to z (B, K)
    :param mask: (B, K), 1 for a valid episode
    :param groups: the k-th episodes of tasks with the same number have one latent (B,); None where every task has its
        own
    """

    latents: th.Tensor
    noise: th.Tensor
    advantages: th.Tensor
    mask: th.Tensor
    groups: th.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("latents", "noise", "mask"):
            if getattr(self, name).shape[:2] != self.advantages.shape:
                shape = tuple(getattr(self, name).shape)
                raise ValueError(f"expected {name} to begin with {tuple(self.advantages.shape)}, got {shape}")

    def at_tasks(self, tasks: slice) -> "EpisodeBatch":
        """Some of the tasks, without copying.

        :param tasks: which
        """
        groups = None if self.groups is None else self.groups[tasks]
        return EpisodeBatch(self.latents[tasks], self.noise[tasks], self.advantages[tasks], self.mask[tasks], groups)


@dataclass(frozen=True)
class TaskBatch:
    """A rollout with its advantages.

    :param rollout: the episodes
    :param advantages: generalised advantages of each step (T, B, K), not normalised
    :param discounted_returns: discounted return from each step on (T, B, K)
    :param episode_advantages: discounted return of each whole episode beyond its start's value, whatever the lambda of
        the steps: a latent acts until the episode's end (B, K)
    :param episode_mask: (B, K), 1 for a valid episode, even if none of its steps is left here
    :param explained_variance: of the value baseline, one number for the batch
    """

    rollout: Rollout
    advantages: th.Tensor
    discounted_returns: th.Tensor
    episode_advantages: th.Tensor
    episode_mask: th.Tensor
    explained_variance: float

    def __post_init__(self) -> None:
        if self.advantages.shape != self.rollout.rewards.shape:
            raise ValueError(
                f"expected advantages of shape {tuple(self.rollout.rewards.shape)}, got {tuple(self.advantages.shape)}"
            )

    @property
    def episodes(self) -> EpisodeBatch:
        """The rollout seen from the latents."""
        return EpisodeBatch(self.rollout.latents, self.rollout.noise, self.episode_advantages, self.episode_mask)

    @property
    def mean_lengths(self) -> th.Tensor:
        """Mean length of each task's valid episodes, 0 where it has none (B,)."""
        return self.rollout.mask.sum(dim=(0, 2)) / self.episode_mask.sum(dim=1).clamp(min=1.0)

    def every_nth_step(self, stride: int, spread: bool = False) -> "TaskBatch":
        """Every ``stride``-th time step.

        :param stride: at least 1
        :param spread: begin in every episode at another phase, as in :class:`Thinning`
        """
        chosen = Thinning(len(self.advantages), self.advantages.shape[2], stride, spread)
        steps = (chosen(self.advantages), chosen(self.discounted_returns))
        rollout = self.rollout.every_nth_step(stride, spread)
        return TaskBatch(rollout, *steps, self.episode_advantages, self.episode_mask, self.explained_variance)

    def at_tasks(self, tasks: slice) -> "TaskBatch":
        """Some of the tasks, without copying.

        :param tasks: which
        """
        steps = (self.advantages[:, tasks], self.discounted_returns[:, tasks])
        episodes = (self.episode_advantages[tasks], self.episode_mask[tasks])
        return TaskBatch(self.rollout.at_tasks(tasks), *steps, *episodes, self.explained_variance)


@dataclass(frozen=True)
class MetaBatch:
    """All data of one meta-iteration.

    :param tasks: the B tasks
    :param pre: the batches before each inner update, in order; empty without inner updates, and of episodes only where
        nothing needs their steps any more
    :param post: the batch after the last inner update
    :param pre_summaries: of the rollouts before each inner update
    :param acted: the tasks' values before each inner update and after the last, as they collected the batches
    """

    tasks: Tasks
    pre: tuple[TaskBatch | EpisodeBatch, ...]
    post: TaskBatch
    pre_summaries: tuple[RolloutSummary, ...] = ()
    acted: tuple["Adapted", ...] = ()


def _at_most(values: th.Tensor, bound: float | None) -> th.Tensor:
    return values if bound is None else values.clamp(max=bound)


@dataclass(frozen=True)
class StepSizes:
    """Learned step sizes of the inner update, one for each latent dimension and parameter (MAESN, section 4.2).

    :param mean: of the latent mean (L,)
    :param log_std: of the latent log standard deviation (L,)
    :param log_temperature: log of the temperature of the reward-weighted update, a scalar
    :param theta: of each policy parameter, shaped like it; empty unless theta is adapted
    """

    mean: th.Tensor
    log_std: th.Tensor
    log_temperature: th.Tensor
    theta: NamedParameters

    def at_most(self, bound: float | None, log_std_bound: float | None) -> "StepSizes":
        """The latents' step sizes with bounds; the others as they are.

        :param bound: on every step size, if there is one
        :param log_std_bound: on those of the log std, in place of ``bound``
        """
        log_std_bound = bound if log_std_bound is None else log_std_bound
        return replace(self, mean=_at_most(self.mean, bound), log_std=_at_most(self.log_std, log_std_bound))

    def scaled(self, factor: float) -> "StepSizes":
        """Shorter or longer steps of the gradient updates.

        :param factor: by which
        """
        theta = {name: factor * step for name, step in self.theta.items()}
        return StepSizes(factor * self.mean, factor * self.log_std, self.log_temperature, theta)


@dataclass(frozen=True)
class MetaParameters:
    """Everything that the meta step changes, as values.

    :param theta: the actor's parameters by name
    :param omega: the latent distributions of all N training tasks, (N, L) each
    :param step_sizes: of the inner update
    """

    theta: NamedParameters
    omega: DiagGaussian
    step_sizes: StepSizes

    def leaves(self) -> list[th.Tensor]:
        """All tensors, in a fixed order."""
        steps = self.step_sizes
        own = [*self.omega, steps.mean, steps.log_std, steps.log_temperature]
        return [*self.theta.values(), *own, *steps.theta.values()]

    def with_leaves(self, leaves: Sequence[th.Tensor]) -> "MetaParameters":
        """The same structure around other tensors, in the order of :meth:`leaves`."""
        n_theta = len(self.theta)
        mean, log_std, step_mean, step_log_std, log_temperature = leaves[n_theta : n_theta + 5]
        steps = StepSizes(
            step_mean,
            step_log_std,
            log_temperature,
            dict(zip(self.step_sizes.theta, leaves[n_theta + 5 :], strict=True)),
        )
        return MetaParameters(dict(zip(self.theta, leaves[:n_theta], strict=True)), DiagGaussian(mean, log_std), steps)


class Adapted(NamedTuple):
    """What an inner update changes, for B tasks, passed on as a value.

    :param omega: the tasks' latent distributions, (B, L) each
    :param theta: each task's own theta with a leading B, or None where all tasks share the unadapted theta
    """

    omega: DiagGaussian
    theta: NamedParameters | None

    def detached(self) -> "Adapted":
        """The same values without their graph."""
        theta = None if self.theta is None else {name: value.detach() for name, value in self.theta.items()}
        return Adapted(DiagGaussian(*(value.detach() for value in self.omega)), theta)

    def at_tasks(self, tasks: slice) -> "Adapted":
        """The values of some of the tasks.

        :param tasks: which of the B tasks
        """
        theta = None if self.theta is None else {name: value[tasks] for name, value in self.theta.items()}
        return Adapted(DiagGaussian(*(value[tasks] for value in self.omega)), theta)

    def with_value(self, other: "Adapted") -> "Adapted":
        """Other values with the derivatives of these.

        :param other: constants
        """

        def shift(graph: th.Tensor, value: th.Tensor) -> th.Tensor:
            return value + (graph - graph.detach())

        omega = DiagGaussian(*(shift(*pair) for pair in zip(self.omega, other.omega, strict=True)))
        if self.theta is None or other.theta is None:
            return Adapted(omega, None)
        return Adapted(omega, {name: shift(self.theta[name], other.theta[name]) for name in self.theta})

    @classmethod
    def join(cls, parts: Sequence["Adapted"]) -> "Adapted":
        """The values of all tasks from those of some each, the inverse of :meth:`at_tasks`.

        :param parts: in order; all have a theta of their own, or none has
        """
        omega = DiagGaussian(*(th.cat(values) for values in zip(*(part.omega for part in parts), strict=True)))
        thetas = [part.theta for part in parts if part.theta is not None]
        if not thetas:
            return cls(omega, None)
        return cls(omega, {name: th.cat([theta[name] for theta in thetas]) for name in thetas[0]})


class ObjectiveValue(NamedTuple):
    """The meta-objective and its parts, scalars.

    :param objective: what the meta step maximises
    :param surrogate: importance-weighted advantage after the inner updates
    :param kl: mean KL between old and new action distributions after the inner updates
    :param prior_kl: mean KL of the tasks' latent distributions from the prior
    """

    objective: th.Tensor
    surrogate: th.Tensor
    kl: th.Tensor
    prior_kl: th.Tensor


@dataclass(frozen=True)
class StepResult:
    """What a meta step did.

    :param leaves: the new parameters (the old ones where the step was rejected)
    :param accepted: whether the line search found a step; True where there is none
    :param n_backtracks: how often the line search shortened the step; None where there is none
    :param before: objective and its parts at the old parameters
    :param after: the same at the new parameters
    """

    leaves: list[th.Tensor]
    accepted: bool
    n_backtracks: int | None
    before: ObjectiveValue
    after: ObjectiveValue
