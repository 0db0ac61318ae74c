"""The trust-region meta step, built on parts of sb3-contrib's TRPO (Schulman et al. 2015, arXiv:1502.05477)."""

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
"""Function of the parameters that returns a ``Value``."""


@dataclass(frozen=True)
class TrustRegion:
    """Settings of a trust-region step, named as in sb3-contrib's TRPO.

    :param target_kl: upper bound on the mean KL
    :param cg_max_steps: maximum number of conjugate-gradient iterations
    :param cg_damping: constant added to the diagonal of the Fisher matrix
    :param line_search_shrinking_factor: factor by which the line search shortens a rejected step
    :param line_search_max_iter: maximum number of steps that the line search tries
    """

    target_kl: float = 0.01
    cg_max_steps: int = 10
    cg_damping: float = 0.01
    line_search_shrinking_factor: float = 0.8
    line_search_max_iter: int = 10


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """Concatenate all tensors into one vector.

    :param tensors: tensors with P entries in total
    :return: vector (P,)
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: th.Tensor, like: Sequence[th.Tensor]) -> list[th.Tensor]:
    """Split a vector into tensors, the inverse of :func:`flatten`.

    :param vector: vector (P,)
    :param like: tensors with the shapes to restore
    :return: tensors shaped like ``like``
    """
    parts = vector.split([tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def fisher_product(
    kls: Sequence[Evaluate[Composition]], leaves: Sequence[th.Tensor], damping: float, workers: Workers
) -> Callable[[th.Tensor], th.Tensor]:
    """Prepare damped Fisher-vector products, with the Hessian of the KL as the Fisher matrix.

    The Hessian is that at the given parameters, where the KL must be zero.

    :param kls: KL as functions of the parameters whose values add up
    :param leaves: parameters, P entries in total
    :param damping: constant added to the diagonal of the Hessian
    :param workers: threads that run the functions
    :return: function from a vector (P,) to its product (P,)
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
    """Compute the natural gradient and the longest step along it inside the trust region.

    :param product: Fisher-vector product
    :param gradient: gradient of the objective (P,)
    :param settings: settings of the step
    :param seed: seed of the noise from which the conjugate-gradient solver starts
    :return: direction (P,) and step length; zeros if the curvature along the direction is not positive and finite
    """
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        direction = conjugate_gradient_solver(product, gradient, max_iter=settings.cg_max_steps)
    direction = direction.masked_fill(gradient == 0.0, 0.0)  # keep the solver's noise out of parameters without effect
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
    """Maximise the objective inside a trust region by the natural gradient and a backtracking line search.

    The line search evaluates without a graph; an inner update inside the objective enables gradients for itself.

    :param evaluate: objective and its terms, as functions of the parameters whose values add up
    :param fisher_kl: KL whose Hessian measures the step, as functions of the parameters whose values add up; it may use
        part of the data
    :param leaves: current parameters
    :param settings: settings of the step
    :param seed: seed of the noise from which the conjugate-gradient solver starts
    :return: new parameters and outcome of the step
    """
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    with Workers() as workers:
        before, gradient = value_and_gradient(evaluate, leaves, workers)
        product = fisher_product(fisher_kl, leaves, settings.cg_damping, workers)
        direction, length = search_direction(product, gradient, settings, seed)
        n_tries = settings.line_search_max_iter if length > 0.0 else 0
        for n_backtracks in range(n_tries):
            scale = length * settings.line_search_shrinking_factor**n_backtracks
            changes = unflatten(scale * direction, leaves)
            candidate = [
                (leaf + change).detach().requires_grad_() for leaf, change in zip(leaves, changes, strict=True)
            ]
            with th.no_grad():
                after = add_up(workers([partial(part, candidate) for part in evaluate]))
            if after.kl <= settings.target_kl and after.objective > before.objective:
                return StepResult([leaf.detach() for leaf in candidate], True, n_backtracks, before, after)
    return StepResult([leaf.detach() for leaf in leaves], False, n_tries, before, before)


def value_and_gradient(
    evaluate: Sequence[Evaluate[ObjectiveValue]], leaves: Sequence[th.Tensor], workers: Workers
) -> tuple[ObjectiveValue, th.Tensor]:
    """Compute the objective and its gradient, freeing each part's graph as soon as its gradient is known.

    :param evaluate: objective and its terms, as functions of the parameters whose values add up
    :param leaves: parameters, P entries in total
    :param workers: threads that run the functions
    :return: objective and its terms, and the gradient of the objective (P,)
    """

    def of_part(part: Evaluate[ObjectiveValue]) -> tuple[ObjectiveValue, th.Tensor]:
        value = part(leaves)
        # allow_unused: a parameter that the objective does not contain keeps its value
        gradients = th.autograd.grad(value.objective, leaves, allow_unused=True, materialize_grads=True)
        return ObjectiveValue(*(number.detach() for number in value)), flatten(gradients)

    values, gradients = zip(*workers([partial(of_part, part) for part in evaluate]), strict=True)
    return add_up(values), th.stack(gradients).sum(dim=0)


def add_up(values: Sequence[ObjectiveValue]) -> ObjectiveValue:
    """Add up the contributions of all parts to the objective and its terms.

    :param values: contributions of the parts
    :return: objective and its terms
    """
    return ObjectiveValue(*(th.stack(numbers).sum() for numbers in zip(*values, strict=True)))
