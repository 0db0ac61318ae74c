"""Conversion of named tensors to and from safetensors bytes; shapes are checked before tensors are created."""

from collections.abc import Mapping
from typing import NamedTuple

import torch as th
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from sb3_maesn.common.checkpoint.archive import TENSORS, CheckpointError, shown

DTYPES = {"F32": th.float32, "F64": th.float64, "I64": th.int64}
MAX_TENSORS = 10_000


class StoredTensor(NamedTuple):
    """Content of a tensor in a file.

    :param dtype: name of the type in safetensors, such as ``"F32"``
    :param shape: shape of the tensor, which fits the length of ``data``
    :param data: bytes of the elements
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytearray


def dump_tensors(tensors: Mapping[str, th.Tensor]) -> bytes:
    """Encode tensors as safetensors bytes.

    :param tensors: tensors by name
    :return: content of the file
    :raises ValueError: if a number is not finite, or a type is not in ``DTYPES``
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"expected one of {', '.join(DTYPES)}, got {tensor.dtype} in {name}")
        if not bool(th.isfinite(tensor).all()):
            raise ValueError(f"expected finite numbers, got others in {name}: the training has diverged")
    # clone, since safetensors refuses tensors that share memory, as parameters of modules may
    return save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


def parse_tensors(data: bytes) -> dict[str, StoredTensor]:
    """Parse safetensors bytes without creating tensors.

    :param data: content of the file
    :return: stored tensors by name
    :raises CheckpointError: if the bytes are damaged, or there are too many tensors
    """
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]  # a compiled function
    except SafetensorError as error:
        raise CheckpointError(f"{TENSORS} is no safetensors file, or damaged: {shown(str(error))}") from None
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"expected at most {MAX_TENSORS} tensors, got {len(entries)}")
    return {name: StoredTensor(entry["dtype"], tuple(entry["shape"]), entry["data"]) for name, entry in entries}


def to_tensor(name: str, stored: StoredTensor, dtype: th.dtype, shape: tuple[int, ...]) -> th.Tensor:
    """Create a tensor from its stored content.

    :param name: name of the tensor, for the message
    :param stored: content in the file
    :param dtype: expected type
    :param shape: expected shape
    :return: new tensor
    :raises CheckpointError: if type or shape differ from the expected ones, or a number is not finite
    """
    if DTYPES.get(stored.dtype) != dtype or stored.shape != shape:
        came = f"{shown(stored.dtype)} {shown(stored.shape)}"
        raise CheckpointError(f"expected {dtype} of shape {shape} in {shown(name)}, got {came}")
    if not stored.data:
        return th.empty(shape, dtype=dtype)
    tensor = th.frombuffer(stored.data, dtype=dtype).reshape(shape).clone()
    if not bool(th.isfinite(tensor).all()):
        raise CheckpointError(f"expected finite numbers in {shown(name)}, got others")
    return tensor
