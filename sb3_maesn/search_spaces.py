"""What there is to tune: for each algorithm a function from an Optuna trial to an entry of ``zoo_configs``.

Entries hold plain values only, so that the best one can be written to a file as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from optuna.trial import BaseTrial

Entry = dict[str, Any]

NET_ARCHS = {"small": [32, 32], "medium": [64, 64], "large": [100, 100]}


def maesn(trial: BaseTrial) -> Entry:
    """MAESN: the inner update and what belongs to it, the prior's episodes, the latent.

    :param trial: what suggests the values
    """
    inner_update = trial.suggest_categorical("inner_update", ["likelihood_ratio", "reparameterised", "reward_weighted"])
    entry = {**_meta_learning(trial), **_latent(trial), "inner_update": inner_update}
    entry |= {"n_prior_episodes": None, "balance_episodes": False}  # in place of what the entry beneath may say
    if inner_update == "reward_weighted":
        entry["temperature_init"] = _log(trial, "temperature_init", 0.03, 1.0)
        if trial.suggest_categorical("shared_prior", [False, True]):
            entry["n_prior_episodes"] = trial.suggest_categorical("n_prior_episodes", [50, 100, 200])
            entry["balance_episodes"] = trial.suggest_categorical("balance_episodes", [False, True])
    else:
        entry["step_size_init"] = _log(trial, "step_size_init", 0.05, 5.0)
    return _with_network(trial, entry)


def latent_space(trial: BaseTrial) -> Entry:
    """LatentSpace: the latent and the step size that adaptation takes.

    :param trial: what suggests the values
    """
    entry = {**_meta_learning(trial), **_latent(trial), "step_size_init": _log(trial, "step_size_init", 0.05, 5.0)}
    return _with_network(trial, entry)


def maml(trial: BaseTrial) -> Entry:
    """MAML: the step size of the inner update, one for all parameters or one for each.

    :param trial: what suggests the values
    """
    step_size = _log(trial, "policy_step_size_init", 0.01, 2.0)
    learned = trial.suggest_categorical("learn_step_sizes", [False, True])
    entry = {**_meta_learning(trial), "policy_step_size_init": step_size, "learn_step_sizes": learned}
    return _with_network(trial, entry)


def rl2(trial: BaseTrial) -> Entry:
    """RL2: PPO's settings and the length of a trial.

    Long trials, many epochs, small batches and large memories are left out, which cost several times the others.

    :param trial: what suggests the values
    """
    n_trials = trial.suggest_categorical("meta_batch_size", [20, 40, 100])
    return {
        "meta_batch_size": n_trials,
        "n_envs": n_trials,  # all at once, whatever the entry beneath may say
        "n_episodes": trial.suggest_int("n_episodes", 2, 4),
        "learning_rate": _log(trial, "learning_rate", 1e-4, 1e-2),
        "batch_size": trial.suggest_categorical("batch_size", [4_000, 8_000, 20_000]),
        "n_epochs": trial.suggest_int("n_epochs", 2, 6),
        "policy_kwargs": {"lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [32, 64])},
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        "ent_coef": _log(trial, "ent_coef", 1e-5, 0.03),
        **_discounts(trial),
    }


def reinforce(trial: BaseTrial) -> Entry:
    """REINFORCE: its step size and batch.

    :param trial: what suggests the values
    """
    entry = {
        "learning_rate": _log(trial, "learning_rate", 1e-4, 0.1),
        "n_episodes": trial.suggest_categorical("n_episodes", [10, 20, 50]),
        "n_gradient_steps": trial.suggest_int("n_gradient_steps", 1, 5),
        **_discounts(trial),
    }
    return _with_network(trial, entry)


def trpo(trial: BaseTrial) -> Entry:
    """TRPO: its trust region and critic.

    :param trial: what suggests the values
    """
    entry = {
        "target_kl": _log(trial, "target_kl", 0.003, 0.1),
        "learning_rate": _log(trial, "learning_rate", 1e-4, 1e-2),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        **_discounts(trial),
    }
    return _with_network(trial, entry)


def vime(trial: BaseTrial) -> Entry:
    """VIME: the weight of the information gain and the network of the dynamics, besides TRPO's.

    :param trial: what suggests the values
    """
    own = {
        "eta": _log(trial, "eta", 1e-4, 1.0),
        "dynamics_learning_rate": _log(trial, "dynamics_learning_rate", 1e-4, 1e-2),
        "n_dynamics_updates": trial.suggest_categorical("n_dynamics_updates", [100, 500]),
        "prior_std": _log(trial, "prior_std", 0.1, 1.0),
    }
    return {**trpo(trial), **own}


#: By the names of ``training.ALGOS``.
SEARCH_SPACES: dict[str, Callable[[BaseTrial], Entry]] = {
    "latent_space": latent_space,
    "maesn": maesn,
    "maml": maml,
    "reinforce": reinforce,
    "rl2": rl2,
    "trpo": trpo,
    "vime": vime,
}


def merge(base: Mapping[str, Any], sampled: Mapping[str, Any]) -> Entry:
    """Put sampled values over an entry; of ``policy_kwargs``, over its single values.

    :param base: entry of a configuration file
    :param sampled: what a search space returned
    :return: a new entry
    """
    policy_kwargs = {**(base.get("policy_kwargs") or {}), **sampled.get("policy_kwargs", {})}
    return {**base, **sampled, **({"policy_kwargs": policy_kwargs} if policy_kwargs else {})}


def _meta_learning(trial: BaseTrial) -> Entry:
    return {
        "meta_batch_size": trial.suggest_categorical("meta_batch_size", [10, 20, 40]),
        "n_episodes": trial.suggest_categorical("n_episodes", [10, 20]),
        "target_kl": _log(trial, "target_kl", 0.003, 0.1),
        **_discounts(trial),
    }


def _latent(trial: BaseTrial) -> Entry:
    return {
        "kl_coef": _log(trial, "kl_coef", 0.003, 1.0),
        "latent_mean_init_std": trial.suggest_categorical("latent_mean_init_std", [0.0, 0.3, 1.0]),
        "policy_kwargs": {"latent_dim": trial.suggest_int("latent_dim", 2, 4)},
    }


def _discounts(trial: BaseTrial) -> Entry:
    # as distances from 1, where the differences are
    gamma = 1 - trial.suggest_float("one_minus_gamma", 0.001, 0.05, log=True)
    gae_lambda = 1 - trial.suggest_float("one_minus_gae_lambda", 0.001, 0.1, log=True)
    return {"gamma": round(gamma, 4), "gae_lambda": round(gae_lambda, 4)}


def _with_network(trial: BaseTrial, entry: Entry) -> Entry:
    network = {
        "net_arch": NET_ARCHS[trial.suggest_categorical("net_arch", list(NET_ARCHS))],
        "activation_fn": trial.suggest_categorical("activation_fn", ["relu", "tanh"]),
    }
    return merge(entry, {"policy_kwargs": network})


def _log(trial: BaseTrial, name: str, low: float, high: float) -> float:
    """A number suggested on a logarithmic scale, with as many digits as a file should hold."""
    return float(f"{trial.suggest_float(name, low, high, log=True):.4g}")
