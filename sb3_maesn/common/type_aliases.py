"""Frozen data that cross module boundaries.

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
"""Policy parameters by name."""

STEP_FIELDS = ("observations", "actions", "log_prob", "rewards", "mask")
"""Fields of a rollout that hold one value per step, apart from the distribution."""


@dataclass(frozen=True)
class Tasks:
    """Batch of tasks drawn from a training set.

    :param ids: indices into the training set (B,)
    :param values: tasks as the environments' ``set_task`` accepts them, one for each id
    :raises ValueError: if the numbers of ids and values differ
    """

    ids: np.ndarray
    values: Sequence[Any]

    def __post_init__(self) -> None:
        if self.ids.shape != (len(self.values),):
            raise ValueError(f"expected one id for each of {len(self.values)} tasks, got ids of shape {self.ids.shape}")


class RolloutSummary(NamedTuple):
    """Statistics of a rollout for the log.

    :param returns: undiscounted returns of the valid episodes (n,)
    :param lengths: lengths of the valid episodes in steps (n,)
    :param success: 1 or 0 for each valid episode whose environment reports success
    :param n_episodes: number of all episodes, valid or not
    :param n_diverged: number of episodes that were dropped because their simulation diverged
    """

    returns: np.ndarray
    lengths: np.ndarray
    success: np.ndarray
    n_episodes: int
    n_diverged: int


@dataclass(frozen=True)
class Rollout:
    """K episodes of each of B tasks.

    :param observations: preprocessed observations, float (T, B, K, *obs_shape)
    :param actions: actions as sampled, before clipping to the action space; (T, B, K, A), or integers (T, B, K)
    :param distribution: action distributions of the behaviour policy (T, B, K, A)
    :param log_prob: log probabilities of the actions under the behaviour policy (T, B, K)
    :param rewards: rewards, zero where the mask is zero (T, B, K)
    :param mask: 1 for a step of a valid episode, else 0 (T, B, K)
    :param latents: latents z, one per episode (B, K, L)
    :param noise: standard normal noise eps of the latents z = mean + std * eps (B, K, L)
    :param success: 1 or 0, NaN where the environment does not report success (B, K)
    :param n_diverged: number of episodes whose simulation diverged; their mask is 0
    :param monitor_returns: returns that a monitor reports, before other wrappers change the rewards (B, K), NaN where
        none does; None for a part of a rollout
    :raises ValueError: if the shapes do not agree
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
    monitor_returns: np.ndarray | None = None

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
        """Undiscounted return of each episode (B, K), in float64.

        In float32 torch adds up neighbouring episodes in different orders, and equal rewards give different returns.
        """
        return self.rewards.sum(dim=0, dtype=th.float64)

    @property
    def lengths(self) -> th.Tensor:
        """Number of valid steps of each episode (B, K)."""
        return self.mask.sum(dim=0)

    @property
    def valid(self) -> np.ndarray:
        """Whether each episode counts, which it does unless its simulation diverged (B, K)."""
        return np.asarray(self.mask[0].numpy() > 0.0)

    def first_episodes(self, n: int) -> "Rollout":
        """Select the first ``n`` episodes of each task.

        :param n: number of episodes, at most K
        :return: rollout with n episodes of each task
        """
        distribution = type(self.distribution)(*(part[:, :, :n] for part in self.distribution))
        steps = {name: getattr(self, name)[:, :, :n] for name in STEP_FIELDS}
        episodes = {name: getattr(self, name)[:, :n] for name in ("latents", "noise", "success")}
        return replace(self, distribution=distribution, monitor_returns=None, **steps, **episodes)

    def at_tasks(self, tasks: slice) -> "Rollout":
        """Select some of the tasks, without copying.

        :param tasks: slice of the B tasks
        :return: rollout of these tasks
        """
        # a log std that all tasks share has a task dimension of 1
        parts = (part if part.shape[1] == 1 else part[:, tasks] for part in self.distribution)
        steps = {name: getattr(self, name)[:, tasks] for name in STEP_FIELDS}
        episodes = {name: getattr(self, name)[tasks] for name in ("latents", "noise", "success")}
        return replace(self, distribution=type(self.distribution)(*parts), monitor_returns=None, **steps, **episodes)

    def every_nth_step(self, stride: int, spread: bool = False) -> "Rollout":
        """Select every ``stride``-th time step, as Fisher-vector products use it.

        :param stride: distance between selected steps, at least 1
        :param spread: whether each episode starts at a different phase of the stride, as in :class:`Thinning`
        :return: rollout of the selected steps
        """
        if stride == 1:
            return self
        chosen = Thinning(len(self.rewards), self.rewards.shape[2], stride, spread)
        # a log std, which does not depend on the state, has a time dimension of 1
        parts = (chosen(part) if part.shape[0] > 1 else part for part in self.distribution)
        thinned = {name: chosen(getattr(self, name)) for name in STEP_FIELDS if name != "mask"}
        mask = chosen(self.mask) * chosen.mask
        return replace(self, distribution=type(self.distribution)(*parts), mask=mask, **thinned)  # type: ignore[arg-type]  # fields of steps

    def summary(self) -> RolloutSummary:
        """Compute the statistics of the valid episodes.

        :return: returns, lengths and success
        """
        valid, returns = self.valid, self.returns.numpy()
        success = self.success[valid]
        if self.monitor_returns is not None:
            returns = np.where(np.isnan(self.monitor_returns), returns, self.monitor_returns)
        return RolloutSummary(
            returns[valid],
            self.lengths.numpy()[valid],
            success[~np.isnan(success)],
            valid.size,
            self.n_diverged,
        )


@dataclass(frozen=True)
class EpisodeBatch:
    """Whole-episode data of a rollout, sufficient for an update of the latent distributions alone.

    :param latents: latents z (B, K, L)
    :param noise: standard normal noise eps of the latents z = mean + std * eps (B, K, L)
    :param advantages: advantages of whole episodes, which the likelihood-ratio estimator credits to z (B, K)
    :param mask: 1 for a valid episode, else 0 (B, K)
    :param groups: group number of each task (B,); the k-th episodes of a group's tasks have the same latent; None if
        every task has episodes of its own
    :raises ValueError: if the shapes do not agree
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
        """Select some of the tasks, without copying.

        :param tasks: slice of the B tasks
        :return: data of these tasks
        """
        groups = None if self.groups is None else self.groups[tasks]
        return EpisodeBatch(self.latents[tasks], self.noise[tasks], self.advantages[tasks], self.mask[tasks], groups)


@dataclass(frozen=True)
class TaskBatch:
    """Rollout with its advantages.

    :param rollout: episodes of the tasks
    :param advantages: generalised advantages of the steps, not normalised (T, B, K)
    :param discounted_returns: discounted return from each step on (T, B, K)
    :param episode_advantages: discounted return of each whole episode minus the value of its first step (B, K);
        independent of the steps' lambda, because a latent acts until the end of the episode
    :param episode_mask: 1 for a valid episode, even if thinning has left none of its steps, else 0 (B, K)
    :param explained_variance: explained variance of the value baseline over the whole batch
    :raises ValueError: if the shapes do not agree
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
        """Whole-episode data of the rollout."""
        return EpisodeBatch(self.rollout.latents, self.rollout.noise, self.episode_advantages, self.episode_mask)

    @property
    def mean_lengths(self) -> th.Tensor:
        """Mean length of each task's valid episodes in steps, 0 for a task without any (B,)."""
        return self.rollout.mask.sum(dim=(0, 2)) / self.episode_mask.sum(dim=1).clamp(min=1.0)

    def every_nth_step(self, stride: int, spread: bool = False) -> "TaskBatch":
        """Select every ``stride``-th time step.

        :param stride: distance between selected steps, at least 1
        :param spread: whether each episode starts at a different phase of the stride, as in :class:`Thinning`
        :return: batch of the selected steps
        """
        chosen = Thinning(len(self.advantages), self.advantages.shape[2], stride, spread)
        steps = (chosen(self.advantages), chosen(self.discounted_returns))
        rollout = self.rollout.every_nth_step(stride, spread)
        return TaskBatch(rollout, *steps, self.episode_advantages, self.episode_mask, self.explained_variance)

    def at_tasks(self, tasks: slice) -> "TaskBatch":
        """Select some of the tasks, without copying.

        :param tasks: slice of the B tasks
        :return: data of these tasks
        """
        steps = (self.advantages[:, tasks], self.discounted_returns[:, tasks])
        episodes = (self.episode_advantages[tasks], self.episode_mask[tasks])
        return TaskBatch(self.rollout.at_tasks(tasks), *steps, *episodes, self.explained_variance)


@dataclass(frozen=True)
class MetaBatch:
    """All data of one meta-iteration.

    :param tasks: B tasks
    :param pre: pre-update data of each inner update in order, empty without inner updates; whole-episode data where the
        single steps are not needed any more
    :param post: post-update data
    :param pre_summaries: statistics of the pre-update rollouts
    :param acted: values of the B tasks that collected the data, before each inner update and after the last
    """

    tasks: Tasks
    pre: tuple[TaskBatch | EpisodeBatch, ...]
    post: TaskBatch
    pre_summaries: tuple[RolloutSummary, ...] = ()
    acted: tuple["Adapted", ...] = ()


def _at_most(values: th.Tensor, bound: float | None) -> th.Tensor:
    """Clamp values to an upper bound, if there is one."""
    return values if bound is None else values.clamp(max=bound)


@dataclass(frozen=True)
class StepSizes:
    """Learned step sizes of the inner update, one per latent dimension and parameter (MAESN, section 4.2).

    :param mean: step sizes of the latent mean (L,)
    :param log_std: step sizes of the latent log standard deviation (L,)
    :param log_temperature: log of the temperature of the reward-weighted update, a scalar
    :param theta: step sizes of the policy parameters, shaped like them; empty unless theta is adapted
    """

    mean: th.Tensor
    log_std: th.Tensor
    log_temperature: th.Tensor
    theta: NamedParameters

    def at_most(self, bound: float | None, log_std_bound: float | None) -> "StepSizes":
        """Clamp the step sizes of the latents to upper bounds.

        :param bound: upper bound on the step sizes of mean and log std; None for no bound
        :param log_std_bound: upper bound on the step sizes of the log std, which replaces ``bound`` unless it is None
        :return: step sizes, those of theta and the temperature unchanged
        """
        log_std_bound = bound if log_std_bound is None else log_std_bound
        return replace(self, mean=_at_most(self.mean, bound), log_std=_at_most(self.log_std, log_std_bound))

    def scaled(self, factor: float) -> "StepSizes":
        """Multiply all step sizes by a factor, and leave the temperature unchanged.

        :param factor: factor of the step sizes
        :return: scaled step sizes
        """
        theta = {name: factor * step_size for name, step_size in self.theta.items()}
        return StepSizes(factor * self.mean, factor * self.log_std, self.log_temperature, theta)


@dataclass(frozen=True)
class MetaParameters:
    """All parameters that the meta step changes, as values.

    :param theta: actor's parameters by name
    :param omega: latent distributions of all N training tasks, (N, L) each
    :param step_sizes: step sizes of the inner update
    """

    theta: NamedParameters
    omega: DiagGaussian
    step_sizes: StepSizes

    def leaves(self) -> list[th.Tensor]:
        """List all tensors in a fixed order.

        :return: tensors of theta, omega and the step sizes
        """
        step_sizes = self.step_sizes
        own = [*self.omega, step_sizes.mean, step_sizes.log_std, step_sizes.log_temperature]
        return [*self.theta.values(), *own, *step_sizes.theta.values()]

    def with_leaves(self, leaves: Sequence[th.Tensor]) -> "MetaParameters":
        """Build meta-parameters of the same structure from other tensors.

        :param leaves: tensors in the order of :meth:`leaves`
        :return: meta-parameters that consist of these tensors
        """
        n_theta = len(self.theta)
        mean, log_std, mean_step_size, log_std_step_size, log_temperature = leaves[n_theta : n_theta + 5]
        theta = dict(zip(self.theta, leaves[:n_theta], strict=True))
        theta_step_sizes = dict(zip(self.step_sizes.theta, leaves[n_theta + 5 :], strict=True))
        step_sizes = StepSizes(mean_step_size, log_std_step_size, log_temperature, theta_step_sizes)
        return MetaParameters(theta, DiagGaussian(mean, log_std), step_sizes)


class Adapted(NamedTuple):
    """Values of B tasks that an inner update changes.

    :param omega: latent distributions of the tasks, (B, L) each
    :param theta: policy parameters of each task with a leading B; None if all tasks share the unadapted theta
    """

    omega: DiagGaussian
    theta: NamedParameters | None

    def detached(self) -> "Adapted":
        """Return the values without their graph.

        :return: detached values
        """
        theta = None if self.theta is None else {name: value.detach() for name, value in self.theta.items()}
        return Adapted(DiagGaussian(*(value.detach() for value in self.omega)), theta)

    def at_tasks(self, tasks: slice) -> "Adapted":
        """Select some of the tasks.

        :param tasks: slice of the B tasks
        :return: values of these tasks
        """
        theta = None if self.theta is None else {name: value[tasks] for name, value in self.theta.items()}
        return Adapted(DiagGaussian(*(value[tasks] for value in self.omega)), theta)

    def with_value(self, other: "Adapted") -> "Adapted":
        """Replace the values and keep the derivatives.

        :param other: new values, constants
        :return: values of ``other`` with the graph of this object
        """

        def shift(graph: th.Tensor, value: th.Tensor) -> th.Tensor:
            """Return ``value`` with the derivatives of ``graph``."""
            return value + (graph - graph.detach())

        omega = DiagGaussian(*(shift(*pair) for pair in zip(self.omega, other.omega, strict=True)))
        if self.theta is None or other.theta is None:
            return Adapted(omega, None)
        return Adapted(omega, {name: shift(self.theta[name], other.theta[name]) for name in self.theta})

    @classmethod
    def join(cls, parts: Sequence["Adapted"]) -> "Adapted":
        """Concatenate the values of several groups of tasks, the inverse of :meth:`at_tasks`.

        :param parts: values of the groups in order; either all have a theta of their own, or none
        :return: values of all tasks
        """
        omega = DiagGaussian(*(th.cat(values) for values in zip(*(part.omega for part in parts), strict=True)))
        thetas = [part.theta for part in parts if part.theta is not None]
        if not thetas:
            return cls(omega, None)
        return cls(omega, {name: th.cat([theta[name] for theta in thetas]) for name in thetas[0]})


class ObjectiveValue(NamedTuple):
    """Meta-objective and its terms, scalars.

    :param objective: quantity that the meta step maximises
    :param surrogate: post-update importance-weighted advantage
    :param kl: mean KL between old and new post-update action distributions
    :param prior_kl: mean KL of the tasks' pre-update latent distributions from the prior
    """

    objective: th.Tensor
    surrogate: th.Tensor
    kl: th.Tensor
    prior_kl: th.Tensor


@dataclass(frozen=True)
class StepResult:
    """Outcome of a meta step.

    :param leaves: new parameters, equal to the old ones if the step was rejected
    :param accepted: whether the line search found a step; True for a step without a line search
    :param n_backtracks: number of times the line search shortened the step; None for a step without a line search
    :param before: objective and its terms at the old parameters
    :param after: objective and its terms at the new parameters
    """

    leaves: list[th.Tensor]
    accepted: bool
    n_backtracks: int | None
    before: ObjectiveValue
    after: ObjectiveValue
