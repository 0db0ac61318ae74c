"""What a checkpoint holds, and its two files: numbers in ``model.safetensors``, everything else in ``config.json``."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch as th

from sb3_maesn.common.checkpoint.archive import (
    CONFIG,
    TENSORS,
    CheckpointError,
    find_archive,
    read_archive,
    shown,
    write_archive,
)
from sb3_maesn.common.checkpoint.plain_json import dump_json, parse_json
from sb3_maesn.common.checkpoint.tensor_file import StoredTensor, dump_tensors, parse_tensors

FORMAT, FORMAT_VERSION = "sb3_maesn checkpoint", 1
PACKAGES = ("sb3_maesn", "stable_baselines3", "sb3_contrib", "torch", "mujoco", "gymnasium", "numpy")
#: All that is needed to go on training, or what acts and adapts alone.
CONTENTS = ("training", "agent")


@dataclass(frozen=True)
class CheckpointConfig:
    """The part of a checkpoint that is no tensor: plain values, of which nothing has been believed yet.

    :param algorithm: name of the class
    :param policy: name of the policy's class, among the algorithm's ``policy_aliases``
    :param policy_kwargs: arguments of the policy
    :param hyperparameters: the constructor's arguments
    :param observation_space: what the policy sees
    :param action_space: what it does
    :param task_family: ``id`` of the built-in family it was trained on and the family's parameters, or empty
    :param progress: seed, counters and whatever else is a single number
    :param optimizers: their settings by name
    :param contents: one of ``CONTENTS``
    :param versions: of the packages it was written with
    """

    algorithm: str
    policy: str
    policy_kwargs: dict[str, Any]
    hyperparameters: dict[str, Any]
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    task_family: dict[str, Any]
    progress: dict[str, Any]
    optimizers: dict[str, Any]
    contents: str = "training"
    versions: dict[str, Any] = field(default_factory=lambda: package_versions())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it stands in its files.

    :param config: all but the tensors
    :param tensors: by name
    """

    config: CheckpointConfig
    tensors: Mapping[str, StoredTensor]


def package_versions() -> dict[str, str]:
    """The installed versions of what a model depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_checkpoint(path: Path, config: CheckpointConfig, tensors: Mapping[str, th.Tensor]) -> None:
    """Write a checkpoint; an older one of that name stays whole if that fails.

    :param path: a zip file if it ends in ``.zip``, else a folder
    :param config: all but the tensors
    :param tensors: by name
    :raises ValueError: if a number is not finite, or a value is not plain
    """
    data = dump_tensors(tensors)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(config)}
    write_archive(path, {TENSORS: data, CONFIG: dump_json({**content, "sha256": checksums(content, data)})})


def checksums(content: Mapping[str, Any], tensors: bytes) -> dict[str, str]:
    """The sums that bind the two files to each other, over the values whatever the white space and the keys' order.

    :param content: of the one, without its sums
    :param tensors: the other
    """
    plain = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return {TENSORS: hashlib.sha256(tensors).hexdigest(), CONFIG: hashlib.sha256(plain).hexdigest()}


def read_config(path: str | Path) -> CheckpointConfig:
    """What a checkpoint says about itself.

    :param path: folder or zip file, with or without ``.zip``
    :raises CheckpointError: if it is damaged
    """
    return _parse_config(read_archive(find_archive(path)))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    :param path: folder or zip file, with or without ``.zip``
    :raises CheckpointError: if it is damaged, of a newer format, or no checkpoint
    """
    members = read_archive(find_archive(path))
    return Checkpoint(_parse_config(members), parse_tensors(members[TENSORS]))


def _parse_config(members: Mapping[str, bytes]) -> CheckpointConfig:
    content = parse_json(members[CONFIG], CONFIG)
    _check_version(content.pop("format", None), content.pop("format_version", None))
    hashes = content.pop("sha256", None)
    expected = checksums({"format": FORMAT, "format_version": FORMAT_VERSION, **content}, members[TENSORS])
    if hashes != expected:
        wrong = [name for name in expected if not isinstance(hashes, Mapping) or hashes.get(name) != expected[name]]
        raise CheckpointError(f"{' and '.join(wrong) or 'sha256'} was changed after it was written: the sums differ")
    types = {part.name: str if part.type in (str, "str") else dict for part in fields(CheckpointConfig)}
    if set(content) != set(types):
        raise CheckpointError(f"expected the keys {sorted(types)} in {CONFIG}, got {shown(sorted(content))}")
    for name, kind in types.items():
        if not isinstance(content[name], kind):
            raise CheckpointError(f"expected {name} to be a {kind.__name__}, got {shown(content[name])}")
    if content["contents"] not in CONTENTS:
        raise CheckpointError(f"expected contents to be one of {CONTENTS}, got {shown(content['contents'])}")
    return CheckpointConfig(**content)


def _check_version(name: Any, number: Any) -> None:
    if name != FORMAT:
        raise CheckpointError(f"expected a {FORMAT}, got format {shown(name)} in {CONFIG}")
    if type(number) is int and number > FORMAT_VERSION:
        raise CheckpointError(f"expected format version {FORMAT_VERSION}, got {number}: a newer sb3_maesn can read it")
    if type(number) is not int or number != FORMAT_VERSION:
        raise CheckpointError(f"expected format version {FORMAT_VERSION}, got {shown(number)}")
