"""Search spaces of tuning: for each algorithm, a function from an Optuna trial to an entry of a hyperparameter file.

Entries contain plain values only, so that the best one can be written to a file.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Entry = dict[str, Any]

NET_ARCHS = {"small": [32, 32], "medium": [64, 64], "large": [100, 100]}


class Suggests(Protocol):
    """Methods of an Optuna trial that search spaces use."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of several values."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Suggest a whole number within bounds."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Suggest a number within bounds."""


class PartlyFixed:
    """Trial that samples only the parameters that fixed settings leave open.

    :param trial: trial that suggests the other values
    :param fixed: values of parameters by name, as :func:`fixed_parameters` returns them
    """

    def __init__(self, trial: Suggests, fixed: Mapping[str, Any]) -> None:
        self.trial = trial
        self.fixed = fixed

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return the fixed value, on which other parameters may depend, or suggest one."""
        return self.fixed[name] if name in self.fixed else self.trial.suggest_categorical(name, choices)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return any value in place of a fixed one, which overrides it later, or suggest one."""
        return low if name in self.fixed else self.trial.suggest_int(name, low, high)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Return any value in place of a fixed one, which overrides it later, or suggest one."""
        return low if name in self.fixed else self.trial.suggest_float(name, low, high, log=log)


def fixed_parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Find the parameters of search spaces that fixed settings determine.

    :param settings: entry of a hyperparameter file that trials must not change
    :return: values by name of the parameter; for a parameter ``one_minus_x``, the value of x
    """
    fixed = {**settings, **(settings.get("policy_kwargs") or {})}
    fixed |= {f"one_minus_{name}": fixed[name] for name in ("gamma", "gae_lambda") if name in fixed}
    if "n_prior_episodes" in fixed:
        fixed["shared_prior"] = fixed["n_prior_episodes"] is not None
    elif fixed.get("balance_episodes"):
        fixed["shared_prior"] = True
    return fixed


def maesn(trial: Suggests) -> Entry:
    """Sample MAESN's inner update with its settings, the episodes of the prior, the latent and the network.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    inner_update = trial.suggest_categorical("inner_update", ["likelihood_ratio", "reparameterised", "reward_weighted"])
    entry = {**_meta_learning(trial), **_latent(trial), "inner_update": inner_update}
    entry |= {"n_prior_episodes": None, "balance_episodes": False}  # override the base entry
    if inner_update == "reward_weighted":
        entry["temperature_init"] = _log(trial, "temperature_init", 0.03, 1.0)
        if trial.suggest_categorical("shared_prior", [False, True]):
            entry["n_prior_episodes"] = trial.suggest_categorical("n_prior_episodes", [50, 100, 200])
            entry["balance_episodes"] = trial.suggest_categorical("balance_episodes", [False, True])
    else:
        entry["step_size_init"] = _log(trial, "step_size_init", 0.05, 5.0)
    return _with_network(trial, entry)


def latent_space(trial: Suggests) -> Entry:
    """Sample LatentSpace's latent, the step size of its adaptation and the network.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    entry = {**_meta_learning(trial), **_latent(trial), "step_size_init": _log(trial, "step_size_init", 0.05, 5.0)}
    return _with_network(trial, entry)


def maml(trial: Suggests) -> Entry:
    """Sample MAML's initial inner step size, whether step sizes are learned, and the network.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    step_size = _log(trial, "policy_step_size_init", 0.01, 2.0)
    learned = trial.suggest_categorical("learn_step_sizes", [False, True])
    entry = {**_meta_learning(trial), "policy_step_size_init": step_size, "learn_step_sizes": learned}
    return _with_network(trial, entry)


def rl2(trial: Suggests) -> Entry:
    """Sample RL2's settings of PPO, the number of trials and their length, and the size of the LSTM.

    The space leaves out long trials, many epochs, small batches and large LSTMs, which take several times as long.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    n_trials = trial.suggest_categorical("meta_batch_size", [20, 40, 100])
    return {
        "meta_batch_size": n_trials,
        "n_envs": n_trials,  # all trials at once; overrides the base entry
        "n_episodes": trial.suggest_int("n_episodes", 2, 4),
        "learning_rate": _log(trial, "learning_rate", 1e-4, 1e-2),
        "batch_size": trial.suggest_categorical("batch_size", [4_000, 8_000, 20_000]),
        "n_epochs": trial.suggest_int("n_epochs", 2, 6),
        "policy_kwargs": {"lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [32, 64])},
        "clip_range": trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3]),
        "ent_coef": _log(trial, "ent_coef", 1e-5, 0.03),
        **_discounts(trial),
    }


def reinforce(trial: Suggests) -> Entry:
    """Sample REINFORCE's learning rate, its number of episodes and gradient steps, and the network.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    entry = {
        "learning_rate": _log(trial, "learning_rate", 1e-4, 0.1),
        "n_episodes": trial.suggest_categorical("n_episodes", [10, 20, 50]),
        "n_gradient_steps": trial.suggest_int("n_gradient_steps", 1, 5),
        **_discounts(trial),
    }
    return _with_network(trial, entry)


def trpo(trial: Suggests) -> Entry:
    """Sample TRPO's trust region, the training of its critic and the network.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    entry = {
        "target_kl": _log(trial, "target_kl", 0.003, 0.1),
        "learning_rate": _log(trial, "learning_rate", 1e-4, 1e-2),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 5, 30),
        **_discounts(trial),
    }
    return _with_network(trial, entry)


def vime(trial: Suggests) -> Entry:
    """Sample VIME's weight of the information gain and the training of its dynamics model, and TRPO's settings.

    :param trial: trial that suggests the values
    :return: entry of a hyperparameter file
    """
    own = {
        "eta": _log(trial, "eta", 1e-4, 1.0),
        "dynamics_learning_rate": _log(trial, "dynamics_learning_rate", 1e-4, 1e-2),
        "n_dynamics_updates": trial.suggest_categorical("n_dynamics_updates", [100, 500]),
        "prior_std": _log(trial, "prior_std", 0.1, 1.0),
    }
    return {**trpo(trial), **own}


#: Search spaces by key of ``training.ALGOS``.
SEARCH_SPACES: dict[str, Callable[[Suggests], Entry]] = {
    "latent_space": latent_space,
    "maesn": maesn,
    "maml": maml,
    "reinforce": reinforce,
    "rl2": rl2,
    "trpo": trpo,
    "vime": vime,
}


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Entry:
    """Override an entry with sampled or fixed values; ``policy_kwargs`` are merged key by key.

    :param base: entry of a hyperparameter file
    :param overrides: entry that a search space returned, or fixed settings
    :return: new entry
    """
    merged = {**base, **overrides}
    before, after = base.get("policy_kwargs"), overrides.get("policy_kwargs")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        merged["policy_kwargs"] = {**before, **after}
    return merged


def _meta_learning(trial: Suggests) -> Entry:
    return {
        "meta_batch_size": trial.suggest_categorical("meta_batch_size", [10, 20, 40]),
        "n_episodes": trial.suggest_categorical("n_episodes", [10, 20]),
        "target_kl": _log(trial, "target_kl", 0.003, 0.1),
        **_discounts(trial),
    }


def _latent(trial: Suggests) -> Entry:
    return {
        "kl_coef": _log(trial, "kl_coef", 0.003, 1.0),
        "latent_mean_init_std": trial.suggest_categorical("latent_mean_init_std", [0.0, 0.3, 1.0]),
        "policy_kwargs": {"latent_dim": trial.suggest_int("latent_dim", 2, 4)},
    }


def _discounts(trial: Suggests) -> Entry:
    # sampled as distances from 1, on a logarithmic scale
    gamma = 1 - trial.suggest_float("one_minus_gamma", 0.001, 0.05, log=True)
    gae_lambda = 1 - trial.suggest_float("one_minus_gae_lambda", 0.001, 0.1, log=True)
    return {"gamma": round(gamma, 4), "gae_lambda": round(gae_lambda, 4)}


def _with_network(trial: Suggests, entry: Entry) -> Entry:
    size = trial.suggest_categorical("net_arch", list(NET_ARCHS))
    network = {
        "net_arch": NET_ARCHS[size] if isinstance(size, str) else size,  # fixed layers have no name
        "activation_fn": trial.suggest_categorical("activation_fn", ["relu", "tanh"]),
    }
    return merge(entry, {"policy_kwargs": network})


def _log(trial: Suggests, name: str, low: float, high: float) -> float:
    """Suggest a number on a logarithmic scale, rounded to four significant digits."""
    return float(f"{trial.suggest_float(name, low, high, log=True):.4g}")
