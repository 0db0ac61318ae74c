"""Hyperparameter files: safe YAML in, constructor arguments out. No string of a file is ever evaluated."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_maesn.common.checkpoint.archive import CheckpointError
from sb3_maesn.common.checkpoint.plain_settings import CLASSES, decode_value
from sb3_maesn.common.constructors import constructor_annotations, constructor_parameters, described, fits

#: Keys of an entry that are the training script's, not the constructor's, and the types of their values.
SCRIPT_KEYS: dict[str, Any] = {"policy": str, "n_timesteps": int | None, "n_envs": int, "eval_rule": str | None}
#: Arguments of every constructor that are the script's flags.
FLAGS = ("seed", "device", "verbose")


class ConfigError(ValueError):
    """A user's mistake in a file or a flag; its message stands alone."""


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping with plain values only.

    :param path: YAML file
    :return: its content
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
    """Read the hyperparameters of one environment, or the entry ``default`` where it has none of its own.

    :param path: YAML file such as ``zoo_configs/maesn.yml``
    :param env_id: environment id
    :return: the entry
    :raises ConfigError: if there is neither entry, or it is no mapping
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
    """Parse ``key:value`` arguments of the command line, the values being YAML.

    :param pairs: such as ``["gamma:0.95", "policy_kwargs:{latent_dim: 3}"]``
    :param flag: flag that they were given to, for the message
    :return: keys and values
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
    """Turn an entry into keyword arguments of an algorithm: schedules and classes by name become objects.

    :param entry: keys and plain values, without the script's own keys
    :param algorithm: class whose constructor takes them
    :return: keyword arguments
    :raises ConfigError: if the constructor knows no such key, or a value is not of its type
    """
    for key in entry:
        if key in FLAGS:
            raise ConfigError(f"{key} is no hyperparameter: it has a flag of its own, --{key}")
    check_keys(entry, constructor_parameters(algorithm), f"{algorithm.__name__}'s constructor")
    types = constructor_annotations(algorithm)
    arguments = {key: typed_value(key, value, types[key]) for key, value in entry.items()}
    if arguments.get("policy_kwargs") is not None:
        arguments["policy_kwargs"] = policy_arguments(arguments["policy_kwargs"], algorithm)
    return arguments


def policy_arguments(policy_kwargs: Mapping[str, Any], algorithm: Any) -> dict[str, Any]:
    """Check the keyword arguments of a policy; names of activation functions and optimisers become classes.

    :param policy_kwargs: keys and plain values
    :param algorithm: class that takes the policy, by one of its names
    :return: keyword arguments
    :raises ConfigError: if none of its policies knows a key, or a value is not of its type
    """
    types: dict[str, Any] = {}
    for policy in algorithm.policy_aliases.values():
        types = {**constructor_annotations(policy), **types}
    known = [name for name in types if name not in ("observation_space", "action_space", "lr_schedule")]
    check_keys(policy_kwargs, known, f"{algorithm.__name__}'s policy")
    named = {key: class_of(key, value) for key, value in policy_kwargs.items()}
    return {key: typed_value(f"{key} of policy_kwargs", value, types[key]) for key, value in named.items()}


def class_of(key: str, value: Any) -> Any:
    """Look up the class that a name stands for.

    :param key: key of a policy's arguments
    :param value: its value
    :return: the class, or the value as it is where it is no name or the key takes no class
    :raises ConfigError: if the name is unknown
    """
    if not isinstance(value, str) or key not in CLASSES:
        return value
    if value.lower() not in CLASSES[key]:
        raise ConfigError(f"{key} must be one of {', '.join(CLASSES[key])}, got {value!r}")
    return CLASSES[key][value.lower()]


def script_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check the values of the script's own keys.

    :param config: keys and plain values, the constructor's among them
    :return: the same with whole numbers where the script takes them
    :raises ConfigError: if a value is not of its type
    """
    own = {key: typed_value(key, config[key], kind) for key, kind in SCRIPT_KEYS.items() if key in config}
    return {**config, **own}


def typed_value(key: str, value: Any, kind: Any) -> Any:
    """Make a plain value one of a type, if it can stand for one: ``"lin_x"`` for a schedule, ``"1e6"`` for a number.

    :param key: for the message
    :param value: plain value
    :param kind: type that it shall have
    :return: the value
    :raises ConfigError: naming the key, the type and the value
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
    """Turn the notations of YAML files into what constructors take.

    ``"lin_x"`` is a schedule that falls linearly from x to 0, ``{"linear": [start, end, end_fraction]}``, as our
    checkpoints have it, SB3's ``LinearSchedule``, and ``"1e-3"``, a string to YAML, a number.

    :param key: for the message
    :param value: value of a hyperparameter
    :return: the schedule, the number, or the value as it is
    :raises ConfigError: if a schedule's numbers are none
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
    """Refuse the first key that is not known.

    :param keys: keys given
    :param known: keys that exist
    :param owner: who knows the keys, for the message
    :raises ConfigError: naming the nearest known key
    """
    for key in keys:
        if key not in known:
            raise ConfigError(f"{owner} knows no {key!r}{did_you_mean(key, known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names.

    :param name: name given
    :param known: names that exist
    :return: the end of a sentence, empty where nothing is near
    """
    by_lower = {str(k).lower(): str(k) for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
