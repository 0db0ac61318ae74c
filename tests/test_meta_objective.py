"""The meta-objective's derivatives against finite differences in float64, and its values where they are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from torch.autograd.functional import hessian, jacobian

from sb3_maesn.common import balancing
from sb3_maesn.common.balancing import Prices, episode_prices
from sb3_maesn.common.distributions import DiagGaussian
from sb3_maesn.common.gauss_newton import Composition
from sb3_maesn.common.inner_update import (
    INNER_UPDATES,
    InnerUpdate,
    apply_actor,
    inner_update,
    sample_z,
    whole,
)
from sb3_maesn.common.meta_objective import MetaObjective
from sb3_maesn.common.objectives import normalise_steps, policy_kl, surrogate
from sb3_maesn.common.parallel import Workers
from sb3_maesn.common.trust_region import fisher_product, flatten, unflatten
from sb3_maesn.common.type_aliases import (
    STEP_FIELDS,
    Adapted,
    MetaBatch,
    MetaParameters,
    TaskBatch,
    Tasks,
)
from tests.toy import MetaProblem, unadapted

STEP = 1e-5


def leaves_of(params: MetaParameters) -> list[th.Tensor]:
    return [leaf.detach().clone().requires_grad_() for leaf in params.leaves()]


def central_differences(function: Callable[[th.Tensor], th.Tensor], at: th.Tensor) -> th.Tensor:
    """D function / d at, one column for each coordinate: (..., P)."""
    columns = []
    for i in range(at.numel()):
        step = th.zeros_like(at)
        step[i] = STEP
        columns.append((function(at + step) - function(at - step)) / (2 * STEP))
    return th.stack(columns, dim=-1)


def relative_error(got: th.Tensor, expected: th.Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


def objective_of(problem: MetaProblem, estimator: str, adapt_policy: bool = False, **kwargs: bool) -> MetaObjective:
    spec = InnerUpdate(estimator, adapt_policy, **kwargs)
    return MetaObjective(spec, problem.actor, problem.batch_of, kl_coef=0.3)


MAML = ("likelihood_ratio", True, 0)
#: Estimator, whether theta is adapted, latent dimensions.
ALGORITHMS = [(estimator, adapts, 2) for estimator in INNER_UPDATES for adapts in (False, True)] + [MAML]


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n_inner_steps", [1, 2])
@pytest.mark.parametrize(("estimator", "adapt_policy", "latent_dim"), ALGORITHMS)
def test_gradient_equals_central_differences(
    estimator: str, adapt_policy: bool, latent_dim: int, n_inner_steps: int, discrete: bool
) -> None:
    problem = MetaProblem(discrete, n_inner_steps, adapt_policy, latent_dim)
    check_gradient(objective_of(problem, estimator, adapt_policy), problem.displaced())


def balanced(problem: MetaProblem) -> MetaObjective:
    """An objective whose tasks divide the same prior episodes evenly among them."""
    own = whole(problem.batch_of.pre[0]).episodes
    shared = replace(own, groups=th.zeros(3, dtype=th.int64), mask=th.ones(3, 5).double())
    spec = InnerUpdate("reward_weighted", balance=True)
    return MetaObjective(spec, problem.actor, replace(problem.batch_of, pre=(shared,)), kl_coef=0.3)


@pytest.mark.parametrize("discrete", [False, True])
def test_gradient_of_balanced_tasks_equals_central_differences(discrete: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "BALANCE_TOLERANCE", 1e-14)
    monkeypatch.setattr(balancing, "MAX_BALANCE_ITERATIONS", 10_000)
    monkeypatch.setattr(balancing, "RIDGE", 0.0)
    problem = MetaProblem(discrete)
    check_gradient(balanced(problem), problem.displaced())


#: What E-MAML and ProMP add to MAML's objective; the clip range is so small that some ratios are clipped.
VARIANTS: dict[str, tuple[bool, dict[str, float]]] = {
    "LVC": (True, {}),
    "E-MAML": (False, {"exploration_coef": 0.7}),
    "ProMP": (True, {"clip_range": 0.05, "inner_kl_coef": 0.2}),
    "all": (True, {"clip_range": 0.05, "inner_kl_coef": 0.2, "exploration_coef": 0.7}),
}


def variant_of(problem: MetaProblem, name: str) -> MetaObjective:
    curvature, terms = VARIANTS[name]
    objective = objective_of(problem, "likelihood_ratio", adapt_policy=True, low_variance_curvature=curvature)
    return replace(objective, **terms)  # type: ignore[arg-type]  # all are numbers


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n_inner_steps", [1, 2])
@pytest.mark.parametrize("latent_dim", [0, 2])
def test_gradient_of_the_variants_equals_central_differences(
    latent_dim: int, n_inner_steps: int, discrete: bool, name: str
) -> None:
    problem = MetaProblem(discrete, n_inner_steps, adapt_policy=True, latent_dim=latent_dim)
    check_gradient(variant_of(problem, name), problem.displaced())


@pytest.mark.parametrize("name", VARIANTS)
def test_what_tasks_contribute_to_the_variants_adds_up(name: str) -> None:
    problem = MetaProblem(n_inner_steps=2, adapt_policy=True, latent_dim=0)
    objective, params = variant_of(problem, name), problem.displaced()
    plain = objective_of(problem, "likelihood_ratio", adapt_policy=True)(params).objective.item()
    whole = objective(params).objective.item()
    assert sum(objective(params, part).objective.item() for part in (slice(0, 1), slice(1, 3))) == pytest.approx(whole)
    assert whole != pytest.approx(plain, rel=1e-4)


def scores(problem: MetaProblem, batch: TaskBatch) -> tuple[th.Tensor, th.Tensor]:
    """The gradient of each valid step's log probability in theta (n, P), and the tasks that the steps belong to."""
    rollout, theta = batch.rollout, list(problem.module.parameters())
    for parameter, value in zip(theta, problem.params.theta.values(), strict=True):
        parameter.data.copy_(value)
    at = (rollout.mask > 0).nonzero()  # (n, 3)
    steps = [tuple(i) for i in at.tolist()]
    latents = th.zeros(0, dtype=th.float64)
    log_probs = [problem.module(rollout.observations[i], latents).log_prob(rollout.actions[i]) for i in steps]
    return th.stack([flatten(th.autograd.grad(log_prob, theta)) for log_prob in log_probs]), at[:, 1]


@pytest.mark.parametrize("discrete", [False, True])
def test_low_variance_curvature_adds_the_scores_outer_products(discrete: bool) -> None:
    """Where the policy acted, ratios give the update of log probabilities, and its Jacobian has one term more."""
    problem = MetaProblem(discrete, adapt_policy=True, latent_dim=0)
    (batch,) = problem.batch_of.pre
    assert isinstance(batch, TaskBatch)
    adapted, jacobians = {}, {}
    for curvature in (False, True):
        objective = objective_of(problem, "likelihood_ratio", True, low_variance_curvature=curvature)

        def after(*theta: th.Tensor, objective: MetaObjective = objective) -> th.Tensor:
            params = replace(problem.params, theta=dict(zip(problem.params.theta, theta, strict=True)))
            theta_after = objective.adapt(params)[1].theta
            assert theta_after is not None
            return th.cat([value.flatten(1) for value in theta_after.values()], dim=1)  # (B, P)

        theta = tuple(problem.params.theta.values())
        adapted[curvature] = after(*theta)
        jacobians[curvature] = th.cat([part.flatten(2) for part in jacobian(after, theta)], dim=2)  # (B, P, P)
    assert th.allclose(adapted[True], adapted[False], rtol=1e-12)
    steps = flatten(list(problem.params.step_sizes.theta.values()))
    score, task = scores(problem, batch)
    advantages = normalise_steps(batch.advantages, batch.rollout.mask)[batch.rollout.mask > 0]
    for i in range(3):
        own = task == i
        outer = score[own].T @ (score[own] * advantages[own, None]) / own.sum()
        difference = jacobians[True][i] - jacobians[False][i]
        assert relative_error(difference, steps[:, None] * outer) < 1e-6
        assert relative_error(jacobians[False][i], jacobians[True][i]) > 1e-3


@pytest.mark.parametrize("discrete", [False, True])
def test_e_maml_credits_actions_before_the_update_with_rewards_after_it(discrete: bool) -> None:
    """Where the policy acted, the gradient that it adds is the task's mean reward times the mean score."""
    problem = MetaProblem(discrete, adapt_policy=True, latent_dim=0)
    (batch,) = problem.batch_of.pre
    assert isinstance(batch, TaskBatch)
    plain = objective_of(problem, "likelihood_ratio", adapt_policy=True)
    gradients = []
    for objective in (plain, replace(plain, exploration_coef=0.7)):
        leaves = leaves_of(problem.params)
        value = objective(problem.params.with_leaves(leaves)).objective
        gradients.append(flatten(th.autograd.grad(value, leaves[: len(problem.params.theta)])))
    post = problem.batch_of.post.rollout
    rewards = post.rewards[post.mask > 0]
    standardised = (post.rewards - rewards.mean()) / rewards.std(correction=0)
    score, task = scores(problem, batch)
    credits = [standardised[:, i][post.mask[:, i] > 0].mean() for i in range(3)]
    expected = 0.7 * th.stack([credits[i] * score[task == i].mean(dim=0) for i in range(3)]).mean(dim=0)
    assert relative_error(gradients[1] - gradients[0], expected) < 1e-6


def check_gradient(objective: MetaObjective, params: MetaParameters) -> None:
    leaves = leaves_of(params)
    value = objective(params.with_leaves(leaves)).objective
    gradients = th.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)

    def evaluate(vector: th.Tensor) -> th.Tensor:
        return objective(params.with_leaves(unflatten(vector, leaves))).objective.detach()

    expected = central_differences(evaluate, flatten(leaves).detach())
    assert relative_error(flatten(gradients), expected) < 1e-6
    for got, wanted in zip(gradients, unflatten(expected, leaves), strict=True):  # and no small part is wrong
        assert th.allclose(got, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("estimator", INNER_UPDATES)
def test_every_meta_parameter_has_a_gradient(estimator: str) -> None:
    problem = MetaProblem(adapt_policy=True)
    params = problem.displaced()
    leaves = leaves_of(params)
    value = objective_of(problem, estimator, adapt_policy=True)(params.with_leaves(leaves)).objective
    names = [*params.theta, "mean", "log_std", "mean_step", "log_std_step", "log_temperature"]
    names += [f"step of {name}" for name in params.theta]
    for name, gradient in zip(names, th.autograd.grad(value, leaves, allow_unused=True), strict=True):
        only_reward_weighted = name == "log_temperature" and estimator != "reward_weighted"
        assert (gradient is None) == only_reward_weighted, name
        assert gradient is None or bool((gradient != 0).any()), name


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("n_inner_steps", [1, 2])
@pytest.mark.parametrize(("estimator", "adapt_policy", "latent_dim"), ALGORITHMS)
@pytest.mark.parametrize("curvature", [False, True])
def test_fisher_product_equals_differences_of_the_gradient_where_it_is_taken(
    estimator: str, adapt_policy: bool, latent_dim: int, n_inner_steps: int, discrete: bool, curvature: bool
) -> None:
    """At the parameters that acted, the KL is at its minimum, and only its own curvature counts."""
    problem = MetaProblem(discrete, n_inner_steps, adapt_policy, latent_dim)
    objective = objective_of(problem, estimator, adapt_policy, low_variance_curvature=curvature and adapt_policy)
    objective = as_collected(objective, problem.params)
    check_fisher_product(problem, objective, problem.params, stride=1 if adapt_policy else 2)


def as_collected(objective: MetaObjective, params: MetaParameters) -> MetaObjective:
    """The same objective as if ``params`` had acted after the inner updates."""
    path = objective.path(params)
    adapted, post = path[-1], objective.batch.post
    z = sample_z(adapted.omega, post.rollout.noise)
    acting = apply_actor(objective.actor, params.theta, adapted, post.rollout.observations, z)
    rollout = replace(post.rollout, distribution=type(acting)(*(part.detach() for part in acting)))
    acted = tuple(value.detached() for value in path)
    return replace(objective, batch=replace(objective.batch, post=replace(post, rollout=rollout), acted=acted))


def check_fisher_product(problem: MetaProblem, objective: MetaObjective, params: MetaParameters, stride: int) -> None:
    leaves, damping = leaves_of(params), 0.1

    def kl_gradient(vector: th.Tensor) -> th.Tensor:
        own = [part.detach().requires_grad_() for part in unflatten(vector, leaves)]
        kl = objective.fisher_kl(params.with_leaves(own), stride).value
        return flatten(th.autograd.grad(kl, own, allow_unused=True, materialize_grads=True))

    def fisher_kl(own: Sequence[th.Tensor]) -> Composition:
        return objective.fisher_kl(params.with_leaves(own), stride)

    with Workers() as workers:
        product = fisher_product([fisher_kl], leaves, damping, workers)
    at = flatten(leaves).detach()
    direction = problem.normal(at.numel())
    expected = (kl_gradient(at + STEP * direction) - kl_gradient(at - STEP * direction)) / (2 * STEP)
    assert relative_error(product(direction).detach(), expected + damping * direction) < 1e-6


@pytest.mark.parametrize("latent_dim", [0, 2])
@pytest.mark.parametrize("n_inner_steps", [1, 2])
def test_a_thinned_fisher_product_thins_the_jacobian_but_not_the_update(n_inner_steps: int, latent_dim: int) -> None:
    """Theta after the inner updates is that of all steps; its Jacobian, that of every second step's estimate."""
    problem = MetaProblem(n_inner_steps=n_inner_steps, adapt_policy=True, latent_dim=latent_dim)
    objective = as_collected(objective_of(problem, "likelihood_ratio", adapt_policy=True), problem.params)
    params, leaves = problem.params, leaves_of(problem.params)

    def flat_adapted(*own: th.Tensor, stride: int = 2) -> th.Tensor:
        _, adapted = objective.adapt(params.with_leaves(own), stride=stride)
        assert adapted.theta is not None
        return flatten([*adapted.omega, *adapted.theta.values()])

    assert th.allclose(flat_adapted(*leaves), flat_adapted(*leaves, stride=1), rtol=1e-12)
    jacobians = {
        stride: th.cat(
            [part.reshape(len(part), -1) for part in jacobian(partial(flat_adapted, stride=stride), tuple(leaves))], 1
        )
        for stride in (1, 2)
    }
    assert relative_error(jacobians[2], jacobians[1]) > 1e-3
    kl = partial(thinned_kl, objective, params)
    curvature = hessian(kl, flat_adapted(*leaves).detach())
    expected = jacobians[2].T @ curvature @ jacobians[2]
    with Workers() as workers:
        product = fisher_product([lambda own: objective.fisher_kl(params.with_leaves(own), 2)], leaves, 0.0, workers)
        direction = problem.normal(expected.shape[0])
        assert relative_error(product(direction).detach(), expected @ direction) < 1e-10


def thinned_kl(objective: MetaObjective, params: MetaParameters, flat: th.Tensor) -> th.Tensor:
    """The KL on every second post-update step as a function of what is adapted."""
    _, like = objective.adapt(params)
    assert like.theta is not None
    parts = unflatten(flat, [*like.omega, *like.theta.values()])
    adapted = Adapted(DiagGaussian(*parts[:2]), dict(zip(like.theta, parts[2:], strict=True)))
    rollout = objective.batch.post.rollout.every_nth_step(2, spread=True)
    z = sample_z(adapted.omega, rollout.noise)
    new = apply_actor(objective.actor, params.theta, adapted, rollout.observations, z)
    return policy_kl(rollout.distribution, new, rollout.mask)


def latents_kl(objective: MetaObjective, params: MetaParameters, leaves: Sequence[th.Tensor]) -> Composition:
    return objective.fisher_kl(params.with_leaves(leaves), stride=1)


def test_latents_own_fisher_matrix_has_its_closed_form() -> None:
    problem = MetaProblem(n_inner_steps=0)
    params, batch = problem.params, problem.batch_of
    without = MetaObjective(InnerUpdate(), problem.actor, batch, kl_coef=0.0)
    leaves = leaves_of(params)
    directions = [th.zeros_like(leaf) for leaf in leaves]
    n_policy = len(params.theta)
    directions[n_policy], directions[n_policy + 1] = problem.normal(4, 2), problem.normal(4, 2)
    products = []
    for objective in (without, replace(without, latent_kl_coef=0.5)):
        kl = partial(latents_kl, objective, params)
        with Workers() as workers:
            products.append(unflatten(fisher_product([kl], leaves, 0.0, workers)(flatten(directions)), leaves))
    mean, log_std = (products[1][i] - products[0][i] for i in (n_policy, n_policy + 1))
    chosen = th.zeros(4, 1, dtype=th.float64)
    chosen[batch.tasks.ids] = 0.5 / 3  # weight, mean over 3 tasks
    assert th.allclose(mean, chosen * th.exp(-2 * params.omega.log_std) * directions[n_policy])
    assert th.allclose(log_std, chosen * 2.0 * directions[n_policy + 1])


def post_update_objective(problem: MetaProblem, params: MetaParameters, directions: Sequence[th.Tensor]) -> th.Tensor:
    """The objective as if the inner update's direction were a constant: what a first-order gradient differentiates."""
    ids = problem.batch_of.tasks.ids
    moved = DiagGaussian(
        params.omega.mean[ids] + params.step_sizes.mean * directions[0],
        params.omega.log_std[ids] + params.step_sizes.log_std * directions[1],
    )
    batch = MetaBatch(Tasks(np.arange(len(ids)), problem.batch_of.tasks.values), (), problem.batch_of.post)
    objective = MetaObjective(InnerUpdate(), problem.actor, batch, kl_coef=0.0)
    return objective(replace(params, omega=moved)).objective


@pytest.mark.parametrize("estimator", INNER_UPDATES)
def test_first_order_takes_the_inner_direction_for_a_constant(estimator: str) -> None:
    problem = MetaProblem()
    params, ids = problem.displaced(), problem.batch_of.tasks.ids
    before = unadapted(params.omega.mean[ids], params.omega.log_std[ids])
    spec = InnerUpdate(estimator)
    after = inner_update(spec, problem.actor, params.theta, params.step_sizes, before, problem.batch_of.pre[0])
    directions = [
        ((after.omega.mean - before.omega.mean) / params.step_sizes.mean).detach(),
        ((after.omega.log_std - before.omega.log_std) / params.step_sizes.log_std).detach(),
    ]
    leaves = leaves_of(params)
    grad = partial(th.autograd.grad, inputs=leaves, allow_unused=True, materialize_grads=True)
    expected = flatten(grad(post_update_objective(problem, params.with_leaves(leaves), directions)))
    values = {}
    for first_order in (True, False):
        objective = replace(objective_of(problem, estimator, first_order=first_order), kl_coef=0.0)
        values[first_order] = flatten(grad(objective(params.with_leaves(leaves)).objective))
    assert relative_error(values[True], expected) < 1e-10
    assert relative_error(values[False], expected) > 1e-2


@pytest.mark.parametrize("latent_dim", [0, 2])
def test_first_order_takes_the_gradient_of_theta_for_a_constant(latent_dim: int) -> None:
    problem = MetaProblem(adapt_policy=True, latent_dim=latent_dim)
    params = problem.displaced()
    objective = replace(objective_of(problem, "likelihood_ratio", True, first_order=True), kl_coef=0.0)
    _, adapted = objective.adapt(params)
    assert adapted.theta is not None
    steps = params.step_sizes.theta
    constant = {name: ((adapted.theta[name] - theta) / steps[name]).detach() for name, theta in params.theta.items()}
    leaves = leaves_of(params)
    own = params.with_leaves(leaves)
    moved = {name: theta + own.step_sizes.theta[name] * constant[name] for name, theta in own.theta.items()}
    _, moved_latents = replace(objective, spec=InnerUpdate(first_order=True)).adapt(own)
    rollout = problem.batch_of.post.rollout
    z = sample_z(moved_latents.omega, rollout.noise)
    new = apply_actor(problem.actor, own.theta, Adapted(moved_latents.omega, moved), rollout.observations, z)
    advantages = normalise_steps(problem.batch_of.post.advantages, rollout.mask)
    value = surrogate(new.log_prob(rollout.actions), rollout.log_prob, advantages, rollout.mask)
    grad = partial(th.autograd.grad, inputs=leaves, allow_unused=True, materialize_grads=True)
    expected = flatten(grad(value))
    assert relative_error(flatten(grad(objective(params.with_leaves(leaves)).objective)), expected) < 1e-10
    in_full = replace(objective, spec=InnerUpdate(adapt_policy=True))
    assert relative_error(flatten(grad(in_full(params.with_leaves(leaves)).objective)), expected) > 1e-2


@pytest.mark.parametrize("discrete", [False, True])
def test_at_the_parameters_that_acted_the_surrogate_has_mean_zero_and_the_kl_is_zero(discrete: bool) -> None:
    problem = MetaProblem(discrete, n_inner_steps=0)
    value = objective_of(problem, "likelihood_ratio")(problem.params)
    ids = problem.batch_of.tasks.ids
    prior = th.distributions.Normal(th.zeros(3, 2).double(), 1.0)
    latents = th.distributions.Normal(problem.params.omega.mean[ids], problem.params.omega.log_std[ids].exp())
    expected = th.distributions.kl_divergence(latents, prior).sum(dim=1).mean()
    assert abs(value.surrogate.item()) < 1e-12
    assert abs(value.kl.item()) < 1e-12
    assert value.prior_kl.item() == pytest.approx(expected.item())
    assert value.objective.item() == pytest.approx(-0.3 * expected.item())


def test_invalid_episodes_and_steps_after_the_end_change_nothing() -> None:
    problem = MetaProblem(adapt_policy=True)
    params = problem.displaced()
    values = [objective_of(problem, "reparameterised", adapt_policy=True)(params).objective.item()]
    for batch in (*problem.batch_of.pre, problem.batch_of.post):
        assert isinstance(batch, TaskBatch)
        rollout = batch.rollout
        dead = rollout.mask == 0
        rollout.observations[dead] = 5.0
        rollout.actions[dead] = 0.0
        rollout.log_prob[dead] = -3.0
        batch.advantages[dead] = 100.0
    values.append(objective_of(problem, "reparameterised", adapt_policy=True)(params).objective.item())
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_a_graph_free_evaluation_gives_the_same_value() -> None:
    problem = MetaProblem(n_inner_steps=2, adapt_policy=True)
    params = problem.displaced()
    objective = objective_of(problem, "reparameterised", adapt_policy=True)
    with_graph = objective(params.with_leaves(leaves_of(params))).objective
    with th.no_grad():
        without = objective(params).objective
    assert with_graph.requires_grad
    assert not without.requires_grad
    assert with_graph.item() == without.item()


@pytest.mark.parametrize("estimator", INNER_UPDATES)
@pytest.mark.parametrize("adapt_policy", [False, True])
def test_what_tasks_contribute_adds_up_to_the_whole(estimator: str, adapt_policy: bool) -> None:
    problem = MetaProblem(n_inner_steps=2, adapt_policy=adapt_policy)
    params = problem.displaced()
    objective = as_collected(objective_of(problem, estimator, adapt_policy), params)
    parts = [slice(0, 1), slice(1, 3)]
    whole = objective(params)
    for name, number in whole._asdict().items():
        total = sum(getattr(objective(params, part), name).item() for part in parts)
        assert total == pytest.approx(number.item(), rel=1e-10), name
    kl = sum(objective.fisher_kl(params, 2, part).value.item() for part in parts)
    assert kl == pytest.approx(objective.fisher_kl(params, 2).value.item(), rel=1e-10)


def test_balanced_tasks_add_up_too_and_their_prices_are_computed_once_a_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = MetaProblem()
    objective = balanced(problem)
    (shared,) = objective.batch.pre
    computed: list[th.Tensor] = []

    def counted(advantages: th.Tensor, *others: th.Tensor) -> Prices:
        computed.append(advantages)
        return episode_prices(advantages, *others)

    monkeypatch.setattr("sb3_maesn.common.inner_update.episode_prices", counted)
    for values in (problem.params, problem.displaced(), problem.params):  # of two temperatures
        params = values.with_leaves(leaves_of(values))
        total = objective(params).objective.item()
        parts = [objective(params, part).objective.item() for part in (slice(0, 1), slice(1, 3))]
        assert sum(parts) == pytest.approx(total)
        ids = th.as_tensor(problem.batch_of.tasks.ids)
        before = unadapted(params.omega.mean[ids], params.omega.log_std[ids])
        after = inner_update(objective.spec, problem.actor, params.theta, params.step_sizes, before, shared)
        assert th.equal(objective.adapt(params)[1].omega.mean, after.omega.mean)
    assert len(computed) == 2 + 3  # those of the updates without the objective are their own


def test_parts_hold_every_task_once() -> None:
    objective = objective_of(MetaProblem(), "likelihood_ratio")
    covered = [i for part in objective.parts() for i in range(3)[part]]
    assert covered == [0, 1, 2]


def test_the_stride_leaves_ten_steps_of_a_short_episode() -> None:
    """It follows the episodes as they are, not the horizon: all of the second task's end after 40 of 400 steps."""
    problem = MetaProblem(n_inner_steps=0)
    batch = problem.batch_of.post
    mask = th.ones(400, 2, 5, dtype=th.float64)
    mask[40:, 1] = 0.0
    long = th.zeros_like(mask)
    fields = {name: getattr(batch.rollout, name)[:, :2] for name in STEP_FIELDS}
    steps: dict[str, Any] = {name: th.zeros(400, *value.shape[1:]) for name, value in fields.items()}
    rollout = replace(batch.rollout.at_tasks(slice(0, 2)), **{**steps, "mask": mask})
    post = replace(
        batch.at_tasks(slice(0, 2)), rollout=rollout, advantages=long, discounted_returns=long, episode_mask=mask[0]
    )
    objective = objective_of(problem, "likelihood_ratio")
    objective = replace(objective, batch=replace(objective.batch, post=post))
    assert [objective.stride(n) for n in (1, 3, 20)] == [1, 3, 4]


def test_a_thinned_batch_keeps_episodes_of_which_no_step_is_left() -> None:
    batch = MetaProblem().batch_of.post
    thinned = batch.every_nth_step(4, spread=True)  # of the fourth episode the step 2
    batch.rollout.mask[2:, 0, 3] = 0.0
    assert batch.every_nth_step(4, spread=True).rollout.mask[:, 0, 3].sum() == 0.0 < thinned.rollout.mask[:, 0, 3].sum()
    assert th.equal(batch.every_nth_step(4, spread=True).episodes.mask, batch.episodes.mask)
    assert batch.episodes.mask[0, 3] == 1.0
    assert batch.mean_lengths.tolist() == pytest.approx([16 / 5, 4.0, 4.0])
