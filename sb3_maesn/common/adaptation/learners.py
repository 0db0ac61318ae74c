"""Task learners: adaptation by a rule for the latent distribution, or by the inner update of meta-training."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_maesn.common.adaptation.rule import AdaptationRule, AdaptationState, draw_latents
from sb3_maesn.common.adaptation.rules import RULES, PolicyGradientRule, PosteriorRule, step_scale
from sb3_maesn.common.adaptation.score_prior import Array, ScorePrior
from sb3_maesn.common.baselines import ValueFunction, estimate_advantages, linear_values, mean_values
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

DEFAULT_RULE = "posterior"
OWN_RULE = "policy_gradient"  # the paper's, with the step sizes that meta-training learned
MIN_BASELINE_EPISODES = 5  # of a round and task, to fit linear values to
TASKS_AT_ONCE = 10  # limits the activations that an inner update of theta keeps in memory


class Agent(NamedTuple):
    """The parts of a trained model that adaptation needs.

    :param policy: policy, for its spaces and for its latent distribution, from which adaptation starts
    :param actor: actor as a function of its parameters
    :param theta: parameters of the actor
    :param step_sizes: step sizes learned in meta-training
    :param gamma: discount factor
    :param gae_lambda: lambda of the generalised advantage estimates
    :param value_function: value baseline of the advantages
    :param spec: settings of the inner update of meta-training
    :param score_prior: mean and covariance of the latents' scores in the training tasks, if known
    :param min_baseline_episodes: least number of episodes of a round and task to which a baseline is fitted; 0 for a
        baseline that is not fitted to the round
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
    min_baseline_episodes: int = MIN_BASELINE_EPISODES

    def judge(self, rollout: Rollout) -> TaskBatch:
        """Estimate the advantages of a rollout as in meta-training.

        In a round that is too small to fit the baseline, which would explain all differences between its episodes, the
        baseline is the mean over the episodes of the return from each step on, or 0 for a single episode.

        :param rollout: episodes
        :return: the rollout with its advantages
        """
        value_function = mean_values if self._is_small(rollout) else self.value_function
        return estimate_advantages(rollout, self.gamma, self.gae_lambda, value_function)

    def episode_advantages(self, batch: TaskBatch) -> Array:
        """Compute the advantages of whole episodes, as an update of the latent distributions needs them.

        :param batch: what :meth:`judge` returned
        :return: discounted returns beyond the baseline, or, so that small rounds can be compared with each other, the
            plain discounted returns of a round that is too small to fit it (B, K)
        """
        small = self._is_small(batch.rollout)
        advantages: Array = (batch.discounted_returns[0] if small else batch.episode_advantages).double().numpy()
        return advantages

    def _is_small(self, rollout: Rollout) -> bool:
        """Tell whether a round has too few episodes to fit the baseline to them."""
        return rollout.rewards.shape[2] < self.min_baseline_episodes


class Round(NamedTuple):
    """The episodes that a learner learns from, K of each of B tasks.

    :param rollout: episodes
    :param latents: latents as they were proposed (B, K, L)
    :param returns: undiscounted returns (B, K)
    """

    rollout: Rollout
    latents: Array
    returns: Array


class TaskLearner(ABC):
    """Base class of learners, which adapt to B tasks at once, each on its own.

    All that a learner knows about the tasks is in a state, a value that is passed in and returned.
    """

    @abstractmethod
    def start(self, agent: Agent, n_tasks: int) -> Any:
        """Build the state before the first round.

        :param agent: agent from which adaptation starts
        :param n_tasks: number of tasks (B)
        :return: the state
        """

    @abstractmethod
    def adapted(self, state: Any) -> Adapted:
        """Return the tasks' values that adaptation would return at this point.

        :param state: current state
        :return: latent distributions, and theta where the learner changes it
        """

    @abstractmethod
    def propose(self, state: Any, n_episodes: int, rng: np.random.Generator) -> Array:
        """Choose the latents of the next round's episodes.

        :param state: state before the round
        :param n_episodes: number of episodes of the round per task (K)
        :param rng: source of randomness
        :return: latents (B, K, L)
        """

    @abstractmethod
    def update(self, state: Any, agent: Agent, played: Round, rng: np.random.Generator) -> Any:
        """Learn from the episodes of a round.

        :param state: state before the round
        :param agent: agent from which adaptation started
        :param played: episodes of the round
        :param rng: source of randomness
        :return: state after the round
        """


@dataclass(frozen=True)
class LatentLearner(TaskLearner):
    """A learner that moves the latent distribution by a rule and leaves theta as it is.

    :param rule: adaptation rule
    """

    rule: AdaptationRule

    def start(self, agent: Agent, n_tasks: int) -> AdaptationState:
        """Start the rule from the agent's latent distribution, see ``TaskLearner.start``."""
        mean, log_std = (part.double().numpy() for part in _latents(agent, n_tasks))
        return self.rule.start(mean, log_std)

    def adapted(self, state: AdaptationState) -> Adapted:
        """Return the current latent distribution, see ``TaskLearner.adapted``."""
        return Adapted(DiagGaussian(th.as_tensor(state.mean), th.as_tensor(state.log_std)), None)

    def propose(self, state: AdaptationState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Let the rule choose the latents, see ``TaskLearner.propose``."""
        return self.rule.propose(state, n_episodes, rng)

    def update(self, state: AdaptationState, agent: Agent, played: Round, rng: np.random.Generator) -> AdaptationState:
        """Update the rule's state with the advantages of whole episodes, see ``TaskLearner.update``."""
        advantages = agent.episode_advantages(agent.judge(played.rollout))
        return self.rule.update(state, played.latents, played.returns, advantages, rng, played.rollout.valid)


class InnerState(NamedTuple):
    """The state of an :class:`InnerLearner`.

    :param adapted: values of the tasks
    :param history: all episodes so far
    """

    adapted: Adapted
    history: AdaptationState


class InnerLearner(TaskLearner):
    """A learner that makes the inner update of meta-training after every round, with its learned step sizes.

    It updates theta, and the latent distribution where there is one. Step sizes halve every round from the third on. A
    single episode has no advantage over its own round: in rounds of one, the latent distribution moves by the rule
    ``policy_gradient``, which compares the episode with those of earlier rounds.
    """

    def start(self, agent: Agent, n_tasks: int) -> InnerState:
        """Start from the agent's latent distribution and theta, see ``TaskLearner.start``."""
        theta = {name: value.expand(n_tasks, *value.shape) for name, value in agent.theta.items()}
        omega = _latents(agent, n_tasks)
        history = _gradient_rule(agent).start(omega.mean.double().numpy(), omega.log_std.double().numpy())
        return InnerState(Adapted(omega, theta), history)

    def adapted(self, state: InnerState) -> Adapted:
        """Return the tasks' values, see ``TaskLearner.adapted``."""
        return state.adapted

    def propose(self, state: InnerState, n_episodes: int, rng: np.random.Generator) -> Array:
        """Draw from the latent distributions, see ``TaskLearner.propose``."""
        mean, log_std = (part.double().numpy() for part in state.adapted.omega)  # (B, L) each
        return draw_latents(mean, log_std, n_episodes, rng)

    def update(self, state: InnerState, agent: Agent, played: Round, rng: np.random.Generator) -> InnerState:
        """Make one inner update, of a few tasks at a time to save memory, see ``TaskLearner.update``."""
        mean, log_std = (part.unsqueeze(1) for part in state.adapted.omega)  # (B, 1, L) each
        noise = (played.rollout.latents - mean) * th.exp(-log_std)
        batch = agent.judge(replace(played.rollout, noise=noise))
        advantages = agent.episode_advantages(batch)
        rule, valid = _gradient_rule(agent), played.rollout.valid
        moved = rule.update(state.history, played.latents, played.returns, advantages, rng, valid)
        step_sizes = agent.step_sizes.scaled(step_scale(moved.n_rounds))
        with th.no_grad():
            parts = [
                inner_update(
                    agent.spec,
                    agent.actor,
                    agent.theta,
                    step_sizes,
                    state.adapted.at_tasks(tasks),
                    batch.at_tasks(tasks),
                )
                for tasks in _blocks(len(noise))
            ]
        adapted = Adapted.join(parts).detached()
        if advantages.shape[1] == 1:
            omega = DiagGaussian(*(th.as_tensor(part, dtype=th.float32) for part in (moved.mean, moved.log_std)))
            adapted = Adapted(omega, adapted.theta)
        new_mean, new_log_std = (part.double().numpy() for part in adapted.omega)  # (B, L) each
        return InnerState(adapted, replace(moved, mean=new_mean, log_std=new_log_std))


def _gradient_rule(agent: Agent) -> AdaptationRule:
    return make_rule(OWN_RULE, agent.step_sizes, std_floor=agent.spec.std_floor)


def check_rule(rule: str | AdaptationRule | None) -> None:
    """Check the name of a rule.

    :param rule: name in ``RULES``, a rule, or None for the default
    :raises ValueError: for an unknown name, or what is neither a name nor a rule
    """
    if isinstance(rule, str) and rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if isinstance(rule, type):
        raise ValueError(f"expected a rule, got the class {rule.__name__}: pass {rule.__name__}()")
    if rule is not None and not isinstance(rule, str | AdaptationRule):
        raise ValueError(f"rule must be one of {', '.join(RULES)}, or an AdaptationRule, got {rule!r}")


def make_rule(
    rule: str | AdaptationRule | None,
    step_sizes: StepSizes,
    score_prior: ScorePrior | None = None,
    std_floor: float = 1e-8,
) -> AdaptationRule:
    """Build the rule that a user asks for.

    :param rule: name in ``RULES``, a rule, or None for the default
    :param step_sizes: step sizes learned in meta-training, for the gradient rules
    :param score_prior: mean and covariance of the scores of the training tasks, for ``"posterior"``
    :param std_floor: least standard deviation by which advantages are divided, in units of return, for the gradient
        rules
    :return: the rule
    :raises ValueError: for an unknown name
    """
    if isinstance(rule, AdaptationRule):
        return rule
    check_rule(rule)
    name = DEFAULT_RULE if rule is None else rule
    kind = RULES[name]
    if issubclass(kind, PolicyGradientRule):
        return kind(step_sizes.mean.double().numpy(), step_sizes.log_std.double().numpy(), std_floor)
    return kind(prior=score_prior) if issubclass(kind, PosteriorRule) else kind()


def make_learner(rule: str | AdaptationRule | None, agent: Agent) -> TaskLearner:
    """Build the learner that a user asks for.

    If meta-training adapts theta, ``"policy_gradient"`` means meta-training's own inner update, which adapts theta here
    too.

    :param rule: name in ``RULES``, a rule, or None for the default: ``"posterior"``, or ``"policy_gradient"`` for a
        policy without a latent
    :param agent: agent from which adaptation starts
    :return: the learner
    :raises ValueError: for an unknown name
    """
    default = OWN_RULE if agent.policy.latent_dim == 0 else DEFAULT_RULE
    if agent.spec.adapt_policy and (default if rule is None else rule) == OWN_RULE:
        return InnerLearner()
    return LatentLearner(make_rule(rule, agent.step_sizes, agent.score_prior, agent.spec.std_floor))


def _latents(agent: Agent, n_tasks: int) -> DiagGaussian:
    """Repeat the agent's latent distribution for each task, (B, L) each."""
    return DiagGaussian(agent.policy.latent_mean.repeat(n_tasks, 1), agent.policy.latent_log_std.repeat(n_tasks, 1))


def _blocks(n_tasks: int) -> list[slice]:
    """Split the tasks into slices of ``TASKS_AT_ONCE``."""
    return [slice(start, start + TASKS_AT_ONCE) for start in range(0, n_tasks, TASKS_AT_ONCE)]
