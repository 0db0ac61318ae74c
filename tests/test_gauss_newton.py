"""Linearised functions: values and first derivatives stay, second derivatives are Gauss and Newton's."""

import torch as th

from sb3_maesn.common.linearise import linearised


def inner(x: th.Tensor, y: th.Tensor) -> list[th.Tensor]:
    return [th.sin(x) * y.sum(), x[:2] ** 3]


def outer(outputs: list[th.Tensor]) -> th.Tensor:
    return (outputs[0] ** 4).sum() + outputs[0][0] * outputs[1].exp().sum()


def leaves() -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(0)
    return tuple(th.randn(n, generator=generator, dtype=th.float64).requires_grad_() for n in (3, 2))  # type: ignore[return-value]  # two


def hessian_product(
    value: th.Tensor, at: tuple[th.Tensor, ...], vector: tuple[th.Tensor, ...]
) -> tuple[th.Tensor, ...]:
    gradients = th.autograd.grad(value, at, create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
    assert isinstance(along, th.Tensor)
    return th.autograd.grad(along, at)


def test_values_and_first_derivatives_are_those_of_the_function() -> None:
    at = leaves()
    exact, linear = inner(*at), linearised(inner(*at), at)
    assert all(th.equal(a, b) for a, b in zip(exact, linear, strict=True))
    for a, b in zip(th.autograd.grad(outer(exact), at), th.autograd.grad(outer(linear), at), strict=True):
        assert th.allclose(a, b, rtol=1e-12)


def test_the_hessian_is_that_of_what_follows_between_two_jacobians() -> None:
    at, vector = leaves(), leaves()
    got = th.cat(hessian_product(outer(linearised(inner(*at), at)), at, vector))
    jacobian = th.autograd.functional.jacobian(lambda *x: th.cat(inner(*x)), at)
    matrix = th.cat(jacobian, dim=1)  # (outputs, inputs)
    curvature = th.autograd.functional.hessian(lambda flat: outer([flat[:3], flat[3:]]), th.cat(inner(*at)).detach())
    assert th.allclose(got, matrix.T @ curvature @ matrix @ th.cat(vector).detach(), rtol=1e-10)
    assert not th.allclose(got, th.cat(hessian_product(outer(inner(*at)), at, vector)), rtol=1e-2)


def test_inputs_without_effect_and_constants_are_no_trouble() -> None:
    x, y = leaves()
    unused, constant = th.ones(2, dtype=th.float64, requires_grad=True), th.ones(1, dtype=th.float64)
    linear = linearised(inner(x, y), [x, unused, y, constant])
    gradients = th.autograd.grad(outer(linear), [x, y, unused], create_graph=True)
    assert (gradients[2] == 0).all()
    assert all(bool(th.isfinite(part).all()) for part in th.autograd.grad(gradients[0].sum(), [x, y]))
