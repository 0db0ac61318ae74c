"""Bandit: two Bernoulli arms, the smallest family that rewards exploration, and the return of its optimal player."""

from functools import cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_maesn.envs.rendering import BarRenderer
from sb3_maesn.envs.task_family import Array, Mask, Renderer, State, TaskFamily

N_ARMS = 2
N_PULLS = 10
NO_ARM = -1.0


class BanditPhysics:
    """``n`` bandits whose random numbers for a whole episode are drawn at its start.

    Fields of the state: ``qpos``, a uniform random number for each pull and arm, where an arm pays if its number is
    below its probability (n, N_PULLS, N_ARMS); ``arm``, the arm pulled last (n, 1); ``pulls``, the number of pulls so
    far (n, 1).

    :param n: number of bandits
    """

    def __init__(self, n: int) -> None:
        chances = np.zeros((n, N_PULLS, N_ARMS))
        self.state = {"qpos": chances, "arm": np.full((n, 1), NO_ARM), "pulls": np.zeros((n, 1))}

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """Start episodes with the random numbers ``qpos``, see ``Physics.reset``."""
        self.state["qpos"][ids] = qpos
        self.restart(ids)

    def step(self, controls: Array) -> Mask:
        """Record the arms that are pulled, see ``Physics.step``."""
        self.state["arm"][:, 0] = controls
        self.state["pulls"] += 1
        return np.zeros(len(controls), dtype=np.bool_)

    def restart(self, ids: NDArray[np.int32]) -> None:
        """Forget the pulls of some bandits, see ``Physics.restart``."""
        self.state["arm"][ids] = NO_ARM
        self.state["pulls"][ids] = 0

    def snapshot(self, index: int) -> int:
        """Return the arm pulled last, see ``Physics.snapshot``."""
        return int(self.state["arm"][index, 0])


class Bandit(TaskFamily):
    """A bandit with two Bernoulli arms and ten pulls an episode.

    Duan et al. 2016 (arXiv:1611.02779, section 3.1) count every pull as an episode; here, as in Wang et al. 2016
    (arXiv:1611.05763), the ten pulls are one.

    **Task (2)**: the probability of each arm to pay, drawn uniformly from [0, 1].

    **Action**: the arm to pull, 0 or 1.

    **Observation (1)**: always 0.

    **Reward**: 1 if the arm pays, else 0.

    **Episode**: 10 pulls. It succeeds if the last pull was of the arm that pays more often.
    """

    base_name = "Bandit"
    horizon = N_PULLS
    render_fps = 2

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float64)
        self.action_space = spaces.Discrete(N_ARMS)
        self.task_space = spaces.Box(0.0, 1.0, (N_ARMS,), np.float64)

    def sample_tasks(self, n: int, rng: np.random.Generator) -> Array:
        """Draw the arms' probabilities, see ``TaskFamily.sample_tasks``."""
        return rng.random((n, N_ARMS))

    def make_physics(self, n: int, n_threads: int = 0) -> BanditPhysics:
        """Create the bandits, see ``TaskFamily.make_physics``; threads would not pay."""
        return BanditPhysics(n)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw the random numbers of a whole episode, see ``TaskFamily.initial_state``."""
        return rng.random((N_PULLS, N_ARMS)), np.zeros(0)

    def controls(self, actions: Array) -> Array:
        """Check that the actions are arms.

        :param actions: indices of the arms (n,)
        :return: the actions, unchanged (n,)
        :raises ValueError: for an action other than 0 and 1
        """
        wrong = actions[(actions != 0) & (actions != 1)]
        if wrong.size:
            raise ValueError(f"{self.env_id}: actions must be 0 or 1, got {wrong[0]:g}")
        return actions

    def observation(self, state: State) -> Array:
        """Return zeros, since nothing is observed, see ``TaskFamily.observation``."""
        return np.zeros((len(state["arm"]), 1))

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """Pay where the pull's random number is below the arm's probability, see ``TaskFamily.reward``."""
        # a member that is stepped past its horizon reuses the random numbers from the first on
        member, arm, pull = np.arange(len(tasks)), controls.astype(np.int_), state["pulls"][:, 0].astype(np.int_) - 1
        return (state["qpos"][member, pull % N_PULLS, arm] < tasks[member, arm]).astype(np.float64)

    def success(self, state: State, tasks: Array) -> Mask:
        """Tell whether the last pull was of the better arm, see ``TaskFamily.success``."""
        pulled = np.take_along_axis(tasks, state["arm"].astype(np.int_), axis=1)  # (n, 1)
        return pulled[:, 0] >= tasks.max(axis=1)

    def make_renderer(self, width: int, height: int) -> Renderer:
        """Create the renderer of the arms, see ``TaskFamily.make_renderer``."""
        return BarRenderer(width, height)


def bayes_optimal_return(n_pulls: int) -> float:
    """Compute the expected return of the optimal player of a random bandit.

    Dynamic programming over the arms' posteriors: after s successes and f failures, an arm whose probability was
    uniform a priori has the distribution Beta(1 + s, 1 + f) and pays with probability (1 + s) / (2 + s + f).

    :param n_pulls: number of pulls
    :return: expected number of pulls that pay
    :raises ValueError: if ``n_pulls`` is negative
    """
    if n_pulls < 0:
        raise ValueError(f"n_pulls must not be negative, got {n_pulls}")

    @cache
    def value(left: int, first: tuple[int, int], second: tuple[int, int]) -> float:
        """Compute the expected return of the pulls left, given (successes, failures) of both arms."""
        if left == 0:
            return 0.0
        return max(pull(left, first, second), pull(left, second, first))

    def pull(left: int, arm: tuple[int, int], other: tuple[int, int]) -> float:
        """Compute the expected return of pulling ``arm`` now and playing optimally afterwards."""
        successes, failures = arm
        probability = (1 + successes) / (2 + successes + failures)
        paid = 1.0 + value(left - 1, (successes + 1, failures), other)
        return probability * paid + (1.0 - probability) * value(left - 1, (successes, failures + 1), other)

    return value(n_pulls, (0, 0), (0, 0))
