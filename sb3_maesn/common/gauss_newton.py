"""Products with the Hessian of a composed function, at a minimum of the outer function."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th


class Composition(NamedTuple):
    """Composed function f(g(x)), evaluated where f is at its minimum.

    The Hessian of f(g(x)) is J^T H J, with the Jacobian J of g and the Hessian H of f, plus a term with the gradient of
    f and the curvature of g. At the minimum of f that term is zero; without it, a product costs a third less.

    :param inner: g(x), with its graph
    :param outer: scalar function f of tensors shaped like ``inner``
    """

    inner: Sequence[th.Tensor]
    outer: Callable[[Sequence[th.Tensor]], th.Tensor]

    @property
    def value(self) -> th.Tensor:
        """Value f(g(x)), with its graph."""
        return self.outer(self.inner)


class _Jacobian:
    """Products with the Jacobian J of some tensors with respect to others.

    :param outputs: tensors with their graph
    :param inputs: leaves of that graph
    """

    def __init__(self, outputs: Sequence[th.Tensor], inputs: Sequence[th.Tensor]):
        self.outputs, self.inputs = list(outputs), list(inputs)
        # J^T u is linear in u, so the derivative of its product with v is J v
        self.duals = [th.zeros_like(output).requires_grad_() for output in outputs]
        self.pulled = self._pull(self.duals, create_graph=True)

    def _pull(self, vectors: Sequence[th.Tensor], create_graph: bool) -> tuple[th.Tensor, ...]:
        """Compute J^T times vectors, with a graph of its own if ``create_graph``."""
        return th.autograd.grad(
            self.outputs,
            self.inputs,
            list(vectors),
            retain_graph=True,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )

    def pull(self, vectors: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
        """Compute J^T times vectors.

        :param vectors: vectors shaped like the outputs
        :return: products shaped like the inputs
        """
        return self._pull(vectors, create_graph=False)

    def push(self, vectors: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
        """Compute J times vectors.

        :param vectors: vectors shaped like the inputs
        :return: products shaped like the outputs
        """
        pairs = [pair for pair in zip(self.pulled, vectors, strict=True) if pair[0].requires_grad]
        pulled, used = ([pair[i] for pair in pairs] for i in (0, 1))
        return th.autograd.grad(pulled, self.duals, used, retain_graph=True, allow_unused=True, materialize_grads=True)


def hessian_product(
    composition: Composition, inputs: Sequence[th.Tensor]
) -> Callable[[Sequence[th.Tensor]], tuple[th.Tensor, ...]]:
    """Prepare products of vectors with the Hessian of a composed function.

    :param composition: composed function of the inputs
    :param inputs: leaves of its graph
    :return: function from vectors shaped like the inputs to their products, which have the same shapes
    """
    varying = [i for i, part in enumerate(composition.inner) if part.requires_grad]
    jacobian = _Jacobian([composition.inner[i] for i in varying], inputs)
    at = [part.detach() for part in composition.inner]
    for i in varying:
        at[i].requires_grad_()
    moving = [at[i] for i in varying]
    gradient = th.autograd.grad(
        composition.outer(at), moving, create_graph=True, allow_unused=True, materialize_grads=True
    )

    def product(vectors: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
        pairs = zip(gradient, jacobian.push(vectors), strict=True)
        curved = [pair for pair in pairs if pair[0].requires_grad]
        curvature = th.autograd.grad(
            [own for own, _ in curved],
            moving,
            [vector for _, vector in curved],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return jacobian.pull(curvature)

    return product
