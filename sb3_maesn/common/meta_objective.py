"""The meta-objective as a function of the meta-parameters: inner updates rerun with their graph, then the post-update
surrogate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian
from sb3_maesn.common.gauss_newton import Composition
from sb3_maesn.common.inner_update import (
    ActorFunction,
    InnerUpdate,
    apply_actor,
    balancing_prices,
    inner_update,
    sample_z,
    whole,
)
from sb3_maesn.common.objectives import (
    normalise_steps,
    policy_kl,
    prior_kl,
    standardised_task_rewards,
    surrogate,
)
from sb3_maesn.common.type_aliases import (
    Adapted,
    EpisodeBatch,
    MetaBatch,
    MetaParameters,
    ObjectiveValue,
    Rollout,
    StepSizes,
    TaskBatch,
)

ALL_TASKS = slice(None)
ROWS_OF_A_PART = 4096  # whose activations, 100 wide, are 1.6 MB a layer
MIN_PARTS = 2  # smaller ones cost more calls than the threads save
MIN_THINNED_STEPS = 10  # of a task's mean episode, however short it is


@dataclass(frozen=True)
class MetaObjective:
    """Eq. 2 of Gupta et al. 2018 on one meta-batch.

    :param spec: the inner update
    :param actor: the actor as a function of its parameters
    :param batch: the meta-iteration's data
    :param kl_coef: weight of the prior KL
    :param latent_kl_coef: weight of the latents' own KL, before and after the inner updates, in the trust region;
        bounds the step where the policy does not depend on its latent yet
    :param clip_range: of the ratios of a meta step without a trust region (PPO); None for no clipping
    :param exploration_coef: weight of E-MAML's term, which credits the actions before each inner update with the
        task's reward after the last (Stadie et al. 2018, arXiv:1803.01118)
    :param inner_kl_coef: weight of the mean KL between the policies that acted before the inner updates and what they
        become (ProMP: Rothfuss et al. 2019, arXiv:1810.06784, section 5)
    """

    spec: InnerUpdate
    actor: ActorFunction
    batch: MetaBatch
    kl_coef: float
    latent_kl_coef: float = 0.0
    clip_range: float | None = None
    exploration_coef: float = 0.0
    inner_kl_coef: float = 0.0

    def stride(self, subsampling: int) -> int:
        """Between the time steps on which Fisher products are made.

        :param subsampling: the same, if every task's episodes are long enough
        """
        batches = [self.batch.post, *(batch for batch in self.batch.pre if isinstance(batch, TaskBatch))]
        lengths = th.cat([batch.mean_lengths for batch in batches])
        lengths = lengths[lengths > 0.0]  # a task whose episodes have all diverged has no say
        shortest = int(lengths.min()) if len(lengths) else 0
        return min(subsampling, max(1, shortest // MIN_THINNED_STEPS))

    def parts(self, stride: int = 1) -> list[slice]:
        """The tasks in parts whose values add up to the whole, for several threads and small enough for their caches.

        :param stride: of the steps that are used
        """
        n_steps, n_tasks, n_episodes = self.batch.post.rollout.rewards.shape
        rows = -(-n_steps // stride) * n_episodes  # of a task
        size = max(1, min(ROWS_OF_A_PART // rows, -(-n_tasks // MIN_PARTS)))
        return [slice(start, min(start + size, n_tasks)) for start in range(0, n_tasks, size)]

    def adapt(self, params: MetaParameters, tasks: slice = ALL_TASKS, stride: int = 1) -> tuple[Adapted, Adapted]:
        """The tasks' values before and after all inner updates.

        :param params: the meta-parameters
        :param tasks: which of the B tasks
        :param stride: as in :meth:`path`
        """
        path = self.path(params, tasks, stride)
        return path[0], path[-1]

    def path(self, params: MetaParameters, tasks: slice = ALL_TASKS, stride: int = 1) -> list[Adapted]:
        """The tasks' values before each inner update and after the last.

        :param params: the meta-parameters
        :param tasks: which of the B tasks
        :param stride: above 1, the derivatives of theta's updates use every ``stride``-th pre-update step; the values
            are those that acted, so the meta-parameters must be so too
        """
        # tasks that divide their episodes among them need one another
        now = ALL_TASKS if self.spec.balance else tasks
        ids = th.as_tensor(self.batch.tasks.ids)[now]
        path = [Adapted(DiagGaussian(params.omega.mean[ids], params.omega.log_std[ids]), None)]
        for i, batch in enumerate(self.batch.pre):
            update = partial(inner_update, self.spec, self.actor, params.theta, params.step_sizes, path[-1])
            own = batch.at_tasks(now)
            if stride > 1 and self.spec.thins and isinstance(own, TaskBatch):
                thinned = update(own.every_nth_step(stride, spread=True))
                path.append(thinned.with_value(self.batch.acted[i + 1].at_tasks(now)))
            else:
                path.append(update(own, self._prices(i, params.step_sizes)))
        return [value.at_tasks(tasks) for value in path] if self.spec.balance else path

    def _prices(self, i: int, step_sizes: StepSizes) -> th.Tensor | None:
        """The balancing prices of the ``i``-th inner update, computed once for each temperature."""
        batch = self.batch.pre[i]
        if not self.spec.balance or not isinstance(batch, EpisodeBatch):
            return None
        key = (i, float(step_sizes.log_temperature.detach()))
        if key not in self._known_prices:  # two threads that come here at once find the same
            self._known_prices[key] = balancing_prices(self.spec, step_sizes, batch)
        return self._known_prices[key]

    @cached_property
    def _known_prices(self) -> dict[tuple[int, float], th.Tensor | None]:
        return {}

    @cached_property
    def _advantages(self) -> th.Tensor:
        """The post-update advantages, normalised (T, B, K)."""
        return normalise_steps(self.batch.post.advantages, self.batch.post.rollout.mask)

    @cached_property
    def _credit(self) -> th.Tensor:
        """The tasks' post-update rewards, as E-MAML credits them to pre-update actions (B,)."""
        return standardised_task_rewards(self.batch.post.rollout.rewards, self.batch.post.rollout.mask)

    def __call__(self, params: MetaParameters, tasks: slice = ALL_TASKS) -> ObjectiveValue:
        """The objective and its parts, or what some of the tasks contribute to them.

        :param params: the meta-parameters
        :param tasks: which of the B tasks
        """
        path = self.path(params, tasks)
        rollout = self.batch.post.rollout.at_tasks(tasks)
        share = self._share(rollout)
        parts = self._surrogate_and_kl(params, path[-1], rollout, self._advantages[:, tasks])
        gain, kl = (share * part for part in parts)
        prior = share * prior_kl(path[0].omega)
        return ObjectiveValue(gain - self.kl_coef * prior + share * self._before(params, path, tasks), gain, kl, prior)

    def _surrogate_and_kl(
        self, params: MetaParameters, adapted: Adapted, rollout: Rollout, advantages: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """The surrogate of a rollout, and the KL from the policies that acted in it."""
        new = self._distribution(params, adapted, rollout)
        log_prob = new.log_prob(rollout.actions)
        gain = surrogate(log_prob, rollout.log_prob, advantages, rollout.mask, self.clip_range)
        return gain, policy_kl(rollout.distribution, new, rollout.mask)

    def _before(self, params: MetaParameters, path: list[Adapted], tasks: slice) -> th.Tensor | float:
        """What the policies that act before the inner updates add to the objective."""
        if self.exploration_coef == 0.0 and self.inner_kl_coef == 0.0:
            return 0.0
        total: th.Tensor | float = 0.0
        for adapted, batch in zip(path, self.batch.pre, strict=False):  # the last of the path acts after them
            rollout = whole(batch).rollout.at_tasks(tasks)
            credit = self._credit[tasks].view(1, -1, 1).expand_as(rollout.mask)
            gain, kl = self._surrogate_and_kl(params, adapted, rollout, credit)
            total = total + self.exploration_coef * gain - self.inner_kl_coef / len(self.batch.pre) * kl
        return total

    def fisher_kl(self, params: MetaParameters, stride: int, tasks: slice = ALL_TASKS) -> Composition:
        """The trust region's KL on every ``stride``-th step, or what some of the tasks contribute to it, as a function
        of the distributions.

        :param params: the meta-parameters, those that acted: there the KL is zero
        :param stride: at least 1
        :param tasks: which of the B tasks
        """
        initial, adapted = self.adapt(params, tasks, stride)
        # an adapted theta needs all phases of an episode
        rollout = self.batch.post.rollout.at_tasks(tasks).every_nth_step(stride, spread=self.spec.thins)
        new = self._distribution(params, adapted, rollout)
        latents = [initial.omega, adapted.omega] if self.latent_kl_coef > 0.0 else []
        # KL between the latent distributions as they are and as they will be: zero, but with a Hessian
        here = [DiagGaussian(*(part.detach() for part in value)) for value in latents]

        def kl(parts: Sequence[th.Tensor]) -> th.Tensor:
            value = policy_kl(rollout.distribution, type(new)(*parts[: len(new)]), rollout.mask)
            for i, old in enumerate(here):
                first = len(new) + 2 * i
                value = value + self.latent_kl_coef * old.kl(DiagGaussian(*parts[first : first + 2])).mean()
            return self._share(rollout) * value

        return Composition([*new, *(part for value in latents for part in value)], kl)

    def _share(self, rollout: Rollout) -> float:
        """Weight of the mean over some of the tasks in the mean over all."""
        return rollout.rewards.shape[1] / self.batch.post.rollout.rewards.shape[1]

    def _distribution(self, params: MetaParameters, adapted: Adapted, rollout: Rollout) -> ActionDistribution:
        z = sample_z(adapted.omega, rollout.noise)
        return apply_actor(self.actor, params.theta, adapted, rollout.observations, z)
