"""Gradient steps on an objective whose gradient is known."""

from collections.abc import Sequence

import pytest
import torch as th
from torch import nn

from sb3_maesn.common.gradient_steps import gradient_steps
from sb3_maesn.common.type_aliases import ObjectiveValue


def evaluate(leaves: Sequence[th.Tensor]) -> ObjectiveValue:
    """3 x - x^2 for each number of the first leaf; the second has no effect."""
    gain = (3.0 * leaves[0] - leaves[0].square()).sum()
    zero = th.zeros(())
    return ObjectiveValue(gain, gain, zero, zero)


def test_every_step_follows_the_gradient_where_it_is() -> None:
    parameters = [nn.Parameter(th.zeros(2)), nn.Parameter(th.ones(1))]
    result = gradient_steps([evaluate] * 2, parameters, th.optim.SGD(parameters, lr=0.1), n_steps=2)
    assert parameters[0].tolist() == pytest.approx([0.96, 0.96])  # 0.1 * 2 * 3, then 0.1 * 2 * (3 - 2 * 0.6) more
    assert [leaf.tolist() for leaf in result.leaves] == [leaf.tolist() for leaf in parameters]
    assert parameters[1].item() == 1.0
    assert (result.accepted, result.n_backtracks) == (True, None)
    assert result.before.objective.item() == 0.0
    assert result.after.objective.item() == pytest.approx(2 * 2 * (3 * 0.96 - 0.96**2))


def test_only_what_the_optimiser_has_moves_and_nothing_by_old_gradients() -> None:
    parameters = [nn.Parameter(th.zeros(2)), nn.Parameter(th.zeros(2))]
    other = nn.Parameter(th.ones(1))
    other.grad = th.ones(1)
    optimizer = th.optim.SGD([parameters[1], other], lr=0.1)
    gradient_steps([lambda leaves: evaluate(leaves[::-1])], parameters, optimizer, n_steps=1)
    assert parameters[0].tolist() == [0.0, 0.0]
    assert parameters[1].tolist() == pytest.approx([0.3, 0.3])
    assert other.item() == 1.0
