"""Checks of the settings of meta-training, made when a model is constructed or loaded."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

BASELINES = ("linear", "critic")

#: Smallest allowed values.
AT_LEAST = {
    "meta_batch_size": 1,
    "n_episodes": 2,
    "n_inner_steps": 0,
    "n_critic_updates": 1,
    "cg_max_steps": 1,
    "line_search_max_iter": 1,
    "fisher_subsampling": 1,
    "kl_coef": 0,
    "latent_kl_coef": 0,
    "latent_mean_init_std": 0,
    "cg_damping": 0,
}
POSITIVE = (
    "baseline_ridge",
    "step_size_init",
    "step_size_max",
    "log_std_step_size_max",
    "policy_step_size_init",
    "temperature_init",
    "inner_std_floor",
    "target_kl",
)
UP_TO_ONE = ("gamma", "gae_lambda")
WITHIN_ONE = ("line_search_shrinking_factor",)  # strictly between 0 and 1
#: Settings whose values, if not None, are numbers or schedules.
NUMBERS = (*AT_LEAST, *POSITIVE, *UP_TO_ONE, *WITHIN_ONE, "n_prior_episodes")


def check_fixed(settings: Mapping[str, Any], fixed: Mapping[str, Any], owner: str) -> None:
    """Check that the settings that define an algorithm have their only allowed values.

    :param settings: values by argument name
    :param fixed: the only allowed values, by argument name
    :param owner: name of the algorithm, for the message
    :raises ValueError: if a setting has another value
    """
    for name, value in fixed.items():
        if settings[name] != value:
            raise ValueError(f"{owner} is the algorithm with {name}={value!r}, got {settings[name]!r}")


def check_at_least(settings: Mapping[str, Any], at_least: Mapping[str, float]) -> None:
    """Check settings against their smallest allowed values.

    :param settings: values by argument name; a missing argument is not checked
    :param at_least: smallest allowed values by argument name
    :raises ValueError: if a setting is smaller, or NaN
    """
    for name, least in at_least.items():
        if name in settings and not settings[name] >= least:
            raise ValueError(f"{name} must be at least {least}, got {settings[name]}")


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of meta-training against their ranges and against each other.

    :param settings: values by argument name, of the types that the constructor's annotations name
    :raises ValueError: if a setting is out of range, or settings contradict each other
    """
    check_at_least(settings, AT_LEAST)
    for name in POSITIVE:
        value = settings.get(name)
        if callable(value):
            _check_schedule(name, value)
        elif value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    for name in UP_TO_ONE:
        if name in settings and not 0 <= settings[name] <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {settings[name]}")
    for name in WITHIN_ONE:
        if name in settings and not 0 < settings[name] < 1:
            raise ValueError(f"{name} must be above 0 and below 1, got {settings[name]}")
    if settings["baseline"] not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {settings['baseline']!r}")
    _check_prior_episodes(settings)


def _check_schedule(name: str, schedule: Schedule) -> None:
    first, last = (value_at(name, schedule, remaining) for remaining in (1.0, 0.0))
    if first == last == 0:
        raise ValueError(f"{name} must not be 0 all the time, got a schedule from {first} to {last}")


def value_at(name: str, setting: float | Schedule, remaining: float) -> float:
    """Evaluate a setting, which may be a schedule, at a point of the training.

    :param name: name of the setting, for the message
    :param setting: number, or schedule of the remaining fraction of the training
    :param remaining: fraction of the training that remains, from 1 to 0
    :return: value of the setting
    :raises ValueError: if a schedule returns anything but a finite number of at least 0
    """
    if not callable(setting):
        return float(setting)
    value: Any = setting(remaining)  # a user's function may return anything
    if not (isinstance(value, Real) and 0 <= float(value) < math.inf):
        when = f"where {remaining:.3g} of the training is left"
        raise ValueError(f"{name} must be a number of at least 0 at all times, got {value!r} {when}")
    return float(value)


def _check_prior_episodes(settings: Mapping[str, Any]) -> None:
    n, estimator = settings["n_prior_episodes"], settings["inner_update"]
    if n is not None:
        alone = settings["n_inner_steps"] == 1 and not settings["adapt_policy"]
        if n < 2 or not alone or estimator == "reparameterised":
            raise ValueError(
                "n_prior_episodes must be at least 2 and goes with one inner step of the latents alone by"
                f" likelihood_ratio or reward_weighted, got n_prior_episodes={n},"
                f" n_inner_steps={settings['n_inner_steps']}, inner_update={estimator!r},"
                f" adapt_policy={settings['adapt_policy']}"
            )
    if settings["balance_episodes"] and (n is None or estimator != "reward_weighted"):
        raise ValueError(
            "balance_episodes goes with n_prior_episodes and inner_update='reward_weighted',"
            f" got n_prior_episodes={n}, inner_update={estimator!r}"
        )
