"""JSON from untrusted files: plain values, with limits on the length of numbers and on the depth of nesting."""

import json
import math
from collections.abc import Mapping
from typing import Any

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown

MAX_DIGITS = 40  # characters of a number; a float64 needs 24
MAX_DEPTH = 8


def dump_json(content: Mapping[str, Any]) -> bytes:
    """Encode a mapping as JSON; floats keep every bit.

    :param content: plain values by name
    :return: UTF-8 bytes
    :raises ValueError: if a value is not plain, or a float is not finite
    """
    try:
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    except TypeError as error:
        raise ValueError(f"expected plain values, got: {error}") from None


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Decode a mapping from JSON.

    :param data: UTF-8 bytes
    :param name: name of the file, for the message
    :return: plain values by name
    :raises CheckpointError: if the data are no JSON mapping, a key occurs twice, a number is not finite or too long, or
        the nesting is too deep
    """
    try:
        content = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_mapping_of_unique_keys,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
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


def _mapping_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise CheckpointError(f"expected every key once, got {shown([key for key, _ in pairs])}")
    return found


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise CheckpointError(f"expected numbers of at most {MAX_DIGITS} digits, got {shown(text)}")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text) if len(text) <= MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise CheckpointError(f"expected a finite number of at most {MAX_DIGITS} digits, got {shown(text)}")
    return value


def _refuse_constant(text: str) -> float:
    """Refuse NaN and Infinity, which Python's parser would accept."""
    raise CheckpointError(f"expected a finite number, got {text}")
