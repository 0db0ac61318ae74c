"""LatentSpace: a latent space of behaviours learned without adaptation, the baseline of Gupta et al. 2018
(arXiv:1802.07245, section 5) after Hausman et al. 2018, "Learning an Embedding Space for Transferable Robot Skills".
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm


class LatentSpace(MetaOnPolicyAlgorithm):
    """MAESN without its inner update.

    Theta and a latent distribution for each training task are trained by TRPO to do well as they are, the distributions
    kept near the prior by their KL. ``adapt`` starts from the prior and moves the latent distribution as MAESN's does.
    No step sizes can be learned without an inner update: those of the rule ``policy_gradient`` are ``step_size_init``.

    :param policy: ``"LatentMlpPolicy"`` or a subclass of LatentActorCriticPolicy
    :param env: an id of this package, a Gymnasium environment with tasks, or a VecEnv of such
    :param learning_rate: of the critic (used with ``baseline="critic"``)
    :param step_size_init: step size of the latent mean and log std in ``adapt``
    :param kwargs: further arguments of :class:`MetaOnPolicyAlgorithm`, but for those about the inner update
    :raises ValueError: as there
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
