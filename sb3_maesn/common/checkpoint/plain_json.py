"""JSON from a stranger: plain values only, and no number or nesting that costs more than its bytes."""

import json
import math
from collections.abc import Mapping
from typing import Any

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown

MAX_DIGITS = 40  # of a number; a float64 needs 24
MAX_DEPTH = 8


def dump_json(content: Mapping[str, Any]) -> bytes:
    """Write a mapping.

    :param content: plain values; floats are finite and keep every bit
    :raises ValueError: for anything else
    """
    try:
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    except TypeError as error:
        raise ValueError(f"expected plain values, got: {error}") from None


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Read a mapping.

    :param data: UTF-8
    :param name: of the file, for the message
    :raises CheckpointError: if it is no JSON mapping, a key comes twice, or a number is not finite
    """
    try:
        content = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_mapping,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is no JSON, or damaged: {shown(str(error))}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"expected a mapping in {name}, got {type(content).__name__}")
    _check_depth(content, name, MAX_DEPTH)
    return content


def _check_depth(value: Any, name: str, levels: int) -> None:
    if levels == 0:
        raise CheckpointError(f"expected at most {MAX_DEPTH} levels in {name}")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(part, name, levels - 1)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise CheckpointError(f"expected every key once, got {shown([key for key, _ in pairs])}")
    return found


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise CheckpointError(f"expected numbers of at most {MAX_DIGITS} digits, got {shown(text)}")
    return int(text)


def _number(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise CheckpointError(f"expected a finite number of at most {MAX_DIGITS} digits, got {shown(text)}")
    return value


def _constant(text: str) -> float:
    raise CheckpointError(f"expected a finite number, got {text}")
