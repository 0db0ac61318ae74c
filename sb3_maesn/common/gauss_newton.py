"""Functions without their curvature, for second derivatives in which it plays no part."""

from collections.abc import Sequence
from typing import Any

import torch as th


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


class _Forward(th.autograd.Function):
    """Constants that depend on the inputs by J."""

    @staticmethod
    def forward(ctx: Any, jacobian: _Jacobian, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        ctx.jacobian = jacobian
        return tuple(output.detach() for output in jacobian.outputs)

    @staticmethod
    def backward(ctx: Any, *vectors: th.Tensor) -> Any:
        return None, *_Backward.apply(ctx.jacobian, *vectors)  # type: ignore[no-untyped-call]  # apply has no types


class _Backward(th.autograd.Function):
    """The derivative of :class:`_Forward`, J^T, whose own derivative is J."""

    @staticmethod
    def forward(ctx: Any, jacobian: _Jacobian, *vectors: th.Tensor) -> tuple[th.Tensor, ...]:
        ctx.jacobian = jacobian
        with th.enable_grad():
            return tuple(part.detach() for part in jacobian.pull(vectors))

    @staticmethod
    def backward(ctx: Any, *vectors: th.Tensor) -> Any:
        with th.enable_grad():
            return None, *(part.detach() for part in ctx.jacobian.push(vectors))


def linearised(outputs: Sequence[th.Tensor], inputs: Sequence[th.Tensor]) -> list[th.Tensor]:
    """The same values with the same first derivatives, but none beyond.

    The Hessian of f(g(x)) is J^T H_f J plus what the gradient of f makes of the curvature of g. Where f is at its
    minimum the second part is zero, and without it the Hessian costs about half.

    :param outputs: with their graph
    :param inputs: leaves of that graph
    """
    needed = [tensor for tensor in inputs if tensor.requires_grad]
    if not needed:
        return list(outputs)
    return list(_Forward.apply(_Jacobian(outputs, needed), *needed))  # type: ignore[no-untyped-call]  # apply has no types
