"""Work on several threads."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch as th

from sb3_maesn.common.parallel import StatelessModule, Workers, one_torch_thread


@pytest.fixture(params=[1, 3])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = th.get_num_threads()
    th.set_num_threads(request.param)
    yield request.param
    th.set_num_threads(before)


def test_results_come_in_order(n_threads: int) -> None:
    with Workers() as workers:
        assert workers([partial(pow, i, 2) for i in range(20)]) == [i**2 for i in range(20)]


def test_as_many_calls_at_once_as_torch_has_threads(n_threads: int) -> None:
    meeting = threading.Barrier(n_threads, timeout=10)
    with Workers() as workers:
        workers([meeting.wait] * n_threads)  # which ends only if all wait at once


def test_torch_has_one_thread_inside_and_its_own_number_again_outside(n_threads: int) -> None:
    with Workers() as workers:
        assert workers([th.get_num_threads] * 4) == [1] * 4
    assert th.get_num_threads() == n_threads
    with one_torch_thread() as before:
        assert (before, th.get_num_threads()) == (n_threads, 1)
    assert th.get_num_threads() == n_threads


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="counts the threads of this process as Linux shows them"
)
@pytest.mark.parametrize("n_threads", [3], indirect=True)
def test_a_matrix_product_starts_no_threads_of_its_own(n_threads: int) -> None:
    matrix = th.ones(2000, 500)

    def product() -> int:
        _ = matrix.T @ matrix
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    meeting = threading.Barrier(n_threads, timeout=60)
    with Workers() as workers:
        workers([meeting.wait] * n_threads)  # now all workers have started
        before = sum(1 for _ in Path("/proc/self/task").iterdir())
        assert max(workers([product] * 6)) == before


@pytest.mark.parametrize("recorded", [False, True])
def test_gradients_are_recorded_as_for_the_caller(n_threads: int, recorded: bool) -> None:
    with Workers() as workers, th.set_grad_enabled(recorded):
        assert workers([th.is_grad_enabled] * 4) == [recorded] * 4


def test_an_error_reaches_the_caller_and_torch_gets_its_threads_back(n_threads: int) -> None:
    def fail() -> None:
        raise ValueError("of the call")

    with pytest.raises(ValueError, match="of the call"), Workers() as workers:
        workers([fail, fail])
    assert th.get_num_threads() == n_threads


class Meeting(th.nn.Linear):
    """Calls of several threads are all inside before any reads its parameters."""

    everyone = threading.Barrier(3, timeout=10)

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        self.everyone.wait()
        return super().forward(inputs)


@pytest.mark.parametrize("n_threads", [3], indirect=True)
def test_every_thread_has_its_own_parameters(n_threads: int) -> None:
    module = Meeting(2, 1, bias=False)
    before, weight = module.weight, module.weight.detach().clone()
    function, inputs = StatelessModule(module), th.tensor([[1.0, 10.0]])
    parameters = [{"weight": th.full((1, 2), float(i), requires_grad=True)} for i in range(n_threads)]
    with Workers() as workers:
        outputs = workers([partial(function, theta, inputs) for theta in parameters])
    assert [output.item() for output in outputs] == [0.0, 11.0, 22.0]
    for output, theta in zip(outputs, parameters, strict=True):
        assert th.equal(th.autograd.grad(output.sum(), theta["weight"])[0], inputs)
    assert module.weight is before  # and the module itself stays as it is
    assert th.equal(before, weight)


def test_a_module_keeps_its_own_parameters_after_an_error() -> None:
    function, own = StatelessModule(th.nn.Sequential(th.nn.Linear(2, 1))), th.tensor([[1.0, 10.0]])
    usual = function({}, own)
    with pytest.raises(RuntimeError):
        function({"0.weight": th.ones(1, 3)}, own)
    assert th.equal(function({}, own), usual)
    assert not th.equal(function({"0.bias": th.tensor([5.0])}, own), usual)
    assert th.equal(function({}, own), usual)


def test_a_parameter_that_the_module_does_not_have_is_refused() -> None:
    with pytest.raises(KeyError, match="scale"):
        StatelessModule(th.nn.Linear(2, 1))({"scale": th.ones(1)}, th.ones(1, 2))
