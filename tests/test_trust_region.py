"""The trust-region step on problems whose solution is known."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch as th

from sb3_maesn.common.gauss_newton import Composition
from sb3_maesn.common.trust_region import TrustRegion, flatten, trust_region_step, unflatten
from sb3_maesn.common.type_aliases import ObjectiveValue

SHAPES = [(2, 2), (3,), ()]
SIZE = 8


class Quadratic:
    """A linear objective g.x with the KL 0.5 (x - x0)^T F (x - x0): the best step is sqrt(2 delta / g^T F^-1 g) F^-1 g.

    :param curvature: of the objective, subtracted as 0.5 curvature |x - x0|^2
    """

    def __init__(self, curvature: float = 0.0):
        generator = th.Generator().manual_seed(3)
        root = th.randn(SIZE, SIZE, generator=generator, dtype=th.float64)
        self.fisher = root @ root.T / SIZE + 0.5 * th.eye(SIZE, dtype=th.float64)
        self.gradient = th.randn(SIZE, generator=generator, dtype=th.float64)
        self.start = [th.randn(shape, generator=generator, dtype=th.float64) for shape in SHAPES]
        self.curvature = curvature

    def offset(self, leaves: Sequence[th.Tensor]) -> th.Tensor:
        return flatten(leaves) - flatten(self.start)

    def kl(self, leaves: Sequence[th.Tensor], scale: float = 1.0) -> Composition:
        return Composition([self.offset(leaves)], lambda parts: 0.5 * scale * parts[0] @ self.fisher @ parts[0])

    def evaluate(self, leaves: Sequence[th.Tensor]) -> ObjectiveValue:
        offset = self.offset(leaves)
        gain = self.gradient @ offset - 0.5 * self.curvature * offset @ offset
        return ObjectiveValue(gain, gain, self.kl(leaves).value, th.zeros(()))

    def best(self, target_kl: float) -> th.Tensor:
        direction = th.linalg.solve(self.fisher, self.gradient)
        return th.sqrt(2 * target_kl / (self.gradient @ direction)) * direction


def settings(target_kl: float = 0.01, **kwargs: float) -> TrustRegion:
    return TrustRegion(target_kl, cg_max_steps=30, cg_damping=1e-12, **kwargs)  # type: ignore[arg-type]  # settings of several types


def test_step_is_the_known_solution() -> None:
    problem = Quadratic()
    # the step touches the boundary, where rounding may refuse it: one that is shorter by a millionth is allowed
    result = trust_region_step(
        [problem.evaluate], [problem.kl], problem.start, settings(line_search_shrinking_factor=1 - 1e-6), seed=0
    )
    assert result.accepted
    assert th.allclose(problem.offset(result.leaves), problem.best(0.01), rtol=1e-4)
    assert [leaf.shape for leaf in result.leaves] == [leaf.shape for leaf in problem.start]
    assert result.after.kl.item() == pytest.approx(0.01, rel=1e-4)
    assert result.after.objective.item() == pytest.approx((problem.gradient @ problem.best(0.01)).item(), rel=1e-4)


@pytest.mark.parametrize("target_kl", [1e-4, 0.01, 1.0])
def test_kl_bound_is_kept_where_the_fisher_matrix_understates_it(target_kl: float) -> None:
    problem = Quadratic()
    result = trust_region_step(
        [problem.evaluate], [partial(problem.kl, scale=0.3)], problem.start, settings(target_kl), seed=0
    )
    assert result.accepted
    assert result.n_backtracks
    assert 0 < problem.kl(result.leaves).value.item() <= target_kl


def test_a_step_is_shortened_until_the_objective_rises() -> None:
    problem = Quadratic(curvature=50.0)
    result = trust_region_step([problem.evaluate], [problem.kl], problem.start, settings(0.1), seed=0)
    assert result.accepted
    assert result.n_backtracks
    assert result.after.objective > result.before.objective
    fraction = 0.8**result.n_backtracks
    assert th.allclose(problem.offset(result.leaves), fraction * problem.best(0.1), rtol=1e-4)


@pytest.mark.parametrize("reason", ["no ascent", "not finite", "no trust region"])
def test_a_refused_step_leaves_the_parameters(reason: str) -> None:
    problem = Quadratic()
    sign = -1.0 if reason == "no trust region" else 1.0

    def evaluate(leaves: Sequence[th.Tensor]) -> ObjectiveValue:
        value = problem.evaluate(leaves)
        if th.equal(flatten(leaves), flatten(problem.start)):
            return value
        return value._replace(objective=value.objective + (th.nan if reason == "not finite" else -1e6))

    result = trust_region_step([evaluate], [partial(problem.kl, scale=sign)], problem.start, settings(), seed=0)
    assert not result.accepted
    assert all(th.equal(new, old) for new, old in zip(result.leaves, problem.start, strict=True))
    assert not any(leaf.requires_grad for leaf in result.leaves)
    assert result.after == result.before


def test_a_parameter_without_effect_stays() -> None:
    problem = Quadratic()
    idle = th.tensor([4.0, 5.0], dtype=th.float64)
    result = trust_region_step(
        [lambda leaves: problem.evaluate(leaves[:-1])],
        [lambda leaves: problem.kl(leaves[:-1])],
        [*problem.start, idle],
        TrustRegion(cg_damping=0.1),
        seed=0,
    )
    assert result.accepted
    assert th.equal(result.leaves[-1], idle)  # though conjugate gradients start from noise


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    problem = Quadratic()
    few = TrustRegion(cg_max_steps=2)
    th.manual_seed(1)
    state = th.get_rng_state()
    first = trust_region_step([problem.evaluate], [problem.kl], problem.start, few, seed=5)
    assert th.equal(th.get_rng_state(), state)
    th.manual_seed(2)
    again = trust_region_step([problem.evaluate], [problem.kl], problem.start, few, seed=5)
    other = trust_region_step([problem.evaluate], [problem.kl], problem.start, few, seed=6)
    assert th.equal(flatten(first.leaves), flatten(again.leaves))
    assert not th.equal(flatten(first.leaves), flatten(other.leaves))


def test_parts_on_several_threads_make_the_step_of_the_whole() -> None:
    problem = Quadratic(curvature=1.0)
    shares = (0.2, 0.3, 0.5)

    def part(share: float, leaves: Sequence[th.Tensor]) -> ObjectiveValue:
        return ObjectiveValue(*(share * number for number in problem.evaluate(leaves)))

    whole = trust_region_step([problem.evaluate], [problem.kl], problem.start, settings(), seed=0)
    objective = [partial(part, share) for share in shares]
    kl = [partial(problem.kl, scale=share) for share in shares]
    results = []
    before = th.get_num_threads()
    for n_threads in (1, 2):
        th.set_num_threads(n_threads)
        results.append(flatten(trust_region_step(objective, kl, problem.start, settings(), seed=0).leaves))
        assert th.get_num_threads() == n_threads
    th.set_num_threads(before)
    assert th.equal(results[0], results[1])
    assert th.allclose(results[0], flatten(whole.leaves), rtol=1e-6)


def test_flatten_and_unflatten_are_inverse() -> None:
    tensors = [th.randn(2, 3), th.randn(()), th.randn(0, 2), th.randn(4)]
    vector = flatten(tensors)
    assert vector.shape == (11,)
    assert all(th.equal(a, b) for a, b in zip(unflatten(vector, tensors), tensors, strict=True))
