"""How a trained model learns the tasks at hand: by moving its latent, or by the inner update of meta-training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.rule import AdaptationRule, AdaptationState, draw_latents
from sb3_maesn.common.adaptation.rules import RULES, PolicyGradientRule, PosteriorRule, step_scale
from sb3_maesn.common.adaptation.score_prior import ScorePrior
from sb3_maesn.common.baselines import ValueFunction, estimate_advantages, linear_values
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.inner_update import ActorFunction, InnerUpdate, inner_update
from sb3_maesn.common.policies import LatentActorCriticPolicy
from sb3_maesn.common.type_aliases import (
    Adapted,
    NamedParameters,
    Rollout,
    StepSizes,
    TaskBatch,
)

Array = NDArray[np.float64]

DEFAULT_RULE = "posterior"
OWN_RULE = "policy_gradient"  # what meta-training itself does
TASKS_AT_ONCE = 10  # whose activations an inner update of theta keeps


class Agent(NamedTuple):
    """What adaptation needs of a trained model.

    :param policy: for its spaces and its latent distribution, from which adaptation starts
    :param actor: the actor as a function of its parameters
    :param theta: its parameters
    :param step_sizes: learned in meta-training
    :param gamma: discount factor
    :param gae_lambda: of the advantages
    :param value_function: the baseline of the advantages
    :param spec: the inner update of meta-training
    :param score_prior: what the training tasks have shown of the latents
    """

    policy: LatentActorCriticPolicy
    actor: ActorFunction
    theta: NamedParameters
    step_sizes: StepSizes
    gamma: float
    gae_lambda: float
    value_function: ValueFunction = linear_values
    spec: InnerUpdate = InnerUpdate()
    score_prior: ScorePrior | None = None

    def judge(self, rollout: Rollout) -> TaskBatch:
        """The rollout with its advantages, as in meta-training.

        :param rollout: the episodes
        """
        return estimate_advantages(rollout, self.gamma, self.gae_lambda, self.value_function)


class Round(NamedTuple):
    """The episodes that a learner learns from, K of each of B tasks.

    :param rollout: the episodes
    :param latents: z as it was proposed (B, K, L)
    :param returns: undiscounted; an episode that diverged has the worst of its task (B, K)
    """

    rollout: Rollout
    latents: Array
    returns: Array


class TaskLearner(ABC):
    """Learns B tasks at once; all that it knows about them is in a state, a value that is passed in and returned."""

    @abstractmethod
    def start(self, agent: Agent, n_tasks: int) -> Any:
        """The state before the first round.

        :param agent: whose adaptation
        :param n_tasks: B
        """

    @abstractmethod
    def adapted(self, state: Any) -> Adapted:
        """What adaptation would return at this point.

        :param state: what is known
        """

    @abstractmethod
    def propose(self, state: Any, n_episodes: int, rng: np.random.Generator) -> Array:
        """Latents of the next round's episodes (B, K, L).

        :param state: what is known
        :param n_episodes: K
        :param rng: source of randomness
        """

    @abstractmethod
    def update(self, state: Any, agent: Agent, played: Round, rng: np.random.Generator) -> Any:
        """The state after a round.

        :param state: what was known before
        :param agent: whose adaptation
        :param played: the round
        :param rng: source of randomness
        """


@dataclass(frozen=True)
class LatentLearner(TaskLearner):
    """Moves the latent distribution by a rule; theta stays.

    :param rule: the rule
    """

    rule: AdaptationRule

    def start(self, agent: Agent, n_tasks: int) -> AdaptationState:
        """The agent's latent distribution."""
        mean, log_std = (part.double().numpy() for part in _latents(agent, n_tasks))
        return self.rule.start(mean, log_std)

    def adapted(self, state: AdaptationState) -> Adapted:
        """The current latent distribution."""
        return Adapted(DiagGaussian(th.as_tensor(state.mean), th.as_tensor(state.log_std)), None)

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """The rule's choice."""
        return self.rule.propose(state, n_episodes, rng)

    def update(self, state: AdaptationState, agent: Agent, played: Round, rng: np.random.Generator) -> AdaptationState:
        """The rule's update, on the advantages of whole episodes."""
        advantages = agent.judge(played.rollout).episodes.advantages.double().numpy()
        advantages = worst_for_diverged(advantages, played.rollout)
        return self.rule.update(state, played.latents, played.returns, advantages, rng)


class InnerState(NamedTuple):
    """What an :class:`InnerLearner` knows.

    :param adapted: the tasks' values
    :param n_rounds: updates so far
    """

    adapted: Adapted
    n_rounds: int


class InnerLearner(TaskLearner):
    """Makes meta-training's own inner update after every round, of theta and of the latent where there is one, with
    step sizes halved every round from the third on.
    """

    def start(self, agent: Agent, n_tasks: int) -> InnerState:
        """The agent's latent distribution and theta."""
        theta = {name: value.expand(n_tasks, *value.shape) for name, value in agent.theta.items()}
        return InnerState(Adapted(_latents(agent, n_tasks), theta), 0)

    def adapted(self, state: InnerState) -> Adapted:
        """The tasks' values."""
        return state.adapted

    def propose(self, state: InnerState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Draws from the latent distributions."""
        mean, log_std = (part.double().numpy() for part in state.adapted.omega)  # (B, L) each
        return draw_latents(mean, log_std, n_episodes, rng)

    def update(self, state: InnerState, agent: Agent, played: Round, rng: np.random.Generator) -> InnerState:
        """The inner update, of a few tasks at a time."""
        n_rounds = state.n_rounds + 1
        mean, log_std = (part.unsqueeze(1) for part in state.adapted.omega)  # (B, 1, L) each
        noise = (played.rollout.latents - mean) * th.exp(-log_std)
        batch = agent.judge(replace(played.rollout, noise=noise))
        steps = agent.step_sizes.scaled(step_scale(n_rounds))
        with th.no_grad():
            parts = [
                inner_update(
                    agent.spec, agent.actor, agent.theta, steps, state.adapted.at_tasks(tasks), batch.at_tasks(tasks)
                )
                for tasks in _blocks(len(noise))
            ]
        return InnerState(Adapted.join(parts).detached(), n_rounds)


def make_rule(
    rule: str | AdaptationRule | None, step_sizes: StepSizes, score_prior: ScorePrior | None = None
) -> AdaptationRule:
    """The rule for a name.

    :param rule: a name of ``RULES``, a rule, or None for the default
    :param step_sizes: learned in meta-training, for the gradient rules
    :param score_prior: what the training tasks have shown, for ``posterior``
    :raises ValueError: for an unknown name
    """
    if isinstance(rule, AdaptationRule):
        return rule
    name = DEFAULT_RULE if rule is None else rule
    if name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {name!r}")
    kind = RULES[name]
    if issubclass(kind, PolicyGradientRule):
        return kind(step_sizes.mean.double().numpy(), step_sizes.log_std.double().numpy())
    return kind(prior=score_prior) if issubclass(kind, PosteriorRule) else kind()


def make_learner(rule: str | AdaptationRule | None, agent: Agent) -> TaskLearner:
    """The learner for what a user asks for.

    :param rule: a name of ``RULES``, a rule, or None for the default; where meta-training adapts theta,
        ``policy_gradient`` does so too, and it is the default where there is no latent
    :param agent: whose adaptation
    :raises ValueError: for an unknown name
    """
    default = OWN_RULE if agent.policy.latent_dim == 0 else DEFAULT_RULE
    if agent.spec.adapt_policy and (default if rule is None else rule) == OWN_RULE:
        return InnerLearner()
    return LatentLearner(make_rule(rule, agent.step_sizes, agent.score_prior))


def worst_for_diverged(values: Array, rollout: Rollout) -> Array:
    """Values of episodes (B, K); those that diverged get the worst of their task's, or of all where it has none.

    :param values: (B, K)
    :param rollout: the episodes
    """
    valid = rollout.mask[0].numpy() > 0.0  # (B, K)
    if valid.all():
        return values
    worst = np.where(valid, values, np.inf).min(axis=1, keepdims=True)  # (B, 1)
    worst[~np.isfinite(worst)] = values[valid].min(initial=np.inf) if valid.any() else 0.0
    return np.where(valid, values, worst)


def _latents(agent: Agent, n_tasks: int) -> DiagGaussian:
    """The agent's latent distribution for each task, (B, L) each."""
    return DiagGaussian(agent.policy.latent_mean.repeat(n_tasks, 1), agent.policy.latent_log_std.repeat(n_tasks, 1))


def _blocks(n_tasks: int) -> list[slice]:
    return [slice(start, start + TASKS_AT_ONCE) for start in range(0, n_tasks, TASKS_AT_ONCE)]
