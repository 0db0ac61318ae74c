"""Bayesian neural network with a fully factorised Gaussian posterior over its weights, as pure functions.

Equations refer to VIME (Houthooft et al. 2016, arXiv:1605.09674). All P weights of a network are one flat vector.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch as th

from sb3_maesn.common.distributions import LOG_SQRT_2PI


class WeightPosterior(NamedTuple):
    """Variational posterior q(theta; phi) of the weights, independent Gaussians N(mean, log(1 + exp(rho))^2).

    The variational parameters are phi = (mean, rho).

    :param mean: means of the weights (P,)
    :param rho: standard deviations of the weights before the softplus (P,)
    """

    mean: th.Tensor
    rho: th.Tensor

    @property
    def std(self) -> th.Tensor:
        """Standard deviations of the weights (P,)."""
        return th.nn.functional.softplus(self.rho)

    def weights(self, noise: th.Tensor) -> th.Tensor:
        """Draw weights by the reparameterisation mean + std * noise.

        :param noise: standard normal noise (S, P)
        :return: S draws of the weights (S, P)
        """
        return self.mean + self.std * noise

    def kl(self, other: "WeightPosterior") -> th.Tensor:
        """Compute KL(self || other) in closed form, Eq. 14.

        :param other: another distribution over the same weights
        :return: the KL in nats, a scalar
        """
        std, other_std = self.std, other.std
        ratio = (std / other_std).square()
        shift = ((self.mean - other.mean) / other_std).square()
        return 0.5 * (ratio + shift - 1.0 - ratio.log()).sum()

    def kl_curvature(self) -> "WeightPosterior":
        """Compute the diagonal of the Hessian of KL(q(phi') || q(phi)) at phi' = phi, Eq. 15.

        The other entries of the Hessian are 0.

        :return: second derivatives with respect to mean and rho, (P,) each
        """
        precision = self.std.pow(-2)
        return WeightPosterior(precision, 2.0 * th.sigmoid(self.rho).square() * precision)


def n_weights(sizes: Sequence[int]) -> int:
    """Count the weights of a network, biases included.

    :param sizes: units of each layer, input and output included
    :return: number of weights P
    """
    return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


def initial_posterior(sizes: Sequence[int], prior_std: float, generator: th.Generator) -> WeightPosterior:
    """Initialise a posterior: as wide as the prior, with the means of an ordinary random initialisation.

    The mean of a matrix entry is drawn from N(0, 1 / n_in), the mean of a bias is 0.

    :param sizes: units of each layer, input and output included
    :param prior_std: standard deviation of the prior N(0, prior_std^2) of every weight
    :param generator: random generator
    :return: the posterior
    """
    means = []
    for n_in, n_out in pairwise(sizes):
        means += [th.randn(n_in * n_out, generator=generator) / n_in**0.5, th.zeros(n_out)]
    mean = th.cat(means)
    return WeightPosterior(mean, prior(mean, prior_std).rho)


def prior(like: th.Tensor, std: float) -> WeightPosterior:
    """Make the prior N(0, std^2) of every weight.

    :param like: tensor that gives the number and the type of the weights (P,)
    :param std: standard deviation of every weight
    :return: the prior, in the form of a posterior
    """
    return WeightPosterior(th.zeros_like(like), th.full_like(like, std).expm1().log())


def predict(sizes: Sequence[int], weights: th.Tensor, inputs: th.Tensor) -> th.Tensor:
    """Evaluate S networks with ReLU hidden layers and a linear output.

    :param sizes: units of each layer, input and output included
    :param weights: weights of the networks (S, P)
    :param inputs: inputs, the same for all networks (N, n_in)
    :return: outputs (S, N, n_out)
    """
    features = inputs
    layers = list(_layers(sizes, weights))
    for index, (matrix, bias) in enumerate(layers):
        features = features @ matrix + bias  # (S, N, units)
        if index + 1 < len(layers):
            features = th.relu(features)
    return features


def _layers(sizes: Sequence[int], weights: th.Tensor) -> Iterator[tuple[th.Tensor, th.Tensor]]:
    """Iterate over the layers' matrices (S, n_in, n_out) and biases (S, 1, n_out)."""
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
    """Estimate E_q[log p(target | input, theta)] of each of N pairs from S draws of the weights.

    :param posterior: variational posterior q
    :param sizes: units of each layer, input and output included
    :param inputs: inputs (N, n_in)
    :param targets: targets (N, n_out)
    :param noise: standard normal noise of the draws, which all pairs share (S, P)
    :param likelihood_std: standard deviation of the targets around the network's output
    :return: expected log likelihoods in nats (N,)
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
    """Estimate the negative evidence lower bound (Eq. 10), divided by the number of pairs, on a batch of N pairs.

    :param posterior: variational posterior q
    :param sizes: units of each layer, input and output included
    :param inputs: inputs (N, n_in)
    :param targets: targets (N, n_out)
    :param noise: standard normal noise of the draws of the weights (S, P)
    :param likelihood_std: standard deviation of the targets around the network's output
    :param prior_std: standard deviation of the weights' prior
    :param n_data: number of pairs in the whole data set, of which the batch is a sample
    :return: the loss in nats, a scalar
    """
    fit = expected_log_likelihood(posterior, sizes, inputs, targets, noise, likelihood_std).mean()
    return posterior.kl(prior(posterior.mean, prior_std)) / n_data - fit
