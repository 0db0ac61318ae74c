"""Bandit: two Bernoulli arms, the smallest family that rewards exploration, and what its best player earns."""

from functools import cache

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_maesn.envs.rendering import GOAL_COLOUR, Frame
from sb3_maesn.envs.task_family import Array, Mask, Renderer, State, TaskFamily

N_ARMS = 2
N_PULLS = 10
NO_ARM = -1.0


class BanditPhysics:
    """``n`` bandits, each with the chances of a whole episode drawn beforehand.

    ``qpos`` (n, N_PULLS, N_ARMS) holds uniform numbers, which pay where they are below an arm's probability; ``arm``
    (n, 1) the arm pulled last, ``pulls`` (n, 1) the number of pulls so far.

    :param n: number of bandits
    """

    def __init__(self, n: int) -> None:
        chances = np.zeros((n, N_PULLS, N_ARMS))
        self.state = {"qpos": chances, "arm": np.full((n, 1), NO_ARM), "pulls": np.zeros((n, 1))}

    def reset(self, ids: NDArray[np.int32], qpos: Array, qvel: Array) -> None:
        """See ``Physics.reset``."""
        self.state["qpos"][ids] = qpos
        self.restart(ids)

    def step(self, controls: Array) -> Mask:
        """See ``Physics.step``."""
        self.state["arm"][:, 0] = controls
        self.state["pulls"] += 1
        return np.zeros(len(controls), dtype=np.bool_)

    def restart(self, ids: NDArray[np.int32]) -> None:
        """See ``Physics.restart``."""
        self.state["arm"][ids] = NO_ARM
        self.state["pulls"][ids] = 0

    def snapshot(self, index: int) -> int:
        """See ``Physics.snapshot``."""
        return int(self.state["arm"][index, 0])


class Bandit(TaskFamily):
    """Pull one of two arms ten times (Duan et al. 2016, arXiv:1611.02779, section 3.1, where every pull is an episode;
    Wang et al. 2016, arXiv:1611.05763, where the ten are, as here).

    Observation (1): always 0. Action: the arm, 0 or 1. Reward: 1 with the arm's probability, else 0. Task: the two
    probabilities, uniform on [0, 1]. Solved: the last pull was of the better arm.
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
        """See ``TaskFamily.sample_tasks``."""
        return rng.random((n, N_ARMS))

    def make_physics(self, n: int, n_threads: int = 0) -> BanditPhysics:
        """See ``TaskFamily.make_physics``."""
        return BanditPhysics(n)

    def initial_state(self, task: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """See ``TaskFamily.initial_state``."""
        return rng.random((N_PULLS, N_ARMS)), np.zeros(0)

    def controls(self, actions: Array) -> Array:
        """The arms.

        :param actions: actions (n,)
        :return: the same (n,)
        :raises ValueError: for an action that is no arm
        """
        wrong = actions[(actions != 0) & (actions != 1)]
        if wrong.size:
            raise ValueError(f"{self.env_id}: actions must be 0 or 1, got {wrong[0]:g}")
        return actions

    def observation(self, state: State) -> Array:
        """See ``TaskFamily.observation``."""
        return np.zeros((len(state["arm"]), 1))

    def reward(self, state: State, controls: Array, tasks: Array) -> Array:
        """See ``TaskFamily.reward``."""
        # a member that is stepped past its horizon meets the same chances again
        member, arm, pull = np.arange(len(tasks)), controls.astype(np.int_), state["pulls"][:, 0].astype(np.int_) - 1
        return (state["qpos"][member, pull % N_PULLS, arm] < tasks[member, arm]).astype(np.float64)

    def success(self, state: State, tasks: Array) -> Mask:
        """See ``TaskFamily.success``."""
        pulled = np.take_along_axis(tasks, state["arm"].astype(np.int_), axis=1)  # (n, 1)
        return pulled[:, 0] >= tasks.max(axis=1)

    def make_renderer(self, width: int, height: int) -> Renderer:
        """See ``TaskFamily.make_renderer``."""
        return BarRenderer(width, height)


class BarRenderer:
    """Draws the arms' probabilities as two bars, and a bright one for the arm that was pulled.

    :param width: frame width in pixels
    :param height: frame height in pixels
    """

    def __init__(self, width: int, height: int) -> None:
        self._width, self._height = width, height
        shade = np.linspace(0.96, 0.88, height)[:, None, None]
        self._background = np.broadcast_to(shade, (height, width, 3))

    def render(self, snapshot: int, task: Array) -> Frame:
        """See ``Renderer.render``."""
        image = self._background.copy()
        for arm, probability in enumerate(task):
            left = round((0.15 + 0.4 * arm) * self._width)
            top = round((0.95 - 0.9 * float(probability)) * self._height)
            colour = np.array(GOAL_COLOUR) if arm == snapshot else np.array((0.6, 0.63, 0.67))
            image[top : round(0.95 * self._height), left : left + round(0.3 * self._width)] = colour
        return (255 * image).round().astype(np.uint8)

    def close(self) -> None:
        """See ``Renderer.close``."""


def bayes_optimal_return(n_pulls: int) -> float:
    """What the best player of a random task earns on average in ``n_pulls`` pulls.

    Dynamic programming over the arms' posteriors: after s successes and f failures an arm that was uniform at first has
    the distribution Beta(1 + s, 1 + f), and pays with probability (1 + s) / (2 + s + f).

    :param n_pulls: number of pulls
    :return: expected number of rewarded pulls
    :raises ValueError: if it is negative
    """
    if n_pulls < 0:
        raise ValueError(f"n_pulls must not be negative, got {n_pulls}")

    @cache
    def value(left: int, first: tuple[int, int], second: tuple[int, int]) -> float:
        """Of the pulls that are left, given (successes, failures) of both arms."""
        if left == 0:
            return 0.0
        return max(pull(left, first, second), pull(left, second, first))

    def pull(left: int, arm: tuple[int, int], other: tuple[int, int]) -> float:
        successes, failures = arm
        probability = (1 + successes) / (2 + successes + failures)
        paid = 1.0 + value(left - 1, (successes + 1, failures), other)
        return probability * paid + (1.0 - probability) * value(left - 1, (successes, failures + 1), other)

    return value(n_pulls, (0, 0), (0, 0))
