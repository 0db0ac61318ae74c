"""Work on several cores by threads of one torch thread each, faster than torch's own for networks this small."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch as th
from torch import nn

Result = TypeVar("Result")


@contextmanager
def one_torch_thread() -> Iterator[int]:
    """Let every torch operation inside run on the thread that calls it; gives the number of threads torch had."""
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield n_threads
    finally:
        th.set_num_threads(n_threads)


class Workers:
    """As many threads as torch may use (``torch.set_num_threads``). Results do not depend on how many these are.

    Used as a context, inside which every torch operation runs on the thread that calls it.
    """

    def __enter__(self) -> "Workers":
        self._torch = one_torch_thread()
        n_threads = self._torch.__enter__()
        # torch's number of threads is every thread's own: a new one's first matrix product would start more
        one = partial(ThreadPoolExecutor, initializer=th.set_num_threads, initargs=(1,))
        self._pool = one(n_threads) if n_threads > 1 else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._torch.__exit__(None, None, None)

    def __call__(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run the calls, in any order and several at once.

        :param calls: functions without arguments; whether gradients are recorded is as for the caller
        :return: their results, in order
        """
        if self._pool is None or len(calls) == 1:
            return [call() for call in calls]
        recorded = th.is_grad_enabled()  # which torch keeps for each thread

        def run(call: Callable[[], Result]) -> Result:
            with th.set_grad_enabled(recorded):
                return call()

        return list(self._pool.map(run, calls))


class StatelessModule:
    """A module as a function of its parameters, which several threads may call at once.

    The parameters are put into the module for as long as a call takes, so every thread gets a module of its own: a copy
    that shares the tensors.

    :param module: no two of whose parameters are one
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._of_thread = threading.local()

    def __call__(self, parameters: Mapping[str, th.Tensor], *inputs: th.Tensor) -> Any:
        """What the module returns.

        :param parameters: in place of its own
        :param inputs: of the module
        """
        if not hasattr(self._of_thread, "module"):
            shared = {id(tensor): tensor for tensor in (*self._module.parameters(), *self._module.buffers())}
            self._of_thread.module = copy.deepcopy(self._module, shared)
            self._of_thread.places = _places(self._of_thread.module)
        # what torch.func.functional_call does, whose checks cost as much as a layer
        places = self._of_thread.places
        own = {name: places[name][0][places[name][1]] for name in parameters}
        try:
            _put(places, parameters)
            return self._of_thread.module(*inputs)
        finally:
            _put(places, own)


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Where a module keeps its parameters: a dictionary and the key in it, by the parameter's full name."""
    modules = dict(module.named_modules())
    owners = {name: name.rpartition(".") for name, _ in module.named_parameters()}
    return {name: (modules[path]._parameters, key) for name, (path, _, key) in owners.items()}


def _put(places: Mapping[str, tuple[dict[str, Any], str]], tensors: Mapping[str, th.Tensor]) -> None:
    for name, tensor in tensors.items():
        holder, key = places[name]
        holder[key] = tensor
