"""Meta-parameters other than the policy's, as a module that SB3 saves beside the policy."""

from collections.abc import Mapping

import torch as th
from torch import nn

from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.policies import LatentActor
from sb3_maesn.common.type_aliases import MetaParameters, StepSizes


class TaskLatents(nn.Module):
    """Latent distributions of all training tasks, and the step sizes of the inner update.

    :param n_tasks: number of training tasks, N
    :param latent_dim: number of latent dimensions, L
    :param adapted_policy: policy parameters that the inner update changes; empty if it changes none
    :param mean_init_std: standard deviation of the normal distribution from which the initial means are drawn
    :param step_size_init: initial step size of mean and log std
    :param policy_step_size_init: initial step size of each policy parameter
    :param temperature_init: initial temperature of the reward-weighted update
    :param generator: source of the initial means
    """

    def __init__(
        self,
        n_tasks: int,
        latent_dim: int,
        adapted_policy: Mapping[str, th.Tensor],
        mean_init_std: float,
        step_size_init: float,
        policy_step_size_init: float,
        temperature_init: float,
        generator: th.Generator,
    ):
        super().__init__()
        self.mean = nn.Parameter(mean_init_std * th.randn(n_tasks, latent_dim, generator=generator))
        self.log_std = nn.Parameter(th.zeros(n_tasks, latent_dim))
        self.mean_step = nn.Parameter(th.full((latent_dim,), step_size_init))
        self.log_std_step = nn.Parameter(th.full((latent_dim,), step_size_init))
        self.log_temperature = nn.Parameter(th.tensor(temperature_init).log())
        self.policy_names = tuple(adapted_policy)
        self.policy_steps = nn.ParameterList(
            th.full_like(value, policy_step_size_init) for value in adapted_policy.values()
        )

    def step_sizes(self) -> StepSizes:
        """Return the step sizes as values without a graph.

        :return: step sizes and temperature
        """
        theta = dict(zip(self.policy_names, (step_size.detach() for step_size in self.policy_steps), strict=True))
        return StepSizes(self.mean_step.detach(), self.log_std_step.detach(), self.log_temperature.detach(), theta)


def read_parameters(actor: LatentActor, latents: TaskLatents) -> MetaParameters:
    """Read all meta-parameters as values without a graph.

    :param actor: module that holds theta
    :param latents: module that holds the other meta-parameters
    :return: meta-parameters, which share the modules' memory
    """
    theta = {name: value.detach() for name, value in actor.named_parameters()}
    return MetaParameters(theta, DiagGaussian(latents.mean.detach(), latents.log_std.detach()), latents.step_sizes())


def holders(actor: LatentActor, latents: TaskLatents) -> list[nn.Parameter]:
    """List the modules' parameters in the order of :meth:`MetaParameters.leaves`.

    :param actor: module that holds theta
    :param latents: module that holds the other meta-parameters
    :return: parameters of both modules
    """
    own = [latents.mean, latents.log_std, latents.mean_step, latents.log_std_step, latents.log_temperature]
    return [*actor.parameters(), *own, *latents.policy_steps]


def write_parameters(actor: LatentActor, latents: TaskLatents, params: MetaParameters) -> None:
    """Write meta-parameters into the modules that hold them.

    :param actor: module that holds theta
    :param latents: module that holds the other meta-parameters
    :param params: meta-parameters to write
    """
    with th.no_grad():
        for holder, value in zip(holders(actor, latents), params.leaves(), strict=True):
            holder.copy_(value)
