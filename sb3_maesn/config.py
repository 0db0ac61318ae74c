"""Hyperparameter files: plain YAML becomes constructor arguments. No string of a file is ever evaluated."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_maesn.common.adaptation.rules import RULES
from sb3_maesn.common.checkpoint.archive import CheckpointError
from sb3_maesn.common.checkpoint.plain_settings import CLASSES, decode_value
from sb3_maesn.common.constructors import constructor_annotations, constructor_parameters, described, fits
from sb3_maesn.common.suggestions import did_you_mean

#: Keys of an entry that the scripts read themselves and no constructor takes, and the types of their values.
SCRIPT_KEYS: dict[str, Any] = {"policy": str, "n_timesteps": int | None, "n_envs": int, "eval_rule": str | None}
#: Arguments of every constructor that a file must not set because they are flags of the scripts.
FLAGS = ("seed", "device", "verbose")
#: Smallest values of numbers that no constructor checks.
AT_LEAST = {"n_timesteps": 1, "n_envs": 1, "stats_window_size": 1, "lstm_hidden_size": 1, "n_lstm_layers": 1}


class ConfigError(ValueError):
    """A user's mistake in a file or a flag, with a message that can be understood without a traceback."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values.

    :param path: YAML file
    :return: content of the file
    :raises ConfigError: if the file is missing, not YAML, asks for Python objects, or is no mapping
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of environment ids, got {type(content).__name__}")
    return content


def load_entry(path: str | Path, env_id: str) -> dict[str, Any]:
    """Read the entry of an environment in a hyperparameter file, or the entry ``default`` if it has none of its own.

    :param path: YAML file such as ``zoo_configs/maesn.yml``
    :param env_id: environment id
    :return: hyperparameters by name
    :raises ConfigError: if there is neither entry, or the entry is no mapping
    """
    content = load_yaml(path)
    key = env_id if env_id in content else "default"
    if key not in content:
        raise ConfigError(f"{path} has no entry for {env_id} and no default{did_you_mean(env_id, content)}")
    entry = content[key]
    if not isinstance(entry, dict):
        raise ConfigError(f"the entry {key} of {path} must be a mapping, got {type(entry).__name__}")
    return dict(entry)


def parse_overrides(pairs: Iterable[str], flag: str = "--hyperparams") -> dict[str, Any]:
    """Parse arguments of the command line of the form ``key:value``, where the value is YAML.

    :param pairs: arguments such as ``["gamma:0.95", "policy_kwargs:{latent_dim: 3}"]``
    :param flag: flag that takes these arguments, for the error message
    :return: values by key
    :raises ConfigError: if an argument is not of that form
    """
    overrides = {}
    for pair in pairs:
        key, colon, value = pair.partition(":")
        if not colon or not key:
            raise ConfigError(f"{flag} takes key:value, got {pair!r}")
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {key} is not plain YAML: {value!r}") from error
    return overrides


def constructor_arguments(entry: Mapping[str, Any], algorithm: type) -> dict[str, Any]:
    """Turn an entry of a hyperparameter file into keyword arguments of an algorithm.

    The keys of ``SCRIPT_KEYS`` are left out. Notations of schedules and names of classes become objects.

    :param entry: plain values by key
    :param algorithm: class of the algorithm
    :return: keyword arguments of the constructor
    :raises ConfigError: if the constructor has no such argument, or a value is not of its type or is out of range
    """
    entry = {key: value for key, value in entry.items() if key not in SCRIPT_KEYS}
    for key in entry:
        if key in FLAGS:
            raise ConfigError(f"{key} is no hyperparameter: it has a flag of its own, --{key}")
    known = [name for name in constructor_parameters(algorithm) if not name.startswith("_")]
    check_keys(entry, known, f"{algorithm.__name__}'s constructor")
    types = constructor_annotations(algorithm)
    arguments = {key: typed_value(key, value, types[key]) for key, value in entry.items()}
    check_at_least(arguments)
    if arguments.get("policy_kwargs") is not None:
        arguments["policy_kwargs"] = policy_arguments(arguments["policy_kwargs"], algorithm)
    return arguments


def policy_arguments(policy_kwargs: Mapping[str, Any], algorithm: Any) -> dict[str, Any]:
    """Check the keyword arguments of a policy and replace names of activation functions and optimisers by classes.

    :param policy_kwargs: plain values by key
    :param algorithm: class of the algorithm, whose ``policy_aliases`` are the policies in question
    :return: keyword arguments of the policy
    :raises ConfigError: if no policy of the algorithm has such an argument, or a value is not of its type or is out of
        range
    """
    types: dict[str, Any] = {}
    for policy in algorithm.policy_aliases.values():
        types = {**constructor_annotations(policy), **types}
    known = [name for name in types if name not in ("observation_space", "action_space", "lr_schedule")]
    check_keys(policy_kwargs, known, f"{algorithm.__name__}'s policy")
    named = {key: class_of(key, value) for key, value in policy_kwargs.items()}
    arguments = {key: typed_value(f"{key} of policy_kwargs", value, types[key]) for key, value in named.items()}
    check_at_least(arguments)
    check_net_arch(arguments.get("net_arch"))
    return arguments


def check_net_arch(net_arch: Sequence[int] | Mapping[str, Sequence[int]] | None) -> None:
    """Check the hidden layers of a policy.

    :param net_arch: sizes of the hidden layers, which may be given separately for the actor (``pi``) and the critic
        (``vf``); None for the default
    :raises ConfigError: if a layer has no units, or a network has another name
    """
    networks = net_arch if isinstance(net_arch, Mapping) else {"pi": net_arch or ()}
    check_keys(networks, ("pi", "vf"), "net_arch of policy_kwargs")
    if any(size < 1 for sizes in networks.values() for size in sizes):
        raise ConfigError(f"the layers in net_arch of policy_kwargs must have at least 1 unit each, got {net_arch}")


def class_of(key: str, value: Any) -> Any:
    """Look up the class that a value names, if the argument takes a class.

    :param key: name of an argument of a policy
    :param value: value of the argument
    :return: class; the unchanged value if it is not a string or the argument does not take a class
    :raises ConfigError: if there is no class of that name
    """
    if not isinstance(value, str) or key not in CLASSES:
        return value
    if value.lower() not in CLASSES[key]:
        raise ConfigError(f"{key} must be one of {', '.join(CLASSES[key])}, got {value!r}")
    return CLASSES[key][value.lower()]


def script_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of ``SCRIPT_KEYS`` to their types.

    :param config: plain values by key, including arguments of the constructor
    :return: copy of ``config`` with converted values
    :raises ConfigError: if a value is not of its type or is out of range, or there is no such adaptation rule
    """
    own = {key: typed_value(key, config[key], kind) for key, kind in SCRIPT_KEYS.items() if key in config}
    check_at_least(own)
    check_rule(own.get("eval_rule"))
    return {**config, **own}


def check_at_least(values: Mapping[str, Any]) -> None:
    """Check values against their smallest permitted values in ``AT_LEAST``.

    :param values: values by key, of the right types
    :raises ConfigError: if a value is too small
    """
    for key, least in AT_LEAST.items():
        if values.get(key) is not None and values[key] < least:
            raise ConfigError(f"{key} must be at least {least}, got {values[key]}")


def check_rule(rule: str | None) -> None:
    """Check that there is an adaptation rule.

    :param rule: name of the rule, None for the default
    :raises ConfigError: if there is no rule of that name
    """
    if rule is not None and rule not in RULES:
        raise ConfigError(f"the adaptation rule must be one of {', '.join(RULES)}, got {rule!r}")


def typed_value(key: str, value: Any, kind: Any) -> Any:
    """Convert a plain value to a type, such as ``"lin_x"`` to a schedule or ``"1e6"`` to a number.

    :param key: name of the value, for the error message
    :param value: plain value
    :param kind: type
    :return: value of the type
    :raises ConfigError: if the value does not stand for one of the type
    """
    if fits(value, kind):
        return value
    made = to_value(key, value)
    if isinstance(made, float) and made.is_integer() and not fits(made, kind):
        made = int(made)
    if not fits(made, kind):
        raise ConfigError(f"{key} must be {described(kind)}, got {value!r}")
    return made


def to_value(key: str, value: Any) -> Any:
    """Turn a notation of a schedule or a number into the value that it stands for.

    ``"lin_x"`` is a schedule that falls linearly from x to 0. ``{"linear": [start, end, end_fraction]}``, the notation
    of checkpoints, is SB3's ``LinearSchedule``. ``"1e-3"``, which YAML reads as a string, is a number.

    :param key: name of the value, for the error message
    :param value: plain value
    :return: schedule or number; the unchanged value if it is neither
    :raises ConfigError: if the value looks like a schedule but its numbers cannot be read
    """
    if isinstance(value, Mapping) and "linear" in value:
        numbers = value["linear"]
        plain = [to_value(key, part) for part in numbers] if isinstance(numbers, list) else numbers
        try:
            return decode_value(key, {**value, "linear": plain}, None)
        except CheckpointError as error:
            raise ConfigError(str(error)) from error
    if not isinstance(value, str):
        return value
    if value.startswith("lin_"):
        slope = _number(value.removeprefix("lin_"))
        if slope is None:
            raise ConfigError(f"{key}: a linear schedule is written lin_<number>, got {value!r}")
        return LinearSchedule(slope, 0.0, 1.0)
    number = _number(value)
    return value if number is None else number


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def check_keys(keys: Iterable[str], known: Sequence[str], owner: str) -> None:
    """Check that all keys are known.

    :param keys: keys that the user gave
    :param known: keys that exist
    :param owner: description of what the keys belong to, for the error message
    :raises ConfigError: if a key is unknown; the message suggests similar ones
    """
    for key in keys:
        if key not in known:
            raise ConfigError(f"{owner} knows no {key!r}{did_you_mean(key, known)}")
