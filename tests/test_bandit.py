"""The bandit: what its arms pay, and the Bayes-optimal return against other ways to work it out."""

from collections.abc import Sequence
from itertools import product
from math import factorial

import numpy as np
import pytest

from sb3_maesn.envs import Bandit, make_env, make_vec
from sb3_maesn.envs.bandit import N_PULLS, bayes_optimal_return


def beta(successes: int, failures: int) -> float:
    """Probability of one sequence of outcomes of an arm whose probability is uniform: the integral of p^s (1-p)^f."""
    return factorial(successes) * factorial(failures) / factorial(successes + failures + 1)


def return_of(plan: Sequence[int], n_pulls: int) -> float:
    """Expected return of a plan, which names an arm for every history of outcomes, by summing over all histories."""
    total = 0.0
    for outcomes in product((0, 1), repeat=n_pulls):
        counts, node = np.zeros((2, 2), dtype=int), 0
        for paid in outcomes:
            counts[plan[node], 1 - paid] += 1
            node = 2 * node + 1 + paid
        total += sum(outcomes) * beta(*counts[0]) * beta(*counts[1])
    return total


def test_bayes_optimal_return_by_hand() -> None:
    assert bayes_optimal_return(0) == 0.0
    assert bayes_optimal_return(1) == 0.5
    # a success makes the first arm pay with 2/3; after a failure the second, with 1/2, is better
    assert bayes_optimal_return(2) == pytest.approx(0.5 + 0.5 * 2 / 3 + 0.5 * 1 / 2)


@pytest.mark.parametrize("n_pulls", [2, 3])
def test_bayes_optimal_return_is_that_of_the_best_of_all_plans(n_pulls: int) -> None:
    plans = product((0, 1), repeat=2**n_pulls - 1)
    best = max(return_of(plan, n_pulls) for plan in plans)
    assert bayes_optimal_return(n_pulls) == pytest.approx(best, rel=1e-12)


def test_bayes_optimal_return_lies_between_chance_and_the_better_arm() -> None:
    returns = np.array([bayes_optimal_return(n) for n in range(12)])
    gains = np.diff(returns)
    assert (np.diff(gains) > -1e-12).all()  # no pull is worth less than the one before
    assert gains[-1] < 2 / 3  # the mean of the better arm
    with pytest.raises(ValueError, match="n_pulls must not be negative, got -1"):
        bayes_optimal_return(-1)


@pytest.mark.parametrize("arm", [0, 1])
def test_an_arm_pays_with_its_probability(arm: int) -> None:
    env = make_vec("Bandit-v0", 2000)
    env.set_tasks(np.tile([0.3, 0.8], (2000, 1)))
    env.seed(0)
    env.reset()
    rewards = np.array([env.step(np.full(2000, arm))[1] for _ in range(N_PULLS)])
    assert set(np.unique(rewards)) == {0.0, 1.0}
    probability = (0.3, 0.8)[arm]
    # 20 000 pulls: five standard deviations; and no pull depends on the one before
    assert abs(rewards.mean() - probability) < 5 * (probability * (1 - probability) / 20_000) ** 0.5
    assert abs(np.corrcoef(rewards[:-1].ravel(), rewards[1:].ravel())[0, 1]) < 5 / 18_000**0.5


def test_an_episode_is_ten_pulls_and_solved_by_the_better_arm() -> None:
    env = make_vec("Bandit-v0", 3)
    env.set_tasks([[0.2, 0.9], [0.9, 0.2], [0.5, 0.5]])
    env.seed(0)
    assert (env.reset() == 0.0).all()
    for pull in range(N_PULLS):
        observations, _, dones, infos = env.step(np.ones(3, dtype=np.int64))
        assert (observations == 0.0).all()
        assert dones.tolist() == [pull == N_PULLS - 1] * 3
    assert [info["is_success"] for info in infos] == [True, False, True]


@pytest.mark.parametrize("action", [2, -1, 0.5])
def test_other_arms_are_refused(action: float) -> None:
    env = make_env("Bandit-v0")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"Bandit-v0: actions must be 0 or 1, got {action:g}"):
        env.step(np.asarray(action))


def test_tasks_are_uniform() -> None:
    tasks = Bandit().sample_tasks(4000, np.random.default_rng(0))
    assert tasks.shape == (4000, 2)
    np.testing.assert_allclose(tasks.mean(axis=0), 0.5, atol=0.025)
    np.testing.assert_allclose(tasks.var(axis=0), 1 / 12, atol=0.006)
