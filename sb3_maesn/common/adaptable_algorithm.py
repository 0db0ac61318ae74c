"""An algorithm whose latent distribution adapts to new tasks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_maesn.common.adaptation.learners import Agent, make_learner
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
    """An EpisodicAlgorithm with the means to adapt its policy and the latent.

    ``adaptation`` is the history of the adaptation that made this model, None if none did; ``policy_adaptation`` the
    mean return before each update of theta; ``score_prior`` what :meth:`learn_score_prior` found.
    """

    score_prior: ScorePrior | None = None

    task_latents: TaskLatents
    baseline: str
    fisher_subsampling: int
    adaptation: AdaptationResult | None
    policy_adaptation: list[float]
    _modules_of_its_own = ("policy", "task_latents")

    @property
    def _value_function(self) -> ValueFunction:
        if self.baseline == "critic":
            return lambda rollout, _: critic_values(self.policy, rollout)
        return super()._value_function

    def _trust_region(self, remaining: float) -> TrustRegion:
        """Settings of a step.

        :param remaining: the part of the training that is left
        """
        raise NotImplementedError

    @property
    def _inner_spec(self) -> InnerUpdate:
        raise NotImplementedError

    def _needless_tensors(self) -> frozenset[str]:
        if self.baseline == "critic":
            return frozenset()
        critic = {id(parameter) for parameter in self.policy.critic_parameters()}
        return frozenset(f"policy/{name}" for name, value in self.policy.named_parameters() if id(value) in critic)

    def agent(self) -> Agent:
        """What adaptation needs of this model, as values."""
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
        )

    def learn_score_prior(
        self, env: GymEnv | str | None = None, n_latents: int = 256, n_tasks: int = 100, seed: int = 0
    ) -> None:
        """Learn from the training tasks which latents are likely to solve a new task, and which solve the same tasks.

        The adaptation rule ``posterior`` then starts from that and needs far fewer episodes. Call it after
        meta-training; :meth:`save` and :meth:`save_checkpoint` keep it, further training discards it. It plays
        ``n_latents`` episodes of each task (in a native environment, of one of each group of tasks of equal dynamics)
        and changes nothing else.

        :param env: where adaptation will take place, with its reward, such as ``"WheeledGoalSparse-v0"``; the model's
            own environment where None
        :param n_latents: latents to try
        :param n_tasks: the first training tasks, at most all
        :param seed: of everything random here
        :raises ValueError: for a policy without a latent, an environment with less than 2 training tasks or with spaces
            that differ from the model's, or numbers out of range
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

    def _read_findings(self) -> dict[str, th.Tensor]:
        if self.score_prior is None:
            return {}
        prior = self.score_prior
        features = np.zeros((len(prior.latents), RANK))
        features[:, : prior.features.shape[1]] = prior.features
        excess = np.full((len(features), 1), prior.excess)
        columns = (prior.latents, prior.mean[:, None], excess, features)
        return {"score_prior": th.as_tensor(np.concatenate(columns, axis=1), dtype=th.float32)}  # (N, L + 2 + RANK)

    def _empty_findings(self) -> dict[str, th.Tensor]:
        return {"score_prior": th.empty(0, self.policy.latent_dim + 2 + RANK)}

    def _write_findings(self, findings: Mapping[str, th.Tensor]) -> None:
        table, latent_dim = findings["score_prior"].double().numpy(), self.policy.latent_dim
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
        """Adapt to one task.

        What meta-training adapts is adapted first (the latent distribution by ``rule``; in MAML theta by the inner
        update), then theta for ``n_policy_rounds`` rounds by trust-region policy gradient.

        :param env: where the task is set: an id, a Gymnasium environment or a VecEnv; the model's own where None
        :param task: whatever ``set_task`` takes
        :param n_rounds: updates of the first kind
        :param n_episodes: episodes of each round
        :param rule: a name of ``RULES``, a rule, or None for the default; a model whose meta-training adapts theta does
            so by ``policy_gradient``, its default where it has no latent
        :param n_policy_rounds: updates of theta after those
        :param eta: weight of VIME's intrinsic reward in those, for goals that no latent reaches; 0 for none
        :param seed: of everything random here
        :return: a new model whose ``predict`` is that of the adapted latent distribution and theta, whose
            ``adaptation`` is the history, and whose ``policy_adaptation`` is the mean return before each update of
            theta; this model stays as it was
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
            last_round = n_rounds == 0  # so that there is a history
            adapted.adaptation, (latents, theta) = adapt_to_tasks(
                agent, venv, [task], learner, n_rounds, n_episodes, rng, last_round=last_round
            )
            adapted.policy.set_latent_distribution(latents.mean[0], latents.log_std[0])
            adapted.score_prior = None  # which is about latents of the distribution before
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
        """One trust-region step of theta on one task; the mean return before it."""
        params = read_parameters(self._actor, self.task_latents)
        theta, mean_return = improve_policy(
            collector, self._trust_region(1.0), params, task, n_episodes, self.fisher_subsampling, rng
        )
        self._set_theta(theta)
        return mean_return

    def _set_theta(self, theta: NamedParameters) -> None:
        params = read_parameters(self._actor, self.task_latents)
        write_parameters(self._actor, self.task_latents, replace(params, theta=theta))
