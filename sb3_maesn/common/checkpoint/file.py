"""Format of a checkpoint: tensors in ``model.safetensors``, everything else in ``config.json``."""

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
#: Kinds of checkpoint: everything that training needs, or only what acting and adapting need.
CONTENTS = ("training", "agent")


@dataclass(frozen=True)
class CheckpointConfig:
    """Content of ``config.json`` as plain values.

    When it comes from a file, only the types of these fields have been checked, not the values in them.

    :param algorithm: name of the algorithm's class
    :param policy: alias of the policy's class in the algorithm's ``policy_aliases``
    :param policy_kwargs: encoded arguments of the policy
    :param hyperparameters: encoded arguments of the algorithm's constructor
    :param observation_space: encoded observation space
    :param action_space: encoded action space
    :param task_family: ``id`` of the built-in task family of the training and whether its reward is ``sparse``; empty
        for another environment
    :param progress: seed, counters and other single numbers
    :param optimizers: settings of the parameter groups by optimiser
    :param contents: kind of checkpoint, one of ``CONTENTS``
    :param versions: versions of the packages that wrote the checkpoint
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
    """Content of a checkpoint's files.

    :param config: everything except the tensors
    :param tensors: stored tensors by name
    """

    config: CheckpointConfig
    tensors: Mapping[str, StoredTensor]


def package_versions() -> dict[str, str]:
    """Look up the installed versions of the packages on which a model depends.

    :return: versions by package; packages that are not installed are left out
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_checkpoint(path: Path, config: CheckpointConfig, tensors: Mapping[str, th.Tensor]) -> None:
    """Write a checkpoint; an older one of the same name stays intact if that fails.

    :param path: path of a zip file if it ends in ``.zip``, else of a folder
    :param config: everything except the tensors
    :param tensors: tensors by name
    :raises ValueError: if a number is not finite, or a value cannot be written as JSON
    """
    data = dump_tensors(tensors)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(config)}
    write_archive(path, {TENSORS: data, CONFIG: dump_json({**content, "sha256": checksums(content, data)})})


def checksums(content: Mapping[str, Any], tensors: bytes) -> dict[str, str]:
    """Compute the SHA-256 checksums of both files, by which each is known to belong to the other.

    That of ``config.json`` does not depend on white space and on the order of keys.

    :param content: content of ``config.json`` without the checksums
    :param tensors: content of ``model.safetensors``
    :return: checksums in hexadecimal by file name
    """
    plain = json.dumps(content, sort_keys=True, allow_nan=False).encode()
    return {TENSORS: hashlib.sha256(tensors).hexdigest(), CONFIG: hashlib.sha256(plain).hexdigest()}


def read_config(path: str | Path) -> CheckpointConfig:
    """Read the configuration of a checkpoint.

    :param path: path of a folder or zip file, with or without ``.zip``
    :return: configuration
    :raises CheckpointError: if the path is not a checkpoint, or it is damaged or of a newer format
    """
    return _parse_config(read_archive(find_archive(path)))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint and verify its checksums.

    :param path: path of a folder or zip file, with or without ``.zip``
    :return: configuration and stored tensors
    :raises CheckpointError: if the path is not a checkpoint, or it is damaged or of a newer format
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
