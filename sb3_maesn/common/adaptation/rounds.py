"""Rounds of adaptation to new tasks, with all episodes of a round in one batch."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from sb3_maesn.common.adaptation.learners import Agent, LatentLearner, Round, TaskLearner
from sb3_maesn.common.adaptation.rule import draw_latents, worst_for_diverged
from sb3_maesn.common.adaptation.score_prior import Array
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.files import write_atomically
from sb3_maesn.common.rollouts import Behaviour, collect
from sb3_maesn.common.type_aliases import Adapted, NamedParameters, Rollout
from sb3_maesn.envs.multi_task import MultiTaskVecEnv

SOLVED_SHARE = 0.5


@dataclass(frozen=True)
class AdaptationResult:
    """The history of adaptation over R rounds, of which round 0 is that of the unadapted policy.

    An episode whose simulation diverged has length 0 and the worst return of its round and task, or of its round if all
    of the task's episodes diverged, or NaN if all of the round's did.

    :param returns: undiscounted returns of the learner's episodes (R, n_tasks, n_episodes)
    :param success: 1 or 0 for each episode, NaN where the environment does not report success (R, n_tasks, n_episodes)
    :param lengths: numbers of steps of the episodes (R, n_tasks, n_episodes)
    :param latents: latents of the episodes (R, n_tasks, n_episodes, L)
    :param mean: mean of the latent distribution at the beginning of each round (R, n_tasks, L)
    :param log_std: log std of the latent distribution at the beginning of each round (R, n_tasks, L)
    :param eval_returns: returns of fresh episodes of the policy that ``adapt`` would return at this point, which the
        learner never sees; NaN in rounds without such episodes (R, n_tasks, n_eval_episodes)
    :param eval_success: success of these episodes, NaN in rounds without them (R, n_tasks, n_eval_episodes)
    """

    returns: Array
    success: Array
    lengths: Array
    latents: Array
    mean: Array
    log_std: Array
    eval_returns: Array
    eval_success: Array

    @property
    def success_rate(self) -> Array:
        """Share of successful episodes in each round (R,)."""
        return _known_mean(self.success, (1, 2))

    @property
    def mean_return(self) -> Array:
        """Mean return of each round (R,)."""
        return np.asarray(self.returns.mean(axis=(1, 2)), dtype=np.float64)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """Whether at least half of a round's episodes succeed (R, n_tasks)."""
        return np.asarray(_known_mean(self.success, (2,)) >= SOLVED_SHARE)

    @property
    def solved_rate(self) -> Array:
        """Share of tasks solved in each round, NaN where success is unknown (R,)."""
        unknown = np.isnan(self.success).all(axis=2)  # (R, n_tasks)
        return _known_mean(np.where(unknown, np.nan, self.solved), (1,))

    @classmethod
    def join(cls, parts: Sequence["AdaptationResult"]) -> "AdaptationResult":
        """Concatenate histories along their rounds.

        :param parts: histories in chronological order
        :return: the joint history
        """
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def save(self, path: str | Path) -> None:
        """Write all arrays to an ``.npz`` file.

        :param path: path of the file, with or without ``.npz``
        """
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_atomically(_npz(path), lambda file: np.savez_compressed(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> "AdaptationResult":
        """Read a history that :meth:`save` wrote.

        :param path: path of the file, with or without ``.npz``
        :return: the history
        """
        with np.load(_npz(path), allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def _npz(path: str | Path) -> Path:
    """Add the ending ``.npz`` to a path without it, as NumPy does."""
    return Path(path) if str(path).endswith(".npz") else Path(f"{path}.npz")


def play(
    agent: Agent,
    env: MultiTaskVecEnv,
    tasks: Sequence[Any],
    latents: Array,
    rng: np.random.Generator,
    theta: NamedParameters | None = None,
) -> Rollout:
    """Play one episode for each latent.

    :param agent: agent that plays
    :param env: environment in which the tasks are set
    :param tasks: B tasks
    :param latents: latents (B, K, L)
    :param rng: source of all randomness
    :param theta: parameters of the actor for each task, with a leading B; None for those of the agent
    :return: the episodes
    """
    z = th.as_tensor(latents, dtype=th.float32)
    zeros = th.zeros(z.shape[0], z.shape[2])
    adapted = Adapted(DiagGaussian(zeros, zeros), theta)
    rollout = collect(env, tasks, Behaviour(agent.policy, agent.actor, agent.theta, adapted, z, z), rng)
    assert rollout is not None  # only a step hook can end a collection
    return rollout


def adapt_to_tasks(
    agent: Agent,
    env: MultiTaskVecEnv,
    tasks: Sequence[Any],
    learner: TaskLearner,
    n_rounds: int,
    n_episodes: int,
    rng: np.random.Generator,
    n_eval_episodes: int = 0,
    eval_rounds: Collection[int] | None = None,
    last_round: bool = True,
) -> tuple[AdaptationResult, Adapted]:
    """Adapt to each of B tasks on its own, in rounds of episodes that all tasks play together.

    :param agent: agent from which adaptation starts
    :param env: environment in which the tasks are set
    :param tasks: B tasks that ``set_task`` takes
    :param learner: learner that proposes latents and updates on the episodes
    :param n_rounds: number of updates
    :param n_episodes: number of episodes of each round and task
    :param rng: source of all randomness
    :param n_eval_episodes: number of fresh episodes per round and task, played by the policy that adaptation would
        return at this point and never seen by the learner
    :param eval_rounds: rounds with such episodes; None for all of them
    :param last_round: whether to play another round after the last update
    :return: the history, and the tasks' values after the last update
    :raises ValueError: if a number is too small, or the learner moves latents and the policy has none
    """
    _check_numbers(agent, learner, len(tasks), n_rounds, n_episodes, n_eval_episodes)
    played_rounds = range(n_rounds + int(last_round))
    unknown = (set() if eval_rounds is None else set(eval_rounds)) - set(played_rounds)
    if unknown:
        raise ValueError(f"eval_rounds must be among the rounds {list(played_rounds)}, got {sorted(unknown)}")
    state = learner.start(agent, len(tasks))
    rounds = []
    for r in played_rounds:
        adapted = learner.adapted(state)
        mean, log_std = (part.double().numpy() for part in adapted.omega)  # (B, L) each
        latents = learner.propose(state, n_episodes, rng)
        n_fresh = n_eval_episodes if eval_rounds is None or r in eval_rounds else 0
        fresh = draw_latents(mean, log_std, n_fresh, rng)
        rollout = play(agent, env, tasks, np.concatenate([latents, fresh], axis=1), rng, adapted.theta)
        rounds.append(_one_round(rollout, n_episodes, n_eval_episodes, mean, log_std))
        if r < n_rounds:
            returns = rollout.returns.numpy()[:, :n_episodes]
            seen = Round(rollout.first_episodes(n_episodes), latents, returns)
            state = learner.update(state, agent, seen, rng)
    return AdaptationResult.join(rounds), learner.adapted(state)


def _check_numbers(
    agent: Agent, learner: TaskLearner, n_tasks: int, n_rounds: int, n_episodes: int, n_eval_episodes: int
) -> None:
    """Refuse numbers that are too small, and a learner of latents for a policy without one."""
    for name, value in (("n_episodes", n_episodes), ("n_rounds", n_rounds), ("n_eval_episodes", n_eval_episodes)):
        if not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}")
    for name, value in (("the number of tasks", n_tasks), ("n_episodes", n_episodes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in (("n_rounds", n_rounds), ("n_eval_episodes", n_eval_episodes)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if n_rounds > 0 and agent.policy.latent_dim == 0 and isinstance(learner, LatentLearner):
        raise ValueError(
            f"{type(learner.rule).__name__} adapts a latent, but the policy has latent_dim=0: expected n_rounds=0, a"
            f" model with a latent, or MAML's own update (rule='policy_gradient'); got n_rounds={n_rounds}"
        )


def _one_round(
    rollout: Rollout, n_episodes: int, n_eval_episodes: int, mean: Array, log_std: Array
) -> AdaptationResult:
    """Build the history of a single round, of which the learner sees the first ``n_episodes`` episodes of each task."""
    returns, valid = rollout.returns.numpy(), rollout.valid
    success = report_success(rollout.success, valid)
    missing = np.full((len(returns), n_eval_episodes), np.nan)
    evaluated = returns.shape[1] > n_episodes
    arrays = (
        report_returns(returns[:, :n_episodes], valid[:, :n_episodes]),
        success[:, :n_episodes],
        rollout.lengths.double().numpy()[:, :n_episodes],
        rollout.latents.double().numpy()[:, :n_episodes],
        mean,
        log_std,
        report_returns(returns[:, n_episodes:], valid[:, n_episodes:]) if evaluated else missing,
        success[:, n_episodes:] if evaluated else missing,
    )
    return AdaptationResult(*(array[None] for array in arrays))


def report_success(success: Array, valid: NDArray[np.bool_]) -> Array:
    """Count an episode that diverged as a failure if only the others report success.

    :param success: success of a round's episodes, NaN where it is not reported (B, K)
    :param valid: whether the episodes did not diverge (B, K)
    :return: success (B, K)
    """
    reported = bool((~np.isnan(success)).any())
    return np.where(reported & ~valid & np.isnan(success), 0.0, success)


def _known_mean(values: Array, axes: tuple[int, ...]) -> Array:
    """Average over axes without the values that are NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=axes)
    count = known.sum(axis=axes)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan), dtype=np.float64)


def report_returns(returns: Array, valid: NDArray[np.bool_]) -> Array:
    """Replace the returns of a round's episodes that diverged, see :class:`AdaptationResult`.

    :param returns: returns of the episodes (B, K)
    :param valid: whether the episodes did not diverge (B, K)
    :return: the returns, with replacements (B, K)
    """
    return worst_for_diverged(returns, valid, otherwise=returns[valid].min() if valid.any() else np.nan)
