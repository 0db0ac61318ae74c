"""Products with the Hessian of a function at its minimum, by the Jacobian of what it is a function of."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th


class Composition(NamedTuple):
    """f(g(x)), where f is at its minimum.

    The Hessian of f(g(x)) is J^T H J, with J that of g and H that of f, plus what the gradient of f makes of the
    curvature of g. At the minimum of f the second part is zero, and without it the product costs a third less.

    :param inner: g(x), with its graph
    :param outer: f, a scalar function of tensors like these
    """

    inner: Sequence[th.Tensor]
    outer: Callable[[Sequence[th.Tensor]], th.Tensor]

    @property
    def value(self) -> th.Tensor:
        """f(g(x)), with its graph."""
        return self.outer(self.inner)


class _Jacobian:
    """Products with the Jacobian J of some tensors in others.

    :param outputs: with their graph
    :param inputs: leaves of that graph
    """

    def __init__(self, outputs: Sequence[th.Tensor], inputs: Sequence[th.Tensor]):
        self.outputs, self.inputs = list(outputs), list(inputs)
        # J^T u is linear in u, and its derivative there is J
        self.duals = [th.zeros_like(output).requires_grad_() for output in outputs]
        self.pulled = self._pull(self.duals, create_graph=True)

    def _pull(self, vectors: Sequence[th.Tensor], create_graph: bool) -> tuple[th.Tensor, ...]:
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
        """J^T times vectors, shaped like the inputs.

        :param vectors: shaped like the outputs
        """
        return self._pull(vectors, create_graph=False)

    def push(self, vectors: Sequence[th.Tensor]) -> tuple[th.Tensor, ...]:
        """J times vectors, shaped like the outputs.

        :param vectors: shaped like the inputs
        """
        pairs = [pair for pair in zip(self.pulled, vectors, strict=True) if pair[0].requires_grad]
        pulled, used = ([pair[i] for pair in pairs] for i in (0, 1))
        return th.autograd.grad(pulled, self.duals, used, retain_graph=True, allow_unused=True, materialize_grads=True)


def hessian_product(
    composition: Composition, inputs: Sequence[th.Tensor]
) -> Callable[[Sequence[th.Tensor]], tuple[th.Tensor, ...]]:
    """The product of vectors with the Hessian.

    :param composition: a function of the inputs
    :param inputs: leaves of its graph
    :return: from vectors shaped like the inputs to such vectors
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
