"""evaluate_adaptation: shapes, seeds, environments, refusals."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_maesn import MAESN, MultiTaskVecEnv
from sb3_maesn.common.adaptation.rules import CrossEntropyRule
from sb3_maesn.envs import make_env, make_vec
from sb3_maesn.evaluation import AdaptationResult, evaluate_adaptation
from tests.toy import ThirdParty

SPARSE = "PointGoalSparse-v0"


@pytest.fixture(scope="module")
def model() -> MAESN:
    kwargs: dict[str, Any] = {"net_arch": [8], "ortho_init": False}
    return MAESN("LatentMlpPolicy", make_vec("PointGoal-v0", 6), 1e-3, 3, 4, seed=0, policy_kwargs=kwargs)


@pytest.fixture(scope="module")
def tasks(model: MAESN) -> list[Any]:
    assert model.env is not None
    return model.env.task_set("test")[:4]


def arrays(result: AdaptationResult) -> dict[str, np.ndarray]:
    return vars(result)


def same(first: AdaptationResult, second: AdaptationResult) -> bool:
    pairs = zip(arrays(first).values(), arrays(second).values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("n_tasks", [1, 4])
def test_shapes(model: MAESN, tasks: list[Any], n_tasks: int) -> None:
    result = evaluate_adaptation(model, SPARSE, tasks[:n_tasks], n_rounds=2, n_episodes=5, n_eval_episodes=3)
    shapes = {name: array.shape for name, array in arrays(result).items()}
    assert shapes == {
        "returns": (3, n_tasks, 5),
        "success": (3, n_tasks, 5),
        "lengths": (3, n_tasks, 5),
        "latents": (3, n_tasks, 5, 2),
        "mean": (3, n_tasks, 2),
        "log_std": (3, n_tasks, 2),
        "eval_returns": (3, n_tasks, 3),
        "eval_success": (3, n_tasks, 3),
    }
    assert (result.mean[0] == 0).all()  # round 0 is the prior
    assert (result.log_std[0] == 0).all()
    assert set(np.unique(result.success)) <= {0.0, 1.0}
    assert (result.lengths == 20).all()


def test_the_seed_decides_and_the_model_stays(model: MAESN, tasks: list[Any]) -> None:
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    th.manual_seed(0)
    random_state = th.get_rng_state()
    evaluate = partial(evaluate_adaptation, model, "PointGoal-v0", tasks, 2, 5, n_eval_episodes=2)
    first, again, other = evaluate(seed=1), evaluate(seed=1), evaluate(seed=2)
    assert same(first, again)
    assert not same(first, other)
    assert th.equal(th.get_rng_state(), random_state)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())


def test_tasks_are_adapted_each_on_its_own(model: MAESN, tasks: list[Any]) -> None:
    result = evaluate_adaptation(model, "PointGoal-v0", tasks, 2, 10, rule="policy_gradient")
    moved = result.mean[2]
    assert len({tuple(row) for row in moved.round(6)}) == 4


def test_the_history_of_adapt_is_the_evaluation_of_one_task(model: MAESN, tasks: list[Any]) -> None:
    adapted = model.adapt(SPARSE, task=tasks[0], n_rounds=2, n_episodes=5, seed=3)
    result = evaluate_adaptation(model, SPARSE, tasks[:1], n_rounds=2, n_episodes=5, seed=3)
    assert adapted.adaptation is not None
    for name, array in arrays(adapted.adaptation).items():
        assert np.array_equal(array, arrays(result)[name][:2], equal_nan=True), name
    assert np.allclose(result.mean[2, 0], adapted.policy.latent_mean)


@pytest.mark.parametrize("n_members", [1, 3, 20, 64])
def test_environments_of_any_size(model: MAESN, tasks: list[Any], n_members: int) -> None:
    envs = [make_vec(SPARSE, n_members), MultiTaskVecEnv(make_vec(SPARSE, n_members))]
    results = [evaluate_adaptation(model, env, tasks, 1, 5) for env in envs]
    assert same(results[0], results[1])
    assert (results[0].lengths == 20).all()


def test_other_environments(model: MAESN, tasks: list[Any]) -> None:
    native = evaluate_adaptation(model, make_vec(SPARSE, 8), tasks, 1, 5, rule="cross_entropy")
    single = DummyVecEnv([partial(make_env, SPARSE)] * 8)
    dummy = evaluate_adaptation(model, single, tasks, 1, 5, rule=CrossEntropyRule())
    assert np.allclose(native.returns, dummy.returns)
    assert (native.success == dummy.success).all()


def test_a_normalised_environment_stays_as_it_is(tasks: list[Any]) -> None:
    env = VecNormalize(MultiTaskVecEnv(make_vec("PointGoal-v0", 12)))
    model = MAESN("LatentMlpPolicy", env, meta_batch_size=3, n_episodes=4, seed=0).learn(1)
    count = env.obs_rms.count  # type: ignore[attr-defined]  # no Dict
    results = [evaluate_adaptation(model, env, tasks, 1, 5) for _ in range(2)]
    adapted = model.adapt(task=tasks[0], n_rounds=1, n_episodes=5)
    assert same(results[0], results[1])
    assert adapted.adaptation is not None
    for returns in (results[0].returns, adapted.adaptation.returns):
        assert returns.mean() < -10.0  # the environment's own rewards
    assert env.obs_rms.count == count  # type: ignore[attr-defined]  # no Dict
    assert env.training
    assert env.norm_reward


def test_an_environment_that_does_not_normalise_as_the_training_environment_does_is_refused(tasks: list[Any]) -> None:
    model = MAESN("LatentMlpPolicy", VecNormalize(MultiTaskVecEnv(make_vec("PointGoal-v0", 12))), meta_batch_size=3)
    with pytest.raises(ValueError, match=r"got 1 VecNormalize wrappers around the training environment and 0 around"):
        evaluate_adaptation(model, "PointGoal-v0", tasks, 1, 5)
    with pytest.raises(ValueError, match=r"with the same statistics"):
        model.adapt("PointGoal-v0", task=tasks[0])


def test_an_environment_that_does_not_tell_success() -> None:
    class Silent(ThirdParty):
        def end_info(self, member: int) -> dict[str, Any]:
            return {}

    env = MultiTaskVecEnv(Silent(4, 3), horizon=3, train_tasks=[1.0, 2.0])
    model = MAESN("LatentMlpPolicy", env, meta_batch_size=2, n_episodes=2)
    result = evaluate_adaptation(model, env, [1.0, 2.0], 1, 3)
    assert result.mean_return.tolist() == [4.5, 4.5]
    assert np.isnan(result.success_rate).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tasks": []}, "expected at least one task, got none"),
        ({"tasks": [[np.nan, 1.0]]}, "finite"),
        ({"n_episodes": 0}, "n_episodes must be at least 1, got 0"),
        ({"n_rounds": -1}, "n_rounds must not be negative, got -1"),
        ({"n_eval_episodes": -2}, "n_eval_episodes must not be negative, got -2"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rule": "best"}, "rule must be one of .*, got 'best'"),
        ({"env": "WheeledGoal-v0"}, "Observation spaces do not match"),
        ({"env": "Wheeled-v9"}, "unknown task family 'Wheeled-v9'"),
    ],
)
def test_bad_arguments(model: MAESN, tasks: list[Any], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_adaptation(model, **{"env": SPARSE, "tasks": tasks, **kwargs})
