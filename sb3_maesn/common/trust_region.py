"""The trust-region meta step, on the pieces of sb3-contrib's TRPO (Schulman et al. 2015, arXiv:1502.05477)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver

from sb3_maesn.common.gauss_newton import Composition, hessian_product
from sb3_maesn.common.parallel import Workers
from sb3_maesn.common.type_aliases import ObjectiveValue, StepResult

Value = TypeVar("Value")
Evaluate: TypeAlias = Callable[[Sequence[th.Tensor]], Value]
"""Something as a function of the parameters."""


@dataclass(frozen=True)
class TrustRegion:
    """Settings of a step, named as in sb3-contrib's TRPO.

    :param target_kl: bound on the mean KL
    :param cg_max_steps: conjugate-gradient iterations
    :param cg_damping: added to the Fisher matrix's diagonal
    :param line_search_shrinking_factor: by which a refused step is shortened
    :param line_search_max_iter: tries of the line search
    """

    target_kl: float = 0.01
    cg_max_steps: int = 10
    cg_damping: float = 0.01
    line_search_shrinking_factor: float = 0.8
    line_search_max_iter: int = 10


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """All tensors in one vector (P,)."""
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """The inverse of :func:`flatten`.

    :param vector: (P,)
    :param like: tensors with the shapes wanted
    """
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def fisher_product(
    kls: Sequence[Evaluate[Composition]], leaves: Sequence[th.Tensor], damping: float, workers: Workers
) -> Callable[[th.Tensor], th.Tensor]:
    """The product of a vector with the KL's Hessian, where the KL is zero, plus damping.

    :param kls: the KL as functions of the parameters whose values add up
    :param leaves: parameters
    :param damping: added to the diagonal
    :param workers: which run the functions
    :return: (P,) -> (P,)
    """

    def product_of(kl: Evaluate[Composition]) -> Evaluate[Sequence[th.Tensor]]:
        return hessian_product(kl(leaves), leaves)

    products = workers([partial(product_of, kl) for kl in kls])

    def product(vector: th.Tensor) -> th.Tensor:
        vectors = unflatten(vector, leaves)
        parts = workers([partial(part, vectors) for part in products])
        return sum((flatten(part) for part in parts), damping * vector)

    return product


def search_direction(
    product: Callable[[th.Tensor], th.Tensor], gradient: th.Tensor, settings: TrustRegion, seed: int
) -> tuple[th.Tensor, float]:
    """The natural gradient and the longest step along it inside the trust region.

    :param product: Fisher-vector product
    :param gradient: (P,)
    :param settings: of the step
    :param seed: of the noise from which the solver starts
    :return: direction (P,), step length
    """
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        direction = conjugate_gradient_solver(product, gradient, max_iter=settings.cg_max_steps)
    direction = direction.masked_fill(gradient == 0.0, 0.0)  # parameters without effect do not follow the noise
    curvature = float(direction @ product(direction))
    if not math.isfinite(curvature) or curvature <= 0.0:
        return th.zeros_like(direction), 0.0
    return direction, math.sqrt(2.0 * settings.target_kl / curvature)


def trust_region_step(
    evaluate: Sequence[Evaluate[ObjectiveValue]],
    fisher_kl: Sequence[Evaluate[Composition]],
    leaves: Sequence[th.Tensor],
    settings: TrustRegion,
    seed: int,
) -> StepResult:
    """Maximise the objective inside a trust region: natural gradient, then a backtracking line search.

    The line search evaluates without a graph; an inner update inside the objective enables gradients for itself.

    :param evaluate: objective and its parts, as functions of the parameters whose values add up
    :param fisher_kl: the KL whose Hessian measures the step, perhaps on part of the data, likewise
    :param leaves: current parameters
    :param settings: of the step
    :param seed: of the conjugate-gradient solver's start
    :return: the new parameters and what happened
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with Workers() as workers:
        before, gradient = value_and_gradient(evaluate, leaves, workers)
        product = fisher_product(fisher_kl, leaves, settings.cg_damping, workers)
        direction, length = search_direction(product, gradient, settings, seed)
        n_tries = settings.line_search_max_iter if length > 0.0 else 0
        for n_backtracks in range(n_tries):
            scale = length * settings.line_search_shrinking_factor**n_backtracks
            steps = unflatten(scale * direction, leaves)
            candidate = [(leaf + step).detach().requires_grad_() for leaf, step in zip(leaves, steps, strict=True)]
            with th.no_grad():
                after = add_up(workers([partial(part, candidate) for part in evaluate]))
            if after.kl <= settings.target_kl and after.objective > before.objective:
                return StepResult([leaf.detach() for leaf in candidate], True, n_backtracks, before, after)
    return StepResult([leaf.detach() for leaf in leaves], False, n_tries, before, before)


def value_and_gradient(
    evaluate: Sequence[Evaluate[ObjectiveValue]], leaves: Sequence[th.Tensor], workers: Workers
) -> tuple[ObjectiveValue, th.Tensor]:
    """The objective's value and its gradient (P,); no part's graph outlives it.

    :param evaluate: objective and its parts, as functions of the parameters whose values add up
    :param leaves: parameters
    :param workers: which run the functions
    """

    def of_part(part: Evaluate[ObjectiveValue]) -> tuple[ObjectiveValue, th.Tensor]:
        value = part(leaves)
        # allow_unused: a parameter that the objective does not contain keeps its value
        gradients = th.autograd.grad(value.objective, leaves, allow_unused=True, materialize_grads=True)
        return ObjectiveValue(*(number.detach() for number in value)), flatten(gradients)

    values, gradients = zip(*workers([partial(of_part, part) for part in evaluate]), strict=True)
    return add_up(values), th.stack(gradients).sum(dim=0)


def add_up(values: Sequence[ObjectiveValue]) -> ObjectiveValue:
    """The objective's value from what its parts contribute.

    :param values: of all parts
    """
    return ObjectiveValue(*(th.stack(numbers).sum() for numbers in zip(*values, strict=True)))
