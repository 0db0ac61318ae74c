"""Action distributions as immutable values: tensors in, tensors out.

SB3's ``Distribution`` objects are mutable and draw from the global generator. A meta-gradient needs old and new
distributions side by side and a generator of its own, so the two supported kinds are small tuples of tensors here.
"""

import math
from typing import NamedTuple, TypeAlias

import torch as th
from gymnasium import spaces

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class DiagGaussian(NamedTuple):
    """Independent Gaussians over the last dimension.

    :param mean: means (..., A)
    :param log_std: log standard deviations, broadcastable to ``mean``
    """

    mean: th.Tensor
    log_std: th.Tensor

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """Compute the log density, summed over the last dimension.

        :param value: values (..., A)
        :return: log densities (...)
        """
        standardised = (value - self.mean) * th.exp(-self.log_std)
        return -(0.5 * standardised.square() + self.log_std + LOG_SQRT_2PI).sum(dim=-1)

    def kl(self, other: "DiagGaussian") -> th.Tensor:
        """Compute KL(self || other) in nats, summed over the last dimension.

        :param other: second distribution (..., A)
        :return: KL divergences (...)
        """
        variance_ratio = th.exp(2.0 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * th.exp(-other.log_std)).square()
        return 0.5 * (variance_ratio + shift - 1.0 - 2.0 * (self.log_std - other.log_std)).sum(dim=-1)

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        """Draw one value from each distribution.

        :param generator: source of the draws; None for torch's global generator
        :return: values (..., A)
        """
        noise = th.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return self.mean + th.exp(self.log_std) * noise


class Categorical(NamedTuple):
    """Distribution over A discrete actions.

    :param logits: unnormalised log probabilities (..., A)
    """

    logits: th.Tensor

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """Compute the log probability of actions.

        :param value: actions, integers (...)
        :return: log probabilities (...)
        """
        log_probabilities = th.log_softmax(self.logits, dim=-1)
        return log_probabilities.gather(-1, value.long().unsqueeze(-1)).squeeze(-1)

    def kl(self, other: "Categorical") -> th.Tensor:
        """Compute KL(self || other) in nats.

        :param other: second distribution (..., A)
        :return: KL divergences (...)
        """
        log_p, log_q = th.log_softmax(self.logits, dim=-1), th.log_softmax(other.logits, dim=-1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1)

    def sample(self, generator: th.Generator | None = None) -> th.Tensor:
        """Draw one action from each distribution.

        :param generator: source of the draws; None for torch's global generator
        :return: actions, integers (...)
        """
        probabilities = th.softmax(self.logits, dim=-1).flatten(0, -2)  # (N, A)
        draws = th.multinomial(probabilities, num_samples=1, generator=generator)  # (N, 1)
        return draws.reshape(self.logits.shape[:-1])  # (...)


ActionDistribution: TypeAlias = DiagGaussian | Categorical


def check_action_space(action_space: spaces.Space) -> None:
    """Raise an error for an action space that no distribution of this module supports.

    :param action_space: action space of the environment
    :raises ValueError: unless it is a Box, or a Discrete space that starts at 0
    """
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"expected a Box or Discrete action space, got {action_space}")
    if isinstance(action_space, spaces.Discrete) and action_space.start != 0:
        raise ValueError(f"expected a Discrete action space that starts at 0, got {action_space}")
