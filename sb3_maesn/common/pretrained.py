"""Trained policies as single safetensors files: tensors and JSON, nothing that could run."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import nn

from sb3_maesn.common.files import write_atomically

FORMAT_VERSION = 1
FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
PACKAGES = ("sb3_maesn", "stable_baselines3", "sb3_contrib", "torch", "mujoco", "gymnasium", "numpy")


@dataclass(frozen=True)
class Pretrained:
    """What a file holds.

    :param env_id: the built-in task family it was trained on
    :param algorithm: name of the class
    :param settings: the constructor's arguments that JSON can hold
    :param policy_kwargs: arguments of the policy
    :param facts: seed, steps and versions of the training
    :param tensors: by name
    """

    env_id: str
    algorithm: str
    settings: dict[str, Any]
    policy_kwargs: dict[str, Any]
    facts: dict[str, Any]
    tensors: dict[str, th.Tensor]


def list_pretrained() -> list[str]:
    """The names of the policies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find_pretrained(name: str | Path) -> Path:
    """The file of a name.

    :param name: one of :func:`list_pretrained`, or a path to a ``.safetensors`` file
    :raises ValueError: naming the nearest
    """
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    known = list_pretrained()
    if str(name) in known:
        return FOLDER / f"{name}.safetensors"
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"there is no pretrained model {str(name)!r}{hint} There are: {', '.join(known) or 'none'}")


def write_pretrained(path: Path, content: Pretrained) -> None:
    """Write a file, atomically.

    :param path: the file
    :param content: what to write
    """
    policy_kwargs = dict(content.policy_kwargs)
    if "activation_fn" in policy_kwargs:
        names = {function: name for name, function in ACTIVATIONS.items()}
        policy_kwargs["activation_fn"] = names[policy_kwargs["activation_fn"]]
    header = {
        "format_version": FORMAT_VERSION,
        "env_id": content.env_id,
        "algorithm": content.algorithm,
        "settings": content.settings,
        "policy_kwargs": policy_kwargs,
        "facts": {**content.facts, "versions": {package: version(package) for package in PACKAGES}},
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in content.tensors.items()}
    data = to_bytes(tensors, metadata={"sb3_maesn": json.dumps(header)})
    write_atomically(path, lambda file: file.write(data))


def read_pretrained(path: Path) -> Pretrained:
    """Read a file.

    :param path: the file
    :raises ValueError: if it is not one of ours, or of a newer format
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sb3_maesn", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a model file of this package, got {path.name}: {error}") from None
    if not isinstance(header, Mapping):
        raise ValueError(f"expected a model file of this package, got {path.name} without its settings")
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(f"expected format version {FORMAT_VERSION}, got {header['format_version']} in {path.name}")
    policy_kwargs = dict(header["policy_kwargs"])
    if "activation_fn" in policy_kwargs:
        policy_kwargs["activation_fn"] = ACTIVATIONS[policy_kwargs["activation_fn"]]
    return Pretrained(
        header["env_id"], header["algorithm"], dict(header["settings"]), policy_kwargs, dict(header["facts"]), tensors
    )
