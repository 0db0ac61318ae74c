"""Tensors by name as safetensors bytes, made into tensors only once their shapes are those expected."""

from collections.abc import Mapping
from typing import NamedTuple

import torch as th
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from sb3_maesn.common.checkpoint.archive import TENSORS, CheckpointError, shown

DTYPES = {"F32": th.float32, "F64": th.float64, "I64": th.int64}
MAX_TENSORS = 10_000


class StoredTensor(NamedTuple):
    """A tensor as it stands in a file.

    :param dtype: safetensors' name of it
    :param shape: as many elements as ``data`` holds
    :param data: its bytes
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytearray


def dump_tensors(tensors: Mapping[str, th.Tensor]) -> bytes:
    """Tensors as bytes.

    :param tensors: by name
    :raises ValueError: if a number is not finite, or the type is none of ``DTYPES``
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise ValueError(f"expected one of {', '.join(DTYPES)}, got {tensor.dtype} in {name}")
        if not bool(th.isfinite(tensor).all()):
            raise ValueError(f"expected finite numbers, got others in {name}: the training has diverged")
    # cloned, since modules may share parameters
    return save({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()})


def parse_tensors(data: bytes) -> dict[str, StoredTensor]:
    """What a file holds; no tensor is made yet.

    :param data: safetensors bytes
    :raises CheckpointError: if they are damaged
    """
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]  # a compiled function
    except SafetensorError as error:
        raise CheckpointError(f"{TENSORS} is no safetensors file, or damaged: {shown(str(error))}") from None
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"expected at most {MAX_TENSORS} tensors, got {len(entries)}")
    return {name: StoredTensor(entry["dtype"], tuple(entry["shape"]), entry["data"]) for name, entry in entries}


def to_tensor(name: str, stored: StoredTensor, dtype: th.dtype, shape: tuple[int, ...]) -> th.Tensor:
    """Make a tensor of what is stored.

    :param name: for the message
    :param stored: from the file
    :param dtype: expected
    :param shape: expected
    :raises CheckpointError: if type or shape differ, or a number is not finite
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
