"""LatentSpace: a latent space of behaviours that is learned without adaptation.

It is the baseline of Gupta et al. 2018 (arXiv:1802.07245, section 5), after Hausman et al. 2018, "Learning an Embedding
Space for Transferable Robot Skills".
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm


class LatentSpace(MetaOnPolicyAlgorithm):
    """Meta-RL algorithm that trains MAESN's policy and latent distributions without an inner update.

    TRPO trains theta and a latent distribution for each training task to maximise the return without adaptation, while
    a KL penalty keeps the distributions near the prior. ``adapt`` starts from the prior and moves the latent
    distribution as in MAESN. Since step sizes cannot be learned without an inner update, the rule ``policy_gradient``
    uses ``step_size_init``.

    :param policy: policy class, or its alias ``"LatentMlpPolicy"``; a class must derive from LatentActorCriticPolicy
    :param env: environment id of this package, Gymnasium environment with tasks, or VecEnv of such environments
    :param learning_rate: learning rate of the critic (used with ``baseline="critic"``)
    :param step_size_init: step size of the latent mean and log std in ``adapt`` with the rule ``policy_gradient``
    :param kwargs: further arguments of :class:`MetaOnPolicyAlgorithm`, except those of the inner update
    :raises ValueError: if a setting is out of range, or the environment or the policy is unsuitable
    """

    fixed_settings: ClassVar[Mapping[str, Any]] = {
        "n_inner_steps": 0,
        "inner_update": "likelihood_ratio",
        "adapt_policy": False,
        "first_order": False,
        "learn_step_sizes": False,
        "n_prior_episodes": None,
        "balance_episodes": False,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        step_size_init: float = 1.0,
        **kwargs: Any,
    ):
        own = {"step_size_init": step_size_init}
        super().__init__(policy, env, learning_rate, **{**self.fixed_settings, **own, **kwargs})
