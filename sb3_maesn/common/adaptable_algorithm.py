"""Base class of the algorithms that adapt their latent distribution or their policy to new tasks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.adaptation.learners import MIN_BASELINE_EPISODES, Agent, make_learner
from sb3_maesn.common.adaptation.policy_improvement import improve_policy
from sb3_maesn.common.adaptation.rounds import AdaptationResult, adapt_to_tasks
from sb3_maesn.common.adaptation.rule import AdaptationRule
from sb3_maesn.common.adaptation.score_prior import RANK, ScorePrior
from sb3_maesn.common.adaptation.training_scores import score_prior_of
from sb3_maesn.common.baselines import ValueFunction
from sb3_maesn.common.collection import Collector
from sb3_maesn.common.critic import critic_values
from sb3_maesn.common.curious_rewards import CuriousRewards
from sb3_maesn.common.env_util import borrowed_env
from sb3_maesn.common.episodic_algorithm import EpisodicAlgorithm
from sb3_maesn.common.global_seed import generator_of
from sb3_maesn.common.inner_update import InnerUpdate
from sb3_maesn.common.meta_parameters import TaskLatents, read_parameters, write_parameters
from sb3_maesn.common.settings import check_at_least
from sb3_maesn.common.trust_region import TrustRegion
from sb3_maesn.common.type_aliases import NamedParameters

SelfAdaptableAlgorithm = TypeVar("SelfAdaptableAlgorithm", bound="AdaptableAlgorithm")


class AdaptableAlgorithm(EpisodicAlgorithm):
    """EpisodicAlgorithm with methods that adapt the latent distribution and theta to a new task.

    A model returned by :meth:`adapt` has the history of its adaptation in ``adaptation`` (None for other models) and
    the mean return before each update of theta in ``policy_adaptation``. ``score_prior`` is what
    :meth:`learn_score_prior` has learned from the training tasks, or None.
    """

    score_prior: ScorePrior | None = None

    task_latents: TaskLatents
    baseline: str
    fisher_subsampling: int
    adaptation: AdaptationResult | None
    policy_adaptation: list[float]
    _copied_modules = ("policy", "task_latents")

    @property
    def _value_function(self) -> ValueFunction:
        """The value baseline from which advantages are estimated: linear, or the critic."""
        if self.baseline == "critic":
            return lambda rollout, _: critic_values(self.policy, rollout)
        return super()._value_function

    def _trust_region(self, remaining: float) -> TrustRegion:
        """Build the settings of a trust-region step.

        :param remaining: fraction of the training that remains, from 1 to 0
        :return: settings of the step
        """
        raise NotImplementedError

    @property
    def _inner_spec(self) -> InnerUpdate:
        """The inner update of meta-training."""
        raise NotImplementedError

    def _non_inference_tensors(self) -> frozenset[str]:
        if self.baseline == "critic":
            return frozenset()
        critic = {id(parameter) for parameter in self.policy.critic_parameters()}
        return frozenset(f"policy/{name}" for name, value in self.policy.named_parameters() if id(value) in critic)

    def agent(self) -> Agent:
        """Collect what adaptation needs of this model.

        :return: policy, parameters and settings as values
        """
        self.policy.set_training_mode(False)
        params = read_parameters(self._actor, self.task_latents)
        return Agent(
            self.policy,
            self._actor_function,
            params.theta,
            params.step_sizes,
            self.gamma,
            self.gae_lambda,
            self._value_function,
            self._inner_spec,
            self.score_prior,
            0 if self.baseline == "critic" else MIN_BASELINE_EPISODES,
        )

    def learn_score_prior(
        self, env: GymEnv | str | None = None, n_latents: int = 256, n_tasks: int = 100, seed: int = 0
    ) -> None:
        """Learn from the training tasks which latents are likely to solve a new task, and which solve the same tasks.

        The adaptation rule ``posterior`` starts from this prior and then needs far fewer episodes. Call the method
        after meta-training: :meth:`save` and :meth:`save_checkpoint` keep the prior, further training discards it. The
        method runs ``n_latents`` episodes of each task, or of one task for each group with the same dynamics in a
        batched environment of this package, and sets ``score_prior`` only.

        :param env: environment with the reward of adaptation, such as ``"WheeledGoalSparse-v0"``; the model's own
            environment if None
        :param n_latents: number of latents to try (N)
        :param n_tasks: number of training tasks to use, from the first one on; all if there are fewer
        :param seed: seed of all randomness in this method
        :raises ValueError: if the policy has no latent, the environment has fewer than 2 training tasks or other spaces
            than the model, or a number is out of range
        """
        if self.policy.latent_dim == 0:
            raise ValueError("expected a policy with a latent, got latent_dim=0")
        if n_latents < 2 or n_tasks < 2:
            raise ValueError(f"expected at least 2 latents and 2 tasks, got n_latents={n_latents}, n_tasks={n_tasks}")
        source = self.env if env is None else env
        if source is None:
            raise ValueError("expected an environment: the model has none of its own")
        with borrowed_env(source, n_latents, None) as venv:
            self.check_spaces(venv)
            tasks = venv.task_set("train")[:n_tasks]
            if len(tasks) < 2:
                raise ValueError(f"expected an environment with at least 2 training tasks, got {len(tasks)}")
            self.score_prior = score_prior_of(self.agent(), venv, tasks, n_latents, generator_of(seed))

    def _read_inference_arrays(self) -> dict[str, th.Tensor]:
        """Read the score prior as one table with a row for each latent (N, L + 2 + RANK)."""
        if self.score_prior is None:
            return {}
        prior = self.score_prior
        features = np.zeros((len(prior.latents), RANK))
        features[:, : prior.features.shape[1]] = prior.features
        excess = np.full((len(features), 1), prior.excess)
        columns = (prior.latents, prior.mean[:, None], excess, features)
        return {"score_prior": th.as_tensor(np.concatenate(columns, axis=1), dtype=th.float32)}  # (N, L + 2 + RANK)

    def _empty_inference_arrays(self) -> dict[str, th.Tensor]:
        return {"score_prior": th.empty(0, self.policy.latent_dim + 2 + RANK)}

    def _write_inference_arrays(self, arrays: Mapping[str, th.Tensor]) -> None:
        table, latent_dim = arrays["score_prior"].double().numpy(), self.policy.latent_dim
        latents, mean, excess, features = np.split(table, [latent_dim, latent_dim + 1, latent_dim + 2], axis=1)
        self.score_prior = ScorePrior(latents, mean[:, 0], features, float(excess[:1].sum()))

    def adapt(
        self: SelfAdaptableAlgorithm,
        env: GymEnv | str | None = None,
        task: Any = None,
        n_rounds: int = 3,
        n_episodes: int = 50,
        rule: str | AdaptationRule | None = None,
        n_policy_rounds: int = 0,
        eta: float = 0.0,
        seed: int = 0,
    ) -> SelfAdaptableAlgorithm:
        """Adapt to one task and return the adapted model.

        The first phase adapts what meta-training adapts: the latent distribution by ``rule``, or theta by the inner
        update in MAML. The second phase improves theta by ``n_policy_rounds`` trust-region policy-gradient steps.

        :param env: environment with the task, as an id, a Gymnasium environment or a VecEnv, whose members keep the
            task unless it is a native one; the model's own environment if None
        :param task: task to adapt to, any value that the environment's ``set_task`` accepts
        :param n_rounds: number of adaptation rounds in the first phase
        :param n_episodes: number of episodes in each round of both phases
        :param rule: adaptation rule, or its name in ``RULES``; None for the default. With ``policy_gradient``, a model
            whose meta-training adapts theta makes its own inner update; that is the default for a model without a
            latent
        :param n_policy_rounds: number of updates of theta in the second phase
        :param eta: weight of VIME's intrinsic reward in the second phase, for goals that no latent reaches; 0 for none
        :param seed: seed of all randomness in this method
        :return: new model that acts with the adapted latent distribution and theta, and that holds the history in
            ``adaptation`` and ``policy_adaptation``; the original model does not change
        :raises ValueError: if no task is given, the environment refuses it, or a number is out of range
        """
        source = self._adaptation_source(env, task)
        check_at_least({"n_policy_rounds": n_policy_rounds}, {"n_policy_rounds": 0})
        if eta and n_policy_rounds == 0:
            raise ValueError(f"eta goes with n_policy_rounds of at least 1, got eta={eta}, n_policy_rounds=0")
        adapted, rng = self._copy(), generator_of(seed)
        with borrowed_env(source, n_episodes, [task]) as venv:
            self.check_spaces(venv)
            agent = self.agent()
            learner = make_learner(rule, agent)
            last_round = n_rounds == 0  # the history must have at least one round
            adapted.adaptation, (latents, theta) = adapt_to_tasks(
                agent, venv, [task], learner, n_rounds, n_episodes, rng, last_round=last_round
            )
            adapted.policy.set_latent_distribution(latents.mean[0], latents.log_std[0])
            adapted.score_prior = None  # it refers to the latent distribution before adaptation
            if theta is not None:
                adapted._set_theta({name: value[0] for name, value in theta.items()})
            collector = adapted._collector(venv)
            if eta:
                collector = replace(collector, reward_map=CuriousRewards(eta, self.action_space, rng))
            adapted.policy_adaptation = [
                adapted._improve_policy(collector, task, n_episodes, rng) for _ in range(n_policy_rounds)
            ]
        return adapted

    def _copy(self: SelfAdaptableAlgorithm) -> SelfAdaptableAlgorithm:
        other = super()._copy()
        other._actor = other.policy.make_actor()
        return other

    def _improve_policy(self, collector: Collector, task: Any, n_episodes: int, rng: np.random.Generator) -> float:
        """Take one trust-region step of theta on one task and return the mean return before the step."""
        params = read_parameters(self._actor, self.task_latents)
        theta, mean_return = improve_policy(
            collector, self._trust_region(1.0), params, task, n_episodes, self.fisher_subsampling, rng
        )
        self._set_theta(theta)
        return mean_return

    def _set_theta(self, theta: NamedParameters) -> None:
        params = read_parameters(self._actor, self.task_latents)
        write_parameters(self._actor, self.task_latents, replace(params, theta=theta))
