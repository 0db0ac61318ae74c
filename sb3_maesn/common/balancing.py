"""Even division of shared episodes among tasks: Sinkhorn's iteration, and the derivative of its result."""

import math
from typing import NamedTuple

import torch as th

BALANCE_TOLERANCE, MAX_BALANCE_ITERATIONS = 0.05, 1000  # the tolerance is in the log of an episode's total weight
NEVER = -1e30
"""Log weight that a softmax turns into 0; finite, so that the softmax of such values alone is not NaN."""
RIDGE = 1e-6  # of the mean use, added to the diagonal of the linear system of the slope


class Prices(NamedTuple):
    """Prices of shared episodes in the neighbourhood of one temperature.

    :param value: prices at that temperature, equal for all tasks of a group (B, K)
    :param slope: their derivative in the log temperature (B, K)
    """

    value: th.Tensor
    slope: th.Tensor

    def at(self, log_temperature: th.Tensor) -> th.Tensor:
        """Give the prices their derivative in the log temperature.

        :param log_temperature: log of the temperature at which they were computed, a scalar
        :return: the prices, with a graph if the temperature has one (B, K)
        """
        return self.value + self.slope * (log_temperature - log_temperature.detach())


def episode_prices(advantages: th.Tensor, log_temperature: th.Tensor, mask: th.Tensor, groups: th.Tensor) -> Prices:
    """Compute the prices for which softmax weights use every shared episode equally.

    The weights are softmax(A / temperature - price) over the episodes of each task. The method is Sinkhorn's iteration
    (Cuturi 2013, arXiv:1306.0895). It stops when the log of every episode's total weight is within
    ``BALANCE_TOLERANCE`` of its target, or after ``MAX_BALANCE_ITERATIONS``, which only scores that lie far apart need.
    The derivative is that of the equations that the prices solve (the implicit function theorem).

    :param advantages: normalised advantages of the episodes (B, K)
    :param log_temperature: log of the softmax's temperature, a scalar
    :param mask: 1 for a valid episode, else 0 (B, K); tasks without a valid episode, and the k-th episodes if none of
        them is valid, take no part and have price 0
    :param groups: group number of each task (B,); the k-th episodes of a group's tasks have the same latent
    :return: prices and their slopes, without a graph
    """
    value, slope = th.zeros_like(advantages), th.zeros_like(advantages)
    with th.no_grad():
        known = mask > 0.0
        scores = (advantages * th.exp(-log_temperature)).masked_fill(~known, NEVER)
        for group in groups.unique():
            members = (groups == group) & known.any(dim=1)  # (B,)
            valid = known[members].any(dim=0)  # (K,)
            shared = scores[members][:, valid]  # (n, m)
            if shared.numel():
                place = members.nonzero(), valid.nonzero().T
                value[place] = price = _balancing_price(shared)
                slope[place] = _price_slope(shared, price)
    return Prices(value, slope)


def _balancing_price(scores: th.Tensor) -> th.Tensor:
    """Compute the column prices for which softmax weights over the rows use all columns equally.

    :param scores: unnormalised log weights (n, m)
    :return: prices (1, m)
    """
    log_equal_use = math.log(scores.shape[0] / scores.shape[1])
    price = th.zeros_like(scores[:1])
    for _ in range(MAX_BALANCE_ITERATIONS):
        excess = th.logsumexp(th.log_softmax(scores - price, dim=1), dim=0) - log_equal_use  # (m,)
        if excess.abs().max() < BALANCE_TOLERANCE:
            break
        price = price + excess
    return price


def _price_slope(scores: th.Tensor, price: th.Tensor) -> th.Tensor:
    """Compute the derivative of the balancing prices in the log temperature, in which the scores fall by themselves.

    Let w be the weights (n, m). The use of column k, u_k = sum_i w_ik, must not change:
    diag(u) dp - w^T w dp = sum_i w_ik (ds_ik - sum_j w_ij ds_ij), where ds = -s. A shift of all prices changes nothing,
    so the slope with mean 0 is taken.

    :param scores: unnormalised log weights (n, m)
    :param price: balancing prices (1, m)
    :return: slopes (1, m)
    """
    weights = th.softmax(scores - price, dim=1).double()  # (n, m)
    changes = -scores.double()
    forcing = (weights * (changes - (weights * changes).sum(dim=1, keepdim=True))).sum(dim=0)  # (m,)
    use = weights.sum(dim=0)  # (m,)
    system = th.diag(use * (1.0 + RIDGE)) - weights.T @ weights + use.mean() / len(use)
    return th.linalg.solve(system, forcing).to(scores.dtype).unsqueeze(0)
