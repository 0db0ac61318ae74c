"""VIME's information gain against the KL it approximates, the replay pool, and the scale of the reward."""

import io
import math

import pytest
import torch as th

from sb3_maesn.common.bayesian_network import (
    WeightPosterior,
    expected_log_likelihood,
    initial_posterior,
    n_weights,
)
from sb3_maesn.common.information_gain import CHUNK, Curiosity, TransitionPool, Transitions, information_gain

SIZES = (3, 6, 2)


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def problem(n: int = 8, n_samples: int = 5) -> tuple[WeightPosterior, th.Tensor, th.Tensor, th.Tensor]:
    """Posterior, inputs (n, 3), targets (n, 2) and draws in float64."""
    source = generator()
    q = WeightPosterior(*(part.double() for part in initial_posterior(SIZES, 0.5, source)))
    shapes = ((n, SIZES[0]), (n, SIZES[-1]), (n_samples, n_weights(SIZES)))
    inputs, targets, noise = (th.randn(shape, generator=source, dtype=th.float64) for shape in shapes)
    return q, inputs, targets, noise


def newton_step(
    q: WeightPosterior, inputs: th.Tensor, targets: th.Tensor, noise: th.Tensor, step_size: float
) -> WeightPosterior:
    """The posterior after the step of Eq. 13 on one transition."""
    leaves = WeightPosterior(*(part.clone().requires_grad_() for part in q))
    loss = -expected_log_likelihood(leaves, SIZES, inputs[None], targets[None], noise, 1.0).sum()
    gradient = th.autograd.grad(loss, leaves)
    moved = (p - step_size * g / c for p, g, c in zip(q, gradient, q.kl_curvature(), strict=True))
    return WeightPosterior(*moved)


def test_gain_is_the_exact_kl_of_a_small_step() -> None:
    """The error of Eq. 16 is of third order in lambda: halving the step halves the relative error."""
    q, inputs, targets, noise = problem()
    errors = []
    for step_size in (1e-3, 5e-4):
        gains = information_gain(q, SIZES, inputs, targets, noise, step_size=step_size)
        pairs = zip(inputs, targets, strict=True)
        exact = th.stack([newton_step(q, x, y, noise, step_size).kl(q) for x, y in pairs])
        errors.append((gains / exact - 1.0).abs())
    assert errors[0].max() < 1e-2
    assert th.allclose(errors[0] / errors[1], th.full((8,), 2.0, dtype=th.float64), atol=0.05)


def test_gain_is_that_of_bayes_rule_where_the_posterior_is_known() -> None:
    """The gain agrees with the exact one to first order in what an observation tells about w, x^2 s^2 / v^2.

    For y = w x + noise, w ~ N(m, s^2), one observation makes the precision 1/s^2 + x^2/v^2 and moves the mean.
    """
    mean, std, x, y = 0.4, 0.7, 1.3, 2.5
    bias_std = 1e-4  # so sure that nothing is learned about it
    q = WeightPosterior(*(th.tensor(v, dtype=th.float64) for v in ([mean, 0.0], [std, bias_std])))
    q = WeightPosterior(q.mean, q.rho.expm1().log())
    corners = th.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=th.float64)  # exact where the loss is quadratic
    errors = []
    for v in (20.0, 40.0):
        given, seen = (th.tensor([[number]], dtype=th.float64) for number in (x, y))
        gain = information_gain(q, (1, 1), given, seen, corners, v)
        precision = std**-2 + (x / v) ** 2
        moved = (x / v**2) * (y - mean * x) / precision
        exact = 0.5 * (1 / (std**2 * precision) + (moved / std) ** 2 - 1 + math.log(std**2 * precision))
        errors.append(abs(gain.item() / exact - 1.0))
    assert errors[0] < 0.01
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.01)  # the observation tells a fourth as much


def test_gain_ranks_transitions_as_the_full_variational_update_does() -> None:
    """Eq. 11 minimised for each transition to convergence, in place of one Newton step."""
    q, inputs, targets, noise = problem(n=12)
    likelihood_std = 15.0
    exact = []
    for x, y in zip(inputs, 3.0 * targets, strict=True):
        leaves = WeightPosterior(*(part.clone().requires_grad_() for part in q))
        optimizer = th.optim.LBFGS(leaves, max_iter=100, line_search_fn="strong_wolfe")

        def closure(x: th.Tensor = x, y: th.Tensor = y, leaves: WeightPosterior = leaves) -> th.Tensor:
            fit = expected_log_likelihood(leaves, SIZES, x[None], y[None], noise, likelihood_std).sum()
            loss = leaves.kl(q) - fit
            for leaf, gradient in zip(leaves, th.autograd.grad(loss, leaves), strict=True):
                leaf.grad = gradient
            return loss

        optimizer.step(closure)
        exact.append(WeightPosterior(*(part.detach() for part in leaves)).kl(q))
    gains = information_gain(q, SIZES, inputs, 3.0 * targets, noise, likelihood_std)
    ratio = gains / th.stack(exact)
    assert ratio.min() > 0.9
    assert ratio.max() < 1.1
    ranks = th.stack([gains.argsort().argsort(), th.stack(exact).argsort().argsort()]).double()
    assert th.corrcoef(ranks)[0, 1] > 0.95


def test_a_batch_gives_what_its_transitions_give_alone() -> None:
    q, inputs, targets, noise = problem(n=CHUNK + 3)
    gains = information_gain(q, SIZES, inputs, targets, noise)
    for i in (0, CHUNK - 1, CHUNK, CHUNK + 2):
        alone = information_gain(q, SIZES, inputs[i : i + 1], targets[i : i + 1], noise)
        assert th.allclose(gains[i : i + 1], alone)
    assert (gains > 0).all()


def transitions(n: int, seed: int = 0) -> Transitions:
    """A drift of the state by the action."""
    observations = th.randn(n, 2, generator=generator(seed))
    actions = th.randn(n, 1, generator=generator(seed + 1))
    return Transitions(observations, actions, observations + th.cat([actions, -actions], dim=1))


def test_pool_keeps_the_latest_transitions() -> None:
    pool = TransitionPool(5)
    first, second = transitions(3, 0), transitions(4, 2)
    pool.add(first)
    pool.add(second)
    assert len(pool) == 5
    assert pool.transitions is not None
    assert th.equal(pool.transitions.observations, th.cat([first.observations, second.observations])[-5:])
    drawn = pool.sample(50, generator())
    assert drawn.actions.shape == (50, 1)
    kept = {tuple(row) for row in pool.transitions.observations.tolist()}
    assert {tuple(row) for row in drawn.observations.tolist()} == kept
    pool.add(transitions(9, 4))  # more than it holds
    assert th.equal(pool.transitions.observations, transitions(9, 4).observations[-5:])
    with pytest.raises(ValueError, match="at least 1 transition, got 0"):
        TransitionPool(0)


def test_what_has_never_varied_is_not_blown_up() -> None:
    pool = TransitionPool(5)
    still = Transitions(th.ones(3, 2), th.zeros(3, 1), th.ones(3, 2))
    pool.add(still)
    assert th.equal(pool.scale().observations, th.ones(2, 2))


def curiosity(**settings: object) -> Curiosity:
    arguments = {
        "n_observations": 2,
        "n_actions": 1,
        "n_hidden": (8,),
        "pool_size": 1000,
        "learning_rate": 1e-2,
        "prior_std": 0.5,
        "likelihood_std": 0.5,
        "n_samples": 5,
        "n_data": None,
        "n_medians": 3,
        "seed": 0,
    }
    return Curiosity(**{**arguments, **settings})  # type: ignore[arg-type]  # settings of several types


def test_reward_is_the_gain_over_the_mean_of_the_last_medians() -> None:
    model = curiosity()
    medians = []
    for i in range(5):
        rewards = model.rewards(transitions(101, i), generator(i))
        medians.append(model.medians[-1])
        assert rewards.median().item() == pytest.approx(medians[-1] / (sum(medians[-3:]) / len(medians[-3:])))
    assert len(model.medians) == 3


def test_the_familiar_teaches_less_than_the_new() -> None:
    """After learning the drift, transitions that follow it teach less than before, and less than those that do not."""
    model = curiosity()
    before = model.rewards(transitions(200), generator()) * model.medians[-1]
    losses = [model.learn(100, 50, generator(i)) for i in range(8)]
    assert losses[-1] < losses[0]
    familiar = transitions(200, 5)
    strange = familiar._replace(next_observations=familiar.observations - 3.0)
    after = model.rewards(familiar, generator()) * sum(model.medians) / 2
    surprising = model.rewards(strange, generator()) * sum(model.medians) / 3
    assert after.median() < 0.2 * before.median()
    assert surprising.median() > 5.0 * after.median()


def test_state_dict_holds_pool_and_scale() -> None:
    model = curiosity()
    model.rewards(transitions(20), generator())
    model.learn(3, 10, generator())
    file = io.BytesIO()
    th.save({"module": model.state_dict(), "optimizer": model.optimizer.state_dict()}, file)
    file.seek(0)
    loaded = th.load(file, weights_only=True)
    other = curiosity(seed=9)
    other.load_state_dict(loaded["module"])
    other.optimizer.load_state_dict(loaded["optimizer"])
    for one in (model, other):
        one.rewards(transitions(20, 3), generator(1))
        one.learn(3, 10, generator(2))
    assert model.medians == other.medians
    assert all(th.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    curiosity().load_state_dict(curiosity().state_dict())  # an empty pool, too
