"""MAML for RL: model-agnostic meta-learning (Finn et al. 2017, arXiv:1703.03400, section 5.3) and two variants.

The variants give credit to the actions sampled before the inner update: E-MAML (Stadie et al. 2018, arXiv:1803.01118)
and ProMP (Rothfuss et al. 2019, arXiv:1810.06784).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_maesn.common.constructors import check_types
from sb3_maesn.common.gradient_steps import gradient_steps
from sb3_maesn.common.inner_update import InnerUpdate
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.meta_on_policy_algorithm import MetaOnPolicyAlgorithm
from sb3_maesn.common.meta_parameters import holders
from sb3_maesn.common.policies import LatentActorCriticPolicy, PlainActorCriticPolicy
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.common.type_aliases import MetaBatch, MetaParameters, StepResult

META_STEPS = ("trpo", "ppo")
NUMBERS = ("exploration_coef", "n_epochs", "clip_range", "inner_kl_coef")
#: Settings of the latent, which MAML lacks, with the defaults that every MAML model has in its file.
LATENT_SETTINGS: dict[str, Any] = {
    "step_size_init": 1.0,
    "step_size_max": None,
    "log_std_step_size_max": None,
    "temperature_init": 0.3,
    "latent_mean_init_std": 1.0,
    "inner_std_floor": 1e-8,
}


class MAML(MetaOnPolicyAlgorithm):
    """Meta-RL algorithm that learns initial policy parameters from which one gradient step adapts to a task.

    There is no latent. The inner update is a REINFORCE step on theta with a linear value baseline, and the TRPO meta
    step differentiates through it; with ``first_order`` the inner gradient counts as a constant. ``adapt`` makes the
    same update on the episodes of a new task.

    MAML ignores that the policy before the inner update also determines the episodes that the update learns from. Two
    variants, which can be combined, take this into account: E-MAML is ``exploration_coef=1``; ProMP is
    ``low_variance_curvature=True``, ``meta_step="ppo"`` and ``inner_kl_coef=5e-4``. The weight of the KL penalty stays
    constant, as in the experiments of ProMP's authors.

    :param policy: policy class, or its alias ``"MlpPolicy"``; a class must derive from PlainActorCriticPolicy
    :param env: environment id of this package, Gymnasium environment with tasks, or VecEnv of such environments
    :param learning_rate: learning rate of Adam, which the meta step ``ppo`` and the critic (``baseline="critic"``) use
    :param policy_step_size_init: step size of the inner update, the paper's alpha
    :param learn_step_sizes: whether to learn a step size for each parameter, initialised to ``policy_step_size_init``
        (Meta-SGD: Li et al. 2017, arXiv:1707.09835)
    :param low_variance_curvature: whether to differentiate the inner update by ProMP's LVC estimator, which gives the
        actions before the update credit for their effect on it
    :param exploration_coef: weight of E-MAML's term, which gives the actions before the update credit for the task's
        standardised reward after it, in the form used by ProMP's authors
    :param meta_step: kind of meta step: ``trpo``, or ``ppo`` for Adam steps on the clipped surrogate
    :param n_epochs: number of Adam steps of ``ppo`` in each iteration, each on the whole batch
    :param clip_range: clip range of ``ppo`` for the ratios after the inner update and for those in the term of
        ``exploration_coef``; the ratios of ``low_variance_curvature`` are not clipped
    :param inner_kl_coef: weight of the KL between the old and new policies before each inner update, a penalty that
        keeps the ratios of ``low_variance_curvature`` near 1
    :param fisher_subsampling: stride in time steps at which Fisher-vector products are computed; larger by default than
        in MAESN, since each product differentiates through the inner update of every task
    :param kwargs: further arguments of :class:`MetaOnPolicyAlgorithm`, except those of latents
    :raises ValueError: if a setting is out of range, or the environment or the policy is unsuitable
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
        **LATENT_SETTINGS,
    }

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 1e-3,
        policy_step_size_init: float = 0.1,
        learn_step_sizes: bool = False,
        low_variance_curvature: bool = False,
        exploration_coef: float = 0.0,
        meta_step: str = "trpo",
        n_epochs: int = 5,
        clip_range: float = 0.3,
        inner_kl_coef: float = 0.0,
        fisher_subsampling: int = 20,
        **kwargs: Any,
    ):
        self.low_variance_curvature = low_variance_curvature
        self.exploration_coef = exploration_coef
        self.meta_step = meta_step
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.inner_kl_coef = inner_kl_coef
        own = {
            "policy_step_size_init": policy_step_size_init,
            "learn_step_sizes": learn_step_sizes,
            "fisher_subsampling": fisher_subsampling,
        }
        super().__init__(policy, env, learning_rate, **{**self.fixed_settings, **own, **kwargs})

    def _check_settings(self) -> None:
        for name, value in LATENT_SETTINGS.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"MAML has no latent, which {name} is about: leave it out, got {getattr(self, name)!r}; the inner"
                    " update's step size is policy_step_size_init"
                )
        super()._check_settings()
        check_types(vars(self), type(self), NUMBERS)
        check_at_least(vars(self), {"exploration_coef": 0, "n_epochs": 1, "inner_kl_coef": 0})
        if not 0 < self.clip_range < 1:
            raise ValueError(f"clip_range must be above 0 and below 1, got {self.clip_range}")
        if self.n_inner_steps == 0 and (self.low_variance_curvature or self.exploration_coef or self.inner_kl_coef):
            raise ValueError(
                "low_variance_curvature, exploration_coef and inner_kl_coef go with an inner update,"
                " got n_inner_steps=0"
            )
        if self.low_variance_curvature and self.first_order:
            raise ValueError(
                "low_variance_curvature is about the derivative of the inner update, which first_order ignores:"
                " expected one of them, got both"
            )
        if self.meta_step not in META_STEPS:
            raise ValueError(f"meta_step must be one of {', '.join(META_STEPS)}, got {self.meta_step!r}")

    def _setup_model(self) -> None:
        super()._setup_model()
        if self.meta_step == "ppo" and self.learn_step_sizes:
            self.policy.optimizer.add_param_group({"params": list(self.task_latents.policy_steps)})

    @property
    def _inner_spec(self) -> InnerUpdate:
        return replace(super()._inner_spec, low_variance_curvature=self.low_variance_curvature)

    def _objective(self, batch: MetaBatch) -> MetaObjective:
        return replace(
            super()._objective(batch),
            clip_range=self.clip_range if self.meta_step == "ppo" else None,
            exploration_coef=self.exploration_coef,
            inner_kl_coef=self.inner_kl_coef,
        )

    def _meta_step(self, objective: MetaObjective, params: MetaParameters) -> StepResult:
        if self.meta_step == "trpo":
            return super()._meta_step(objective, params)
        self._update_learning_rate(self.policy.optimizer)
        parameters = holders(self._actor, self.task_latents)
        return gradient_steps(self._evaluations(objective, params), parameters, self.policy.optimizer, self.n_epochs)
