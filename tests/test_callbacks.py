"""MetaEvalCallback: what it logs, writes and keeps, and that it leaves the training alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_maesn import MAESN, RL2, MultiTaskVecEnv, callbacks
from sb3_maesn.callbacks import MetaEvalCallback
from sb3_maesn.envs import make_vec
from sb3_maesn.evaluation import AdaptationResult
from tests.tiny import ITERATION, Memory, assert_same, tiny

SPARSE = "PointGoalSparse-v0"
UNIT_GOALS = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
KEYS = {
    *("timesteps", "results", "ep_lengths", "successes"),  # the zoo's
    *("returns_by_round", "success_by_round"),
}


def evaluator(**kwargs: Any) -> MetaEvalCallback:
    env = MultiTaskVecEnv(make_vec(SPARSE, 8))
    tasks = env.task_set("validation")[:2]
    return MetaEvalCallback(env, tasks, **{"eval_freq": 2, "n_rounds": 1, "n_episodes": 3, **kwargs})


def arrays(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "evaluations.npz", allow_pickle=False) as found:
        return dict(found)


def scripted(monkeypatch: pytest.MonkeyPatch, scores: Sequence[tuple[float, float]]) -> None:
    """Evaluations come out as told: (return, success) of the last round, one after the other."""
    outcomes = iter(scores)

    def evaluate(*_: Any) -> AdaptationResult:
        mean, success = next(outcomes)
        shape, latent = (2, 2, 3), np.zeros((2, 2, 2))
        full = [np.zeros(shape), np.zeros(shape)]
        full[0][-1], full[1][-1] = mean, success
        full[1][0] = 0.0 * success
        return AdaptationResult(full[0], full[1], np.ones(shape), np.zeros((*shape, 2)), latent, latent, *full)

    monkeypatch.setattr(callbacks, "evaluate_adaptation", evaluate)


def best_steps(folder: Path) -> int:
    return MAESN.load(folder / "best_model").num_timesteps


def test_evaluations_are_logged_under_the_steps_they_belong_to() -> None:
    memory, model = Memory(), tiny()
    model.set_logger(Logger(None, [memory]))
    model.learn(5 * ITERATION, evaluator())
    evaluations = [row for row in memory.rows if "eval/mean_reward" in row]
    assert [row["step"] for row in evaluations] == [2 * ITERATION, 4 * ITERATION, 5 * ITERATION]  # and at the end
    expected = """eval/mean_reward eval/mean_ep_length eval/return_round_0 eval/return_round_1 eval/success_round_0
        eval/success_round_1 eval/success_rate eval/solved_rate time/total_timesteps"""
    for row in evaluations:
        assert set(expected.split()) <= row.keys()
        assert row["eval/mean_reward"] == row["eval/return_round_1"]
        assert row["eval/success_rate"] == row["eval/success_round_1"]
        assert row["eval/mean_ep_length"] == 20.0


def test_evaluations_are_written_with_the_zoos_keys(tmp_path: Path) -> None:
    tiny().learn(3 * ITERATION, evaluator(log_path=tmp_path / "deep"))
    found = arrays(tmp_path / "deep")
    assert found.keys() == KEYS
    assert found["timesteps"].tolist() == [2 * ITERATION, 3 * ITERATION]
    for key in ("results", "ep_lengths", "successes"):
        assert found[key].shape == (2, 2 * 3)
    for key in ("returns_by_round", "success_by_round"):
        assert found[key].shape == (2, 2)
    assert np.allclose(found["results"].mean(axis=1), found["returns_by_round"][:, -1])
    assert np.allclose(found["successes"].mean(axis=1), found["success_by_round"][:, -1])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["evaluations.npz"]


def test_evaluating_leaves_the_training_alone() -> None:
    assert_same(tiny().learn(3 * ITERATION, evaluator(eval_freq=1)), tiny().learn(3 * ITERATION))


def test_evaluations_differ_by_the_model_only() -> None:
    callback = evaluator(eval_freq=1)
    tiny(target_kl=1e-9).learn(2 * ITERATION, callback)  # steps too small to matter
    assert np.allclose(callback.history["results"][0], callback.history["results"][1], atol=0.05)


def test_the_best_model_is_kept_by_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(-9.0, 0.5), (-5.0, 0.75), (-1.0, 0.25), (-1.0, 0.75)])
    tiny().learn(4 * ITERATION, evaluator(eval_freq=1, best_model_save_path=tmp_path))
    assert best_steps(tmp_path) == 2 * ITERATION


def test_an_evaluation_of_unknown_success_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(40.0, np.nan), (30.0, 0.5), (90.0, np.nan), (35.0, 0.75)])
    tiny().learn(4 * ITERATION, evaluator(eval_freq=1, best_model_save_path=tmp_path))
    assert best_steps(tmp_path) == 4 * ITERATION


def test_the_best_model_is_kept_by_return_where_success_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, [(-9.0, np.nan), (-5.0, np.nan), (-1.0, np.nan), (-3.0, np.nan)])
    memory, model = Memory(), tiny()
    model.set_logger(Logger(None, [memory]))
    model.learn(4 * ITERATION, evaluator(eval_freq=1, best_model_save_path=tmp_path))
    assert best_steps(tmp_path) == 3 * ITERATION
    assert not any("success" in key for row in memory.rows if "eval/mean_reward" in row for key in row if "eval" in key)


def test_a_resumed_run_goes_on_with_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(0.0, 0.5), (0.0, 0.75), (0.0, 0.6), (0.0, 0.9)])
    kwargs: dict[str, Any] = {"eval_freq": 1, "log_path": tmp_path, "best_model_save_path": tmp_path}
    model = tiny()
    model.learn(2 * ITERATION, evaluator(**kwargs))
    model.save(tmp_path / "half")
    resumed = MAESN.load(tmp_path / "half", env=model.env)
    resumed.learn(ITERATION, evaluator(**kwargs), reset_num_timesteps=False)
    found = arrays(tmp_path)
    assert found["timesteps"].tolist() == [ITERATION, 2 * ITERATION, 3 * ITERATION]  # none of them twice
    assert found["success_by_round"][:, -1].tolist() == [0.5, 0.75, 0.6]
    assert best_steps(tmp_path) == 2 * ITERATION  # 0.6 is not better than what came before
    resumed.learn(ITERATION, evaluator(**kwargs), reset_num_timesteps=False)
    assert best_steps(tmp_path) == 4 * ITERATION


def test_a_run_resumed_further_back_forgets_what_came_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(0.0, 0.5), (0.0, 0.75), (0.0, 0.6), (0.0, 0.25)])
    model = tiny()
    model.learn(ITERATION)
    model.save(tmp_path / "early")
    model.learn(2 * ITERATION, evaluator(eval_freq=1, log_path=tmp_path), reset_num_timesteps=False)
    resumed = MAESN.load(tmp_path / "early", env=model.env)
    resumed.learn(ITERATION, evaluator(eval_freq=1, log_path=tmp_path), reset_num_timesteps=False)
    assert arrays(tmp_path)["timesteps"].tolist() == [ITERATION, 2 * ITERATION]
    assert arrays(tmp_path)["success_by_round"][:, -1].tolist() == [0.5, 0.25]


def test_a_new_run_begins_a_new_record(tmp_path: Path) -> None:
    callback = evaluator(log_path=tmp_path)
    model = tiny().learn(2 * ITERATION, callback)
    model.learn(2 * ITERATION, callback)
    assert arrays(tmp_path)["timesteps"].tolist() == [2 * ITERATION]


def test_another_kind_of_evaluation_does_not_fit_the_record(tmp_path: Path) -> None:
    model = tiny().learn(ITERATION, evaluator(log_path=tmp_path))
    with pytest.raises(ValueError, match=r"has evaluations of 6 episodes in 2 rounds, expected 10 in 3"):
        model.learn(ITERATION, evaluator(log_path=tmp_path, n_episodes=5, n_rounds=2), reset_num_timesteps=False)


def test_validation_tasks_of_the_environment_are_the_default() -> None:
    callback = MetaEvalCallback(SPARSE)
    try:
        assert len(callback.tasks) == 100
        assert callback.eval_env.num_envs == 1000
    finally:
        callback.eval_env.close()


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    tiny().learn(2 * ITERATION, evaluator(verbose=1))
    assert "Eval num_timesteps=960, return by round [" in capsys.readouterr().out


def normalised(n: int = 12, around: bool = True, **kwargs: Any) -> VecNormalize:
    members = make_vec("PointGoal-v0", n)
    return VecNormalize(MultiTaskVecEnv(members) if around else members, **kwargs)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("algorithm", ["maesn", "rl2"])
def test_observations_are_normalised_as_in_training(algorithm: str, around: bool) -> None:
    training, evaluation = normalised(), normalised(8, around)
    callback = MetaEvalCallback(evaluation, UNIT_GOALS, eval_freq=1, n_rounds=1, n_episodes=2)
    model = tiny(training) if algorithm == "maesn" else RL2("MlpLstmPolicy", training, meta_batch_size=12, n_episodes=2)
    model.learn(2 * model.timesteps_per_iteration, callback)
    mine, theirs = training.obs_rms, evaluation.obs_rms
    assert theirs.count == mine.count > 100  # type: ignore[attr-defined]  # no Dict
    assert (theirs.mean == mine.mean).all()  # type: ignore[attr-defined]  # no Dict
    assert theirs is not mine
    assert evaluation.ret_rms.var == training.ret_rms.var
    assert evaluation.training


def test_evaluations_report_returns_that_are_not_normalised() -> None:
    callback = MetaEvalCallback(normalised(8), UNIT_GOALS, n_rounds=1, n_episodes=2)
    tiny(normalised()).learn(1, callback)
    assert callback.history["results"][0].mean() < -10.0


def raw() -> MultiTaskVecEnv:
    return MultiTaskVecEnv(make_vec("PointGoal-v0", 12))


@pytest.mark.parametrize(("training", "evaluation"), [(normalised, raw), (raw, normalised)])
def test_environments_that_do_not_normalise_alike_are_refused(
    training: Callable[[], VecEnv], evaluation: Callable[[], VecEnv]
) -> None:
    with pytest.raises(
        ValueError, match=r"as the training environment does, got [01] VecNormalize wrappers around the t"
    ):
        tiny(training()).learn(1, MetaEvalCallback(evaluation()))


def test_normalised_rewards_need_no_wrapper_in_evaluations() -> None:
    callback = MetaEvalCallback(raw(), UNIT_GOALS, n_rounds=1, n_episodes=2)
    tiny(normalised(norm_obs=False)).learn(1, callback)
    assert callback.history["timesteps"] == [ITERATION]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"eval_freq": 0}, "eval_freq must be at least 1, got 0"),
        ({"n_rounds": -1}, "n_rounds must be at least 0, got -1"),
        ({"n_episodes": 0}, "n_episodes must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"rule": "x"}, "rule must be one of policy_gradient, .*, got 'x'"),
    ],
)
def test_bad_input_is_refused_before_the_training(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaEvalCallback(raw(), UNIT_GOALS, **argument)


def test_a_model_that_does_not_adapt_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a model that adapts \(.*\), got PPO"):
        PPO("MlpPolicy", make_vec("PointGoal-v0", 2)).learn(1, MetaEvalCallback(raw(), UNIT_GOALS))
