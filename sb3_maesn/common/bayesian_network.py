"""A Bayesian neural network as pure functions: fully factorised Gaussian weights and their variational posterior.

Equations refer to VIME (Houthooft et al. 2016, arXiv:1605.09674). All P weights of a network are one flat vector.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch as th

from sb3_maesn.common.distributions import LOG_SQRT_2PI


class WeightPosterior(NamedTuple):
    """q(theta; phi), independent Gaussians N(mean, log(1 + exp(rho))^2) over the weights; phi = (mean, rho).

    :param mean: (P,)
    :param rho: (P,)
    """

    mean: th.Tensor
    rho: th.Tensor

    @property
    def std(self) -> th.Tensor:
        """Standard deviations of the weights (P,)."""
        return th.nn.functional.softplus(self.rho)

    def weights(self, noise: th.Tensor) -> th.Tensor:
        """Reparameterised draws.

        :param noise: standard normal (S, P)
        :return: (S, P)
        """
        return self.mean + self.std * noise

    def kl(self, other: "WeightPosterior") -> th.Tensor:
        """KL(self || other), Eq. 14.

        :param other: over the same weights
        """
        std, other_std = self.std, other.std
        ratio = (std / other_std).square()
        shift = ((self.mean - other.mean) / other_std).square()
        return 0.5 * (ratio + shift - 1.0 - ratio.log()).sum()

    def kl_curvature(self) -> "WeightPosterior":
        """Diagonal of the Hessian of KL(q(phi') || q(phi)) at phi' = phi, Eq. 15; its other entries are 0.

        :return: second derivatives by mean and by rho, (P,) each
        """
        precision = self.std.pow(-2)
        return WeightPosterior(precision, 2.0 * th.sigmoid(self.rho).square() * precision)


def n_weights(sizes: Sequence[int]) -> int:
    """Number of weights P, biases included.

    :param sizes: units of each layer, input and output included
    """
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


def initial_posterior(sizes: Sequence[int], prior_std: float, generator: th.Generator) -> WeightPosterior:
    """A posterior as wide as the prior, around the usual random initialisation of a network.

    :param sizes: units of each layer, input and output included
    :param prior_std: standard deviation of the prior N(0, prior_std^2) of every weight
    :param generator: source of the means
    """
    means = []
    for n_in, n_out in pairwise(sizes):
        means += [th.randn(n_in * n_out, generator=generator) / n_in**0.5, th.zeros(n_out)]
    mean = th.cat(means)
    return WeightPosterior(mean, prior(mean, prior_std).rho)


def prior(like: th.Tensor, std: float) -> WeightPosterior:
    """N(0, std^2) for every weight.

    :param like: a tensor (P,)
    :param std: standard deviation
    """
    return WeightPosterior(th.zeros_like(like), th.full_like(like, std).expm1().log())


def predict(sizes: Sequence[int], weights: th.Tensor, inputs: th.Tensor) -> th.Tensor:
    """Outputs of S networks with rectified hidden units.

    :param sizes: units of each layer, input and output included
    :param weights: (S, P)
    :param inputs: (N, n_in)
    :return: (S, N, n_out)
    """
    features = inputs
    layers = list(_layers(sizes, weights))
    for index, (matrix, bias) in enumerate(layers):
        features = features @ matrix + bias  # (S, N, units)
        if index + 1 < len(layers):
            features = th.relu(features)
    return features


def _layers(sizes: Sequence[int], weights: th.Tensor) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """Matrix (S, n_in, n_out) and bias (S, 1, n_out) of each layer."""
    start = 0
    for n_in, n_out in pairwise(sizes):
        end = start + n_in * n_out
        matrix = weights[:, start:end].reshape(-1, n_in, n_out)  # (S, n_in * n_out) -> (S, n_in, n_out)
        start = end + n_out
        yield matrix, weights[:, end:start].unsqueeze(1)


def expected_log_likelihood(
    posterior: WeightPosterior,
    sizes: Sequence[int],
    inputs: th.Tensor,
    targets: th.Tensor,
    noise: th.Tensor,
    likelihood_std: float,
) -> th.Tensor:
    """E_q[log p(target | input, theta)] of each of N pairs, over S draws of the weights.

    :param posterior: q
    :param sizes: units of each layer, input and output included
    :param inputs: (N, n_in)
    :param targets: (N, n_out)
    :param noise: standard normal (S, P), one draw for all pairs
    :param likelihood_std: standard deviation of the targets around the network's output
    :return: (N,)
    """
    error = (targets - predict(sizes, posterior.weights(noise), inputs)) / likelihood_std  # (S, N, n_out)
    constant = targets.shape[-1] * (LOG_SQRT_2PI + th.tensor(likelihood_std, dtype=error.dtype).log())
    return -0.5 * error.square().sum(dim=-1).mean(dim=0) - constant


def variational_loss(
    posterior: WeightPosterior,
    sizes: Sequence[int],
    inputs: th.Tensor,
    targets: th.Tensor,
    noise: th.Tensor,
    likelihood_std: float,
    prior_std: float,
    n_data: int,
) -> th.Tensor:
    """The negative evidence lower bound (Eq. 10) per pair of the data, estimated on a batch of them.

    :param posterior: q
    :param sizes: units of each layer, input and output included
    :param inputs: (N, n_in)
    :param targets: (N, n_out)
    :param noise: standard normal (S, P)
    :param likelihood_std: standard deviation of the targets around the network's output
    :param prior_std: of the weights
    :param n_data: number of all pairs, of which the batch is a sample
    """
    fit = expected_log_likelihood(posterior, sizes, inputs, targets, noise, likelihood_std).mean()
    return posterior.kl(prior(posterior.mean, prior_std)) / n_data - fit
