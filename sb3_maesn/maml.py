"""MAML: model-agnostic meta-learning (Finn et al. 2017, arXiv:1703.03400), for RL (section 5.3)."""

from collections.abc import Mapping
from typing import Any, ClassVar

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.common.policies import LatentActorCriticPolicy, PlainActorCriticPolicy


class MAML(MetaOnPolicyAlgorithm):
    """Meta-RL that learns where to start from.

    There is no latent: the inner update is a REINFORCE step on theta itself, with a linear baseline, and the TRPO meta
    step on theta differentiates through it (in full, or with ``first_order`` taking the inner gradient for a constant).
    ``adapt`` makes the same update on the episodes of a new task.

    :param policy: ``"MlpPolicy"`` or a subclass of PlainActorCriticPolicy
    :param env: an id of this package, a Gymnasium environment with tasks, or a VecEnv of such
    :param learning_rate: of the critic (used with ``baseline="critic"``)
    :param policy_step_size_init: step size of the inner update, the paper's alpha
    :param learn_step_sizes: learn a step size for each parameter, beginning with that one (Meta-SGD: Li et al. 2017,
        arXiv:1707.09835)
    :param kwargs: further arguments of :class:`MetaOnPolicyAlgorithm`, but for those about latents
    :raises ValueError: as there
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": PlainActorCriticPolicy}
    policy_base: ClassVar[type[LatentActorCriticPolicy]] = PlainActorCriticPolicy
    fixed_settings: ClassVar[Mapping[str, Any]] = {
        "adapt_policy": True,
        "inner_update": "likelihood_ratio",
        "n_prior_episodes": None,
        "balance_episodes": False,
        "kl_coef": 0.0,
        "latent_kl_coef": 0.0,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        policy_step_size_init: float = 0.1,
        learn_step_sizes: bool = False,
        **kwargs: Any,
    ):
        own = {"policy_step_size_init": policy_step_size_init, "learn_step_sizes": learn_step_sizes}
        super().__init__(policy, env, learning_rate, **{**self.fixed_settings, **own, **kwargs})
