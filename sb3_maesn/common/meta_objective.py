"""The meta-objective as a function of the meta-parameters.

Every evaluation repeats the inner updates, with their graph where gradients are enabled, before it computes the
post-update surrogate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch as th

from sb3_maesn.common.balancing import Prices
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
ROWS_OF_A_PART = 4096  # at most, unless one task has more; the activations of a layer of 100 units then take 1.6 MB
MIN_PARTS = 2  # more parts than this and the cache require cost more in calls than threads save
MIN_THINNED_STEPS = 10  # that thinning leaves of a task's mean episode


@dataclass(frozen=True)
class MetaObjective:
    """Meta-objective on one meta-batch (Gupta et al. 2018, arXiv:1802.07245, Eq. 2).

    :param spec: settings of the inner update
    :param actor: actor as a function of its parameters
    :param batch: data of the meta-iteration
    :param kl_coef: weight of the prior KL
    :param latent_kl_coef: weight, in the trust region, of the KL between old and new latent distributions before and
        after the inner updates; it bounds the step while the policy hardly depends on its latent
    :param clip_range: clip range of the probability ratios in a meta step without a trust region (PPO); None for no
        clipping
    :param exploration_coef: weight of E-MAML's term, which credits the actions before each inner update with the task's
        post-update reward (Stadie et al. 2018, arXiv:1803.01118)
    :param inner_kl_coef: weight of the mean KL from the policies that acted before each inner update to the same
        policies at the new meta-parameters (ProMP: Rothfuss et al. 2019, arXiv:1810.06784, section 5)
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
        """Compute the stride of the time steps used in Fisher-vector products.

        :param subsampling: requested stride; reduced so that every task's mean episode keeps ``MIN_THINNED_STEPS``
            steps
        :return: stride, at least 1
        """
        batches = [self.batch.post, *(batch for batch in self.batch.pre if isinstance(batch, TaskBatch))]
        lengths = th.cat([batch.mean_lengths for batch in batches])
        lengths = lengths[lengths > 0.0]  # leave out tasks whose episodes have all diverged
        shortest = int(lengths.min()) if len(lengths) else 0
        return min(subsampling, max(1, shortest // MIN_THINNED_STEPS))

    def parts(self, stride: int = 1) -> list[slice]:
        """Split the B tasks into slices whose contributions add up to the whole.

        There are several slices, so that threads can share the work, and each is small enough for a core's cache.

        :param stride: stride of the time steps that are used
        :return: consecutive slices of the tasks
        """
        n_steps, n_tasks, n_episodes = self.batch.post.rollout.rewards.shape
        rows = -(-n_steps // stride) * n_episodes  # per task
        size = max(1, min(ROWS_OF_A_PART // rows, -(-n_tasks // MIN_PARTS)))
        return [slice(start, min(start + size, n_tasks)) for start in range(0, n_tasks, size)]

    def adapt(self, params: MetaParameters, tasks: slice = ALL_TASKS, stride: int = 1) -> tuple[Adapted, Adapted]:
        """Compute the tasks' values before the first and after the last inner update.

        :param params: meta-parameters
        :param tasks: slice of the B tasks
        :param stride: stride of the pre-update steps, with the restriction that :meth:`path` states
        :return: values before the first and after the last inner update
        """
        path = self.path(params, tasks, stride)
        return path[0], path[-1]

    def path(self, params: MetaParameters, tasks: slice = ALL_TASKS, stride: int = 1) -> list[Adapted]:
        """Compute the tasks' values before each inner update and after the last.

        :param params: meta-parameters
        :param tasks: slice of the B tasks
        :param stride: stride of the pre-update steps from which the derivatives of theta's updates are computed; a
            stride above 1 is correct only at the meta-parameters that collected the batch, because the values are taken
            from the collection
        :return: values before each inner update and after the last, in order
        """
        # the balanced update of one task depends on all tasks
        needed = ALL_TASKS if self.spec.balance else tasks
        ids = th.as_tensor(self.batch.tasks.ids)[needed]
        path = [Adapted(DiagGaussian(params.omega.mean[ids], params.omega.log_std[ids]), None)]
        for i, batch in enumerate(self.batch.pre):
            update = partial(inner_update, self.spec, self.actor, params.theta, params.step_sizes, path[-1])
            data = batch.at_tasks(needed)
            if stride > 1 and self.spec.thins and isinstance(data, TaskBatch):
                thinned = update(data.every_nth_step(stride, spread=True))
                path.append(thinned.with_value(self.batch.acted[i + 1].at_tasks(needed)))
            else:
                path.append(update(data, self._prices(i, params.step_sizes)))
        return [value.at_tasks(tasks) for value in path] if self.spec.balance else path

    def _prices(self, i: int, step_sizes: StepSizes) -> Prices | None:
        """Return the balancing prices of the ``i``-th inner update, computed once for each temperature."""
        batch = self.batch.pre[i]
        if not self.spec.balance or not isinstance(batch, EpisodeBatch):
            return None
        key = (i, float(step_sizes.log_temperature.detach()))
        if key not in self._known_prices:  # a race between threads is harmless: both compute the same prices
            self._known_prices[key] = balancing_prices(self.spec, step_sizes, batch)
        return self._known_prices[key]

    @cached_property
    def _known_prices(self) -> dict[tuple[int, float], Prices | None]:
        """Balancing prices by the number of the inner update and the log temperature."""
        return {}

    @cached_property
    def _advantages(self) -> th.Tensor:
        """Normalised post-update advantages (T, B, K)."""
        return normalise_steps(self.batch.post.advantages, self.batch.post.rollout.mask)

    @cached_property
    def _credit(self) -> th.Tensor:
        """Standardised post-update rewards of the tasks, which E-MAML credits to pre-update actions (B,)."""
        return standardised_task_rewards(self.batch.post.rollout.rewards, self.batch.post.rollout.mask)

    def __call__(self, params: MetaParameters, tasks: slice = ALL_TASKS) -> ObjectiveValue:
        """Evaluate the objective and its terms, or the contribution of some tasks to them.

        :param params: meta-parameters
        :param tasks: slice of the B tasks
        :return: objective and its terms, scalars
        """
        path = self.path(params, tasks)
        rollout = self.batch.post.rollout.at_tasks(tasks)
        share = self._share(rollout)
        parts = self._surrogate_and_kl(params, path[-1], rollout, self._advantages[:, tasks])
        gain, kl = (share * part for part in parts)
        prior = share * prior_kl(path[0].omega)
        return ObjectiveValue(
            gain - self.kl_coef * prior + share * self._pre_update_terms(params, path, tasks), gain, kl, prior
        )

    def _surrogate_and_kl(
        self, params: MetaParameters, adapted: Adapted, rollout: Rollout, advantages: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """Compute a rollout's surrogate, and the KL from the policies that acted in it to the new ones."""
        new = self._distribution(params, adapted, rollout)
        log_prob = new.log_prob(rollout.actions)
        gain = surrogate(log_prob, rollout.log_prob, advantages, rollout.mask, self.clip_range)
        return gain, policy_kl(rollout.distribution, new, rollout.mask)

    def _pre_update_terms(self, params: MetaParameters, path: list[Adapted], tasks: slice) -> th.Tensor | float:
        """Compute the terms that the pre-update policies add to the objective (E-MAML and ProMP)."""
        if self.exploration_coef == 0.0 and self.inner_kl_coef == 0.0:
            return 0.0
        total: th.Tensor | float = 0.0
        for adapted, batch in zip(path, self.batch.pre, strict=False):  # the last entry of the path is post-update
            rollout = whole(batch).rollout.at_tasks(tasks)
            credit = self._credit[tasks].view(1, -1, 1).expand_as(rollout.mask)
            gain, kl = self._surrogate_and_kl(params, adapted, rollout, credit)
            total = total + self.exploration_coef * gain - self.inner_kl_coef / len(self.batch.pre) * kl
        return total

    def fisher_kl(self, params: MetaParameters, stride: int, tasks: slice = ALL_TASKS) -> Composition:
        """Compute the trust region's KL, or the contribution of some tasks to it, as a function of distributions.

        :param params: meta-parameters, which must be those that collected the batch: only there is the KL at its
            minimum of zero
        :param stride: stride of the time steps that are used, at least 1
        :param tasks: slice of the B tasks
        :return: new action and latent distributions, composed with the KL from the old ones to them
        """
        initial, adapted = self.adapt(params, tasks, stride)
        # where theta is adapted, all phases of the episodes must be represented
        rollout = self.batch.post.rollout.at_tasks(tasks).every_nth_step(stride, spread=self.spec.thins)
        new = self._distribution(params, adapted, rollout)
        moved = [] if adapted is initial else [adapted.omega]  # no inner update, as in LatentSpace, moves nothing
        omegas = [initial.omega, *moved] if self.latent_kl_coef > 0.0 else []
        # the KL from the current latent distributions to the new ones is zero here, but its Hessian is not
        old_omegas = [DiagGaussian(*(part.detach() for part in omega)) for omega in omegas]

        def kl(parts: Sequence[th.Tensor]) -> th.Tensor:
            value = policy_kl(rollout.distribution, type(new)(*parts[: len(new)]), rollout.mask)
            for i, old_omega in enumerate(old_omegas):
                first = len(new) + 2 * i
                value = value + self.latent_kl_coef * old_omega.kl(DiagGaussian(*parts[first : first + 2])).mean()
            return self._share(rollout) * value

        return Composition([*new, *(part for omega in omegas for part in omega)], kl)

    def _share(self, rollout: Rollout) -> float:
        """Return the weight of the mean over some tasks in the mean over all tasks."""
        return rollout.rewards.shape[1] / self.batch.post.rollout.rewards.shape[1]

    def _distribution(self, params: MetaParameters, adapted: Adapted, rollout: Rollout) -> ActionDistribution:
        """Compute the action distributions of adapted policies at a rollout's observations."""
        z = sample_z(adapted.omega, rollout.noise)
        return apply_actor(self.actor, params.theta, adapted, rollout.observations, z)
