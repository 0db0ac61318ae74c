"""The meta-objective as a function of the meta-parameters: inner updates rerun with their graph, then the post-update
surrogate.
"""

from dataclasses import dataclass
from functools import cached_property

import torch as th

from sb3_maesn.common.distributions import ActionDistribution, DiagGaussian
from sb3_maesn.common.inner_update import ActorFunction, InnerUpdate, apply_actor, inner_update, sample_z
from sb3_maesn.common.objectives import normalise_steps, policy_kl, prior_kl, surrogate
from sb3_maesn.common.type_aliases import Adapted, MetaBatch, MetaParameters, ObjectiveValue, Rollout, every_nth_step


@dataclass(frozen=True)
class MetaObjective:
    """Eq. 2 of Gupta et al. 2018 on one meta-batch.

    :param spec: the inner update
    :param actor: the actor as a function of its parameters
    :param batch: the meta-iteration's data
    :param kl_coef: weight of the prior KL
    :param latent_kl_coef: weight of the latents' own KL, before and after the inner updates, in the trust region;
        bounds the step where the policy does not depend on its latent yet
    """

    spec: InnerUpdate
    actor: ActorFunction
    batch: MetaBatch
    kl_coef: float
    latent_kl_coef: float = 0.0

    def adapt(self, params: MetaParameters) -> tuple[Adapted, Adapted]:
        """The tasks' values before and after all inner updates.

        :param params: the meta-parameters
        """
        ids = th.as_tensor(self.batch.tasks.ids)
        initial = Adapted(DiagGaussian(params.latents.mean[ids], params.latents.log_std[ids]), None)
        adapted = initial
        for batch in self.batch.pre:
            adapted = inner_update(self.spec, self.actor, params.policy, params.step_sizes, adapted, batch)
        return initial, adapted

    @cached_property
    def _advantages(self) -> th.Tensor:
        """The post-update advantages, normalised (T, B, K)."""
        return normalise_steps(self.batch.post.advantages, self.batch.post.rollout.mask)

    def __call__(self, params: MetaParameters) -> ObjectiveValue:
        """The objective and its parts.

        :param params: the meta-parameters
        """
        initial, adapted = self.adapt(params)
        rollout = self.batch.post.rollout
        new = self._post_distribution(params, adapted, rollout)
        gain = surrogate(new.log_prob(rollout.actions), rollout.log_prob, self._advantages, rollout.mask)
        kl = policy_kl(rollout.distribution, new, rollout.mask)
        prior = prior_kl(initial.latents)
        return ObjectiveValue(gain - self.kl_coef * prior, gain, kl, prior)

    def fisher_kl(self, params: MetaParameters, stride: int) -> th.Tensor:
        """The trust region's KL on every ``stride``-th post-update step.

        :param params: the meta-parameters
        :param stride: at least 1
        """
        initial, adapted = self.adapt(params)
        rollout = every_nth_step(self.batch.post.rollout, stride)
        kl = policy_kl(rollout.distribution, self._post_distribution(params, adapted, rollout), rollout.mask)
        if self.latent_kl_coef == 0.0:
            return kl
        before, after = (_kl_from_here(value.latents) for value in (initial, adapted))
        return kl + self.latent_kl_coef * (before + after)

    def _post_distribution(self, params: MetaParameters, adapted: Adapted, rollout: Rollout) -> ActionDistribution:
        z = sample_z(adapted.latents, rollout.noise)
        return apply_actor(self.actor, params.policy, adapted, rollout.observations, z)


def _kl_from_here(latents: DiagGaussian) -> th.Tensor:
    """Mean KL between the latent distributions as they are and as they will be: zero, but with a Hessian."""
    return DiagGaussian(*(part.detach() for part in latents)).kl(latents).mean()
