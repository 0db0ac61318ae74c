"""The meta step without a trust region: a few gradient steps on one batch, as in PPO."""

from collections.abc import Sequence
from functools import partial

import torch as th
from torch import nn

from sb3_maesn.common.parallel import Workers
from sb3_maesn.common.trust_region import Evaluate, add_up, unflatten, value_and_gradient
from sb3_maesn.common.type_aliases import ObjectiveValue, StepResult


def gradient_steps(
    evaluate: Sequence[Evaluate[ObjectiveValue]],
    parameters: Sequence[nn.Parameter],
    optimizer: th.optim.Optimizer,
    n_steps: int,
) -> StepResult:
    """Maximise the objective by gradient steps, which change the parameters in place.

    :param evaluate: objective and its terms, as functions of the parameters whose values add up
    :param parameters: parameters of the objective; only those that the optimiser holds are changed
    :param optimizer: optimiser, whose state persists across steps and batches
    :param n_steps: number of steps, at least 1
    :return: new parameters and outcome of the step
    """
    values = []
    optimizer.zero_grad()  # also of parameters that the objective does not contain
    with Workers() as workers:
        for _ in range(n_steps):
            value, gradient = value_and_gradient(evaluate, parameters, workers)
            values.append(value)
            for parameter, ascent in zip(parameters, unflatten(gradient, parameters), strict=True):
                parameter.grad = -ascent
            optimizer.step()
        with th.no_grad():
            after = add_up(workers([partial(part, parameters) for part in evaluate]))
    return StepResult([parameter.detach() for parameter in parameters], True, None, values[0], after)
