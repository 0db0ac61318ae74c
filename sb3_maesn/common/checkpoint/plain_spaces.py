"""Exact conversion of Gymnasium's basic spaces to and from plain values that JSON can hold."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown

DTYPES = ("float32", "float64", "uint8", "int8", "int16", "int32", "int64")
MAX_ELEMENTS = 2**20  # numbers in an observation or an action
INFINITIES = {"inf": math.inf, "-inf": -math.inf}


def encode_space(space: spaces.Space) -> dict[str, Any]:
    """Encode a space as plain values.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary space
    :return: plain values by field name
    :raises ValueError: if it is another space
    """
    if isinstance(space, spaces.Box) and str(space.dtype) in DTYPES:
        bounds = {"low": _encode_bound(space.low), "high": _encode_bound(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist()}
    if isinstance(space, spaces.MultiBinary) and isinstance(space.n, int):
        return {"type": "MultiBinary", "n": space.n}
    raise ValueError(f"expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}")


def decode_space(content: Any) -> spaces.Space:
    """Decode a space that :func:`encode_space` encoded.

    :param content: plain value from a file
    :return: space
    :raises CheckpointError: if the value does not describe a space
    """
    readers = {
        "Box": (_decode_box, 4),
        "Discrete": (_decode_discrete, 2),
        "MultiDiscrete": (_decode_multi_discrete, 1),
        "MultiBinary": (_decode_multi_binary, 1),
    }
    kind = content.get("type") if isinstance(content, Mapping) else None
    if not isinstance(kind, str) or kind not in readers:
        raise CheckpointError(f"expected a space, one of {', '.join(readers)}, got {shown(content)}")
    read, n_fields = readers[kind]
    try:
        if len(content) != 1 + n_fields:
            raise ValueError("a field too many, or one missing")
        return read(content)
    except (KeyError, ValueError, TypeError, AssertionError, OverflowError) as error:
        raise CheckpointError(f"expected a {kind} space, got {shown(content)}: {shown(str(error))}") from None


def checked_int(value: Any, least: int = 1, most: int = MAX_ELEMENTS) -> int:
    """Check that a value from a file is an integer within bounds, and return it.

    :param value: any value
    :param least: smallest allowed integer
    :param most: largest allowed integer
    :return: the value
    :raises ValueError: if the value is no integer, or out of bounds
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, got {shown(value)}")
    return value


def _encode_bound(bound: np.ndarray) -> Any:
    """Encode the bounds of a Box, equal ones as a single number and infinities as strings."""
    flat = bound.ravel().tolist()
    plain = [repr(value) if isinstance(value, float) and math.isinf(value) else value for value in flat]
    return plain[0] if plain and plain.count(plain[0]) == len(plain) else plain


def _decode_bound(content: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape)
    values = content if isinstance(content, list) else [content] * size
    if len(values) != size:
        raise ValueError(f"expected {size} bounds, got {len(values)}")
    numbers = [INFINITIES[value] if isinstance(value, str) else value for value in values]
    if dtype.kind == "f":
        exact = np.array([float(number) for number in numbers])
        limit = float(np.finfo(dtype).max)
    else:
        exact = np.array([checked_int(number, -(2**63), 2**63 - 1) for number in numbers])
        limit = float(np.iinfo(dtype).max)
    if ((np.abs(exact) > limit) & np.isfinite(exact)).any() or (dtype.kind == "u" and (exact < 0).any()):
        raise ValueError(f"expected bounds that fit {dtype}")
    return exact.astype(dtype).reshape(shape)


def _decode_box(content: Mapping[str, Any]) -> spaces.Space:
    shape = tuple(checked_int(size, 0) for size in content["shape"])
    if len(shape) > 8 or math.prod(shape) > MAX_ELEMENTS or content["dtype"] not in DTYPES:
        raise ValueError(f"expected at most {MAX_ELEMENTS} numbers of a known type")
    dtype = np.dtype(content["dtype"])
    low, high = (_decode_bound(content[name], shape, dtype) for name in ("low", "high"))
    if (low > high).any():
        raise ValueError("a lower bound is above the upper one")
    return spaces.Box(low, high, shape, dtype.type)


def _decode_discrete(content: Mapping[str, Any]) -> spaces.Space:
    return spaces.Discrete(checked_int(content["n"]), start=checked_int(content["start"], -(2**31), 2**31))


def _decode_multi_discrete(content: Mapping[str, Any]) -> spaces.Space:
    nvec = [checked_int(n) for n in content["nvec"]]
    if not nvec or sum(nvec) > MAX_ELEMENTS:
        raise ValueError(f"expected choices that sum to 1 to {MAX_ELEMENTS}")
    return spaces.MultiDiscrete(nvec)


def _decode_multi_binary(content: Mapping[str, Any]) -> spaces.Space:
    return spaces.MultiBinary(checked_int(content["n"]))
