"""Parallel work by threads that each run torch on one core.

For networks as small as these, this is faster than the threads of torch's own operations.
"""

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
    """Run every torch operation inside the context on the calling thread.

    :return: context manager that yields the number of threads torch used before
    """
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield n_threads
    finally:
        th.set_num_threads(n_threads)


class Workers:
    """Pool of as many threads as torch may use (``torch.set_num_threads``).

    It is a context manager; inside the context, every torch operation runs on the thread that calls it. Results do not
    depend on the number of threads.
    """

    def __enter__(self) -> "Workers":
        self._torch = one_torch_thread()
        n_threads = self._torch.__enter__()
        # torch counts threads for each thread: without this, the first matrix product of a new thread starts more
        one = partial(ThreadPoolExecutor, initializer=th.set_num_threads, initargs=(1,))
        self._pool = one(n_threads) if n_threads > 1 else None
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._torch.__exit__(None, None, None)

    def __call__(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run functions, possibly several at once and in any order.

        :param calls: functions without arguments; each records gradients if the caller does
        :return: results in the order of ``calls``
        """
        if self._pool is None or len(calls) == 1:
            return [call() for call in calls]
        recorded = th.is_grad_enabled()  # torch keeps this setting for each thread

        def run(call: Callable[[], Result]) -> Result:
            with th.set_grad_enabled(recorded):
                return call()

        return list(self._pool.map(run, calls))


class StatelessModule:
    """Module as a function of its parameters, which several threads may call at once.

    A call temporarily puts the parameters into a module, so every thread gets its own copy of the module, which shares
    the original's tensors.

    :param module: module without tied parameters
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._of_thread = threading.local()

    def __call__(self, parameters: Mapping[str, th.Tensor], *inputs: th.Tensor) -> Any:
        """Call the module with the given parameters.

        :param parameters: parameters by name, which replace the module's own for this call
        :param inputs: inputs of the module
        :return: output of the module
        :raises KeyError: if the module has no parameter of a given name
        """
        if not hasattr(self._of_thread, "module"):
            shared = {id(tensor): tensor for tensor in (*self._module.parameters(), *self._module.buffers())}
            self._of_thread.module = copy.deepcopy(self._module, shared)
            self._of_thread.places = _places(self._of_thread.module)
        # torch.func.functional_call does the same, but its checks cost as much as a layer
        places = self._of_thread.places
        own = {name: places[name][0][places[name][1]] for name in parameters}
        try:
            _put(places, parameters)
            return self._of_thread.module(*inputs)
        finally:
            _put(places, own)


def _places(module: nn.Module) -> dict[str, tuple[dict[str, Any], str]]:
    """Map each parameter's full name to the dictionary that holds it and its key there."""
    modules = dict(module.named_modules())
    owners = {name: name.rpartition(".") for name, _ in module.named_parameters()}
    return {name: (modules[path]._parameters, key) for name, (path, _, key) in owners.items()}


def _put(places: Mapping[str, tuple[dict[str, Any], str]], tensors: Mapping[str, th.Tensor]) -> None:
    """Put tensors into the places of the parameters with their names."""
    for name, tensor in tensors.items():
        holder, key = places[name]
        holder[key] = tensor
