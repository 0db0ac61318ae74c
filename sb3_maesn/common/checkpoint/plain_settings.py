"""Conversion of hyperparameters and policy arguments to and from plain values; only listed classes are allowed."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_maesn.common.checkpoint.archive import CheckpointError, shown
from sb3_maesn.common.checkpoint.plain_spaces import checked_int

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
OPTIMIZERS: dict[str, type[th.optim.Optimizer]] = {
    "adam": th.optim.Adam,
    "adamw": th.optim.AdamW,
    "rmsprop": th.optim.RMSprop,
    "sgd": th.optim.SGD,
}
EXTRACTORS: dict[str, type[nn.Module]] = {"flatten": FlattenExtractor}
#: Policy arguments that are classes, with the classes that a file may name.
CLASSES: dict[str, Mapping[str, type]] = {
    "activation_fn": ACTIVATIONS,
    "optimizer_class": OPTIMIZERS,
    "features_extractor_class": EXTRACTORS,
}
#: Policy arguments that are bools.
SWITCHES = (
    "glorot_init",
    "ortho_init",
    "full_std",
    "use_expln",
    "squash_output",
    "share_features_extractor",
    "normalize_images",
    "shared_lstm",
    "enable_critic_lstm",
)
#: Policy arguments that are sizes; ``model_state.check_sizes`` limits them by the number of weights in the file.
SIZES = ("latent_dim", "hidden_size", "lstm_hidden_size", "n_lstm_layers", "n_layers", "features_dim")
OPTIMIZER_KWARGS = ("betas", "eps", "weight_decay", "amsgrad", "momentum", "alpha", "centered", "nesterov")
MAX_WIDTH, MAX_LAYERS = 2**16, 16
MAX_SETTING = 2**40
MAX_TEXT = 200


def encode_value(name: str, value: Any) -> Any:
    """Encode a hyperparameter as a plain value.

    :param name: name of the hyperparameter, for the message
    :param value: number, bool, string, None, list of these, or constant or linear schedule of SB3
    :return: plain value
    :raises ValueError: if the value is anything else, such as a schedule that is a function
    """
    if isinstance(value, FloatSchedule):
        return encode_value(name, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, LinearSchedule):
        return {"linear": [encode_value(name, part) for part in (value.start, value.end, value.end_fraction)]}
    if isinstance(value, list | tuple):
        return [encode_value(name, part) for part in value]
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Real):  # NumPy's numbers included
        return int(value) if isinstance(value, Integral) else float(value)
    raise ValueError(f"expected a plain value or a linear schedule for {name}, got {value!r}: `save` keeps that")


def decode_value(name: str, content: Any, default: Any) -> Any:
    """Decode a hyperparameter that :func:`encode_value` encoded.

    :param name: name of the hyperparameter, for the message
    :param content: plain value from a file
    :param default: default value in the constructor, whose type is required; None if any type fits
    :return: hyperparameter
    :raises CheckpointError: if the value has another type, or is too large or too long
    """
    if isinstance(content, dict):
        return _linear_schedule(name, content)
    if isinstance(content, list):
        if len(content) > MAX_LAYERS or (default is not None and not isinstance(default, list | tuple)):
            raise CheckpointError(f"expected a value like {default!r} for {name}, got {shown(content)}")
        return [decode_value(name, part, None) for part in content]
    fits = default is None or content is None or type(content) is type(default)
    if not fits and not (isinstance(default, float) and type(content) is int):
        raise CheckpointError(f"expected a value like {default!r} for {name}, got {shown(content)}")
    if (isinstance(content, str) and len(content) > MAX_TEXT) or (
        isinstance(content, int) and abs(content) > MAX_SETTING
    ):
        raise CheckpointError(f"expected a smaller value for {name}, got {shown(content)}")
    return content


def _linear_schedule(name: str, content: Mapping[str, Any]) -> LinearSchedule:
    numbers = content.get("linear")
    if len(content) == 1 and isinstance(numbers, list) and len(numbers) == 3 and all(map(_is_number, numbers)):
        start, end, end_fraction = numbers
        if end_fraction > 0:
            return LinearSchedule(start, end, end_fraction)
    raise CheckpointError(f"expected a number or a linear schedule for {name}, got {shown(content)}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def encode_policy_kwargs(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Encode the arguments of a policy as plain values.

    :param policy_kwargs: keyword arguments of the policy
    :return: plain values by argument name
    :raises ValueError: if an argument or its value is not allowed in a checkpoint
    """
    encoded: dict[str, Any] = {}
    for name, value in policy_kwargs.items():
        if name in CLASSES:
            by_class = {cls: key for key, cls in CLASSES[name].items()}
            if value not in by_class:
                raise ValueError(
                    f"expected one of {', '.join(CLASSES[name])} as {name}, got {value}: `save` keeps that"
                )
            encoded[name] = by_class[value]
        else:
            encoded[name] = value
    decode_policy_kwargs(encoded)  # refuse to write what could not be read back
    return encoded


def decode_policy_kwargs(content: Any) -> dict[str, Any]:
    """Decode the arguments of a policy that :func:`encode_policy_kwargs` encoded.

    :param content: plain value from a file
    :return: keyword arguments of the policy
    :raises CheckpointError: if an argument or its value is not allowed
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"expected a mapping of policy arguments, got {shown(content)}")
    return {name: _policy_argument(name, value) for name, value in content.items()}


def _policy_argument(name: str, value: Any) -> Any:
    try:
        if name in CLASSES:
            return CLASSES[name][value]
        if name in SIZES:
            return checked_int(value, 0, MAX_WIDTH)
        if name == "net_arch":
            return None if value is None else _net_arch(value)
        if name == "optimizer_kwargs" and set(value) <= set(OPTIMIZER_KWARGS):
            return {key: decode_value(key, part, None) for key, part in value.items()}
        if (name in SWITCHES and type(value) is bool) or (name == "log_std_init" and _is_number(value)):
            return value
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the policy argument {name} cannot be {shown(value)}: {shown(str(error))}") from None
    known = ", ".join([*CLASSES, *SIZES, *SWITCHES, "net_arch", "log_std_init", "optimizer_kwargs"])
    raise CheckpointError(f"expected policy arguments among {known}, got {shown(name)} = {shown(value)}")


def _net_arch(value: Any) -> list[int] | dict[str, list[int]]:
    if isinstance(value, Mapping):
        if not set(value) <= {"pi", "vf"}:
            raise ValueError("expected the keys pi and vf")
        return {name: _widths(widths) for name, widths in value.items()}
    return _widths(value)


def _widths(value: Any) -> list[int]:
    if not isinstance(value, list | tuple) or len(value) > MAX_LAYERS:
        raise ValueError(f"expected a list of at most {MAX_LAYERS} widths")
    return [checked_int(width, 1, MAX_WIDTH) for width in value]
