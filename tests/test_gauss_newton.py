"""Hessian products of a function at its minimum, against its whole Hessian."""

from collections.abc import Sequence

import pytest
import torch as th

from sb3_maesn.common.gauss_newton import Composition, hessian_product

TARGET = th.tensor([0.3, -1.2, 0.7, 0.1, 0.4], dtype=th.float64)


def inner(x: th.Tensor, y: th.Tensor) -> list[th.Tensor]:
    return [th.sin(x) * y.sum(), x[:2] ** 3]


def outer(outputs: Sequence[th.Tensor], at: th.Tensor = TARGET) -> th.Tensor:
    """Least where the outputs are ``at``, and curved in all of them together."""
    distance = th.cat(list(outputs)) - at
    return distance.square().sum() + distance.sum() ** 2 + (distance**4).sum()


def leaves() -> tuple[th.Tensor, th.Tensor]:
    generator = th.Generator().manual_seed(0)
    return tuple(th.randn(n, generator=generator, dtype=th.float64).requires_grad_() for n in (3, 2))  # type: ignore[return-value]  # two


@pytest.mark.parametrize("least", [True, False])
def test_at_the_minimum_it_is_the_product_with_the_whole_hessian(least: bool) -> None:
    at, vector = leaves(), th.arange(1.0, 6.0, dtype=th.float64)
    target = th.cat(inner(*at)).detach() if least else TARGET
    whole = th.autograd.functional.hessian(lambda flat: outer(inner(flat[:3], flat[3:]), target), th.cat(at).detach())
    product = hessian_product(Composition(inner(*at), lambda parts: outer(parts, target)), at)
    got = th.cat(product([vector[:3], vector[3:]]))
    assert th.allclose(got, whole @ vector, rtol=1e-10) == least  # elsewhere the curvature of the outputs is missing


def test_it_is_that_of_the_outer_function_between_two_jacobians() -> None:
    at, vector = leaves(), th.arange(1.0, 6.0, dtype=th.float64)
    got = th.cat(hessian_product(Composition(inner(*at), outer), at)([vector[:3], vector[3:]]))
    matrix = th.cat(th.autograd.functional.jacobian(lambda *x: th.cat(inner(*x)), at), dim=1)  # (outputs, inputs)
    curvature = th.autograd.functional.hessian(lambda flat: outer([flat]), th.cat(inner(*at)).detach())
    assert th.allclose(got, matrix.T @ curvature @ matrix @ vector, rtol=1e-10)


def test_inputs_and_outputs_without_effect_and_constants_are_no_trouble() -> None:
    x, y = leaves()
    unused, constant = th.ones(2, dtype=th.float64, requires_grad=True), th.ones(1, dtype=th.float64)
    linear = 3.0 * x  # in which the function has no curvature
    composition = Composition(
        [*inner(x, y), constant, linear], lambda parts: outer(parts[:2]) * parts[2].sum() + parts[3].sum()
    )
    own = hessian_product(Composition(inner(x, y), outer), [x, y])([th.ones_like(x), th.ones_like(y)])
    got = hessian_product(composition, [x, unused, y])([th.ones_like(x), th.ones_like(unused), th.ones_like(y)])
    assert th.allclose(got[0], own[0])
    assert th.allclose(got[2], own[1])
    assert (got[1] == 0).all()


def test_the_value_has_its_graph() -> None:
    at = leaves()
    composition = Composition(inner(*at), outer)
    assert composition.value.item() == outer(inner(*at)).item()
    assert composition.value.requires_grad
