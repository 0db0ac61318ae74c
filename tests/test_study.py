"""Studies of tiny trials: scores, pruning, resumption, and that a killed worker costs one trial."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState

from sb3_maesn import benchmarking, tuning
from sb3_maesn import study as studies
from sb3_maesn.benchmarking import EvaluationPlan, Outcome
from sb3_maesn.config import ConfigError, constructor_arguments
from sb3_maesn.heartbeat import fail_trials, heartbeats, is_stale, worker_name
from sb3_maesn.maesn import MAESN
from sb3_maesn.search_spaces import SEARCH_SPACES
from sb3_maesn.study import StudyRequest, open_study, run_study
from sb3_maesn.study_report import write_report
from sb3_maesn.tuning import TuningPlan, check_plan, check_start
from tests.test_scripts import load

TUNE = Path(__file__).resolve().parent.parent / "scripts" / "tune.py"
#: Program that runs ``tune.py`` with trials that never end.
HANGING_TUNE = f"""
import sys, time
sys.path.insert(0, {str(TUNE.parent)!r})
import tune
from sb3_maesn import study
study.objective = lambda plan, trial: time.sleep(600)
tune.main(sys.argv[1:])
"""
PLAN = TuningPlan(
    algo="maesn",
    env_id="PointGoal-v0",
    config={"n_timesteps": 1000, "n_envs": 50},
    n_timesteps=2000,
    n_evaluations=2,
    test=EvaluationPlan(n_tasks=2, n_rounds=1, n_episodes=2, split="validation"),
)


def request(folder: Path, **changes: Any) -> StudyRequest:
    return StudyRequest(
        **{
            "plan": PLAN,
            "storage": str(folder / "j.log"),
            "name": "s",
            "n_trials": 2,
            "verbose": 0,
            "seed": 0,
            **changes,
        }
    )


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[float]]:
    """Replaces training and evaluation: the scores of each seed's agent, evaluation after evaluation."""
    scores: dict[int, list[float]] = {}
    turns: dict[int, int] = {}

    def measure(agent: Any, plan: EvaluationPlan) -> Outcome:
        seed = int(agent.name.split()[-1])
        turns[seed] = turns.get(seed, -1) + 1
        value = np.array([[scores[seed][turns[seed] % len(scores[seed])]]])
        return Outcome(value, value, value)

    monkeypatch.setattr(tuning, "_train", stop_over_only)
    monkeypatch.setattr(tuning, "measure", measure)
    return scores


def stop_over_only(model: Any, n_timesteps: int, stages: Sequence[int], reached: Callable[[int], Any]) -> None:
    """Stand in for training."""
    for steps in stages:
        reached(steps)


def test_value_is_the_median_of_the_seeds_at_the_end(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted.update({0: [0.1, 0.2], 1: [0.8], 2: [0.6]})
    study = run_study(request(tmp_path, plan=replace(PLAN, n_seeds=3), n_trials=1))
    (trial,) = study.trials
    assert trial.value == 0.6
    assert trial.user_attrs["scores"] == [0.2, 0.8, 0.6]
    assert trial.intermediate_values == {1000: 0.1, 2000: 0.2, 4000: 0.5, 6000: 0.6}


def test_further_seeds_are_only_for_trials_that_are_worth_it(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted.update({0: [0.3, 0.6] * 5 + [0.3, 0.1, 0.3, 0.6], 1: [0.6] * 5 + [0.2]})
    study = run_study(request(tmp_path, plan=replace(PLAN, n_seeds=2), n_trials=7))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5 + [
        TrialState.PRUNED,
        TrialState.COMPLETE,
    ]
    assert study.trials[5].last_step == 2000
    assert study.trials[6].user_attrs["scores"] == [0.6, 0.2]  # which the first seed alone would not have told


def test_agents_are_judged_on_the_environment_and_by_the_rule_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def evaluate(model: Any, env_id: str, tasks: Any, *settings: Any) -> Any:
        asked.append((env_id, settings))
        return SimpleNamespace(returns=np.zeros((2, 2, 2)), lengths=np.ones((2, 2, 2)), success=np.zeros((2, 2, 2)))

    monkeypatch.setattr(benchmarking, "evaluate_adaptation", evaluate)
    test = replace(PLAN.test, env_id="PointGoal-v0", rule="kernel")
    run_study(request(tmp_path, plan=replace(PLAN, test=test, n_evaluations=1), n_trials=1))
    run_study(request(tmp_path, name="t", plan=replace(PLAN, n_evaluations=1), n_trials=1))
    assert asked == [("PointGoal-v0", (1, 2, "kernel", 0)), ("PointGoalSparse-v0", (1, 2, None, 0))]


def test_a_trial_below_the_median_is_pruned(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [0.5, 0.6] * 5 + [0.1]
    study = run_study(request(tmp_path, n_trials=6))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    assert study.trials[-1].last_step == 1000


def test_numbers_that_are_not_finite_prune(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [float("nan")]
    study = run_study(request(tmp_path, n_trials=1, plan=replace(PLAN, metric="return")))
    assert study.trials[0].state == TrialState.PRUNED


def test_an_evaluation_whose_numbers_are_not_finite_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "_train", stop_over_only)
    monkeypatch.setitem(SEARCH_SPACES, "maml", lambda trial: {"policy_step_size_init": 1e30})
    dense = replace(PLAN, algo="maml", test=replace(PLAN.test, env_id="PointGoal-v0"))  # equal returns move nothing
    study = run_study(request(tmp_path, plan=dense, n_trials=1, verbose=1))
    assert study.trials[0].state == TrialState.PRUNED
    assert "trial 0: pruned (evaluation failed: PointGoal-v0: actions must be finite" in capsys.readouterr().out


def test_schedules_span_the_whole_training_of_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[tuple[int, float]] = []

    def measure(agent: Any, plan: EvaluationPlan) -> Outcome:
        evaluated.append((agent.model.num_timesteps, agent.model._current_progress_remaining))
        return Outcome(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1)))

    monkeypatch.setattr(tuning, "measure", measure)
    sizes = {"meta_batch_size": 5, "n_episodes": 5}  # 1000 steps an iteration
    plan = replace(PLAN, config={**PLAN.config, **sizes}, fixed=sizes, n_timesteps=4000, n_seeds=2)
    run_study(request(tmp_path, plan=plan, n_trials=1))
    assert evaluated == [(2000, 0.5), (4000, 0.0), (4000, 0.0)]


def test_a_study_that_goes_on_draws_new_trials(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [0.5]
    for n_trials in (2, 4):
        study = run_study(request(tmp_path, sampler="random", n_trials=n_trials))
    whole = run_study(request(tmp_path, name="whole", sampler="random", n_trials=2))
    drawn = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(drawn)) == 4
    assert [tuple(sorted(trial.params.items())) for trial in whole.trials] == drawn[:2]  # the seed still counts


def test_one_task_is_evaluated_where_it_is_learned() -> None:
    test = replace(PLAN.test, env_id="PointGoalSparse-v0")
    with pytest.raises(
        ConfigError, match="reinforce is evaluated where it learns, on PointGoal-v0: leave out --eval-env"
    ):
        check_plan(replace(PLAN, algo="reinforce", task=["1"], test=test))


@pytest.mark.skipif(os.name != "posix", reason="only POSIX tells whether a process lives")
def test_a_worker_that_died_on_this_machine_is_noticed_at_once(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    study = open_study(request(tmp_path))
    dead, alive, elsewhere = study.ask(), study.ask(), study.ask()
    for trial, worker in ((dead, worker_name(process.pid)), (alive, worker_name(os.getpid())), (elsewhere, "away:1")):
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("heartbeat", time.time())
    assert fail_trials(study, lambda trial: is_stale(trial, 50)) == [dead.number]


def test_a_study_goes_on_where_it_stopped_and_reports(tmp_path: Path) -> None:
    start = {"target_kl": 0.003, "inner_update": "likelihood_ratio"}
    run_study(request(tmp_path, n_trials=1, start=start))
    study = run_study(request(tmp_path, n_trials=3, start=start))
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert study.trials[0].params["target_kl"] == 0.003
    lines = write_report(study, PLAN, tmp_path / "report")
    assert lines[0] == "3 trials: 3 complete"
    assert lines[1].startswith("start (trial 0): ")
    entry = yaml.safe_load((tmp_path / "report" / "best.yml").read_text())["PointGoal-v0"]
    assert entry["n_timesteps"] == 1000
    constructor_arguments(entry, MAESN)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"best.yml", "trials.csv", "trials.json", "history.png", "slices.png", "report.html"} <= names
    about = json.loads((tmp_path / "report" / "trials.json").read_text())
    assert about["summary"] == lines
    assert about["plan"]["n_timesteps"] == 2000
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert page.count("<tr>") == 4


def test_fixed_settings_stay_fixed(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [0.5]
    fixed = {"gamma": 0.5, "meta_batch_size": 7, "n_episodes": 3, "policy_kwargs": {"net_arch": [8]}}
    plan = replace(PLAN, fixed=fixed)
    check_plan(plan)
    study = run_study(request(tmp_path, plan=plan))
    write_report(study, plan, tmp_path)
    entry = yaml.safe_load((tmp_path / "best.yml").read_text())["PointGoal-v0"]
    assert {key: entry[key] for key in ("gamma", "meta_batch_size", "n_episodes")} == {
        key: value for key, value in fixed.items() if key != "policy_kwargs"
    }
    assert entry["policy_kwargs"]["net_arch"] == [8]
    assert "latent_dim" in entry["policy_kwargs"]
    sampled = {name for trial in study.trials for name in trial.params}
    assert sampled & {"one_minus_gamma", "meta_batch_size", "n_episodes", "net_arch"} == set()


def test_a_study_may_have_nothing_to_sample(
    tmp_path: Path, scripted: dict[int, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted[0] = [0.5]
    monkeypatch.setitem(SEARCH_SPACES, "maesn", lambda trial: {})
    study = run_study(request(tmp_path))
    write_report(study, PLAN, tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()


def test_a_database_serves_as_well(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [0.5]
    url = f"sqlite:///{tmp_path / 's.db'}"
    run_study(request(tmp_path, storage=url))
    assert len(optuna.load_study(study_name="s", storage=url).trials) == 2


def test_only_silent_workers_trials_are_given_up(tmp_path: Path) -> None:
    study = open_study(request(tmp_path))
    silent, unborn, alive = study.ask(), study.ask(), study.ask()
    silent.set_user_attr("heartbeat", time.time() - 100)
    with heartbeats(alive, every=0.05):
        time.sleep(0.2)
        beats = study.trials[alive.number].user_attrs["heartbeat"]
        assert beats > study.trials[alive.number].datetime_start.timestamp() + 0.1  # type: ignore[union-attr]  # a trial under way has started
        assert fail_trials(study, lambda trial: is_stale(trial, 50)) == [silent.number]
        assert fail_trials(study, lambda trial: is_stale(trial, 50)) == []
        assert fail_trials(study, lambda trial: trial.number == unborn.number and is_stale(trial, 0.0)) == [
            unborn.number
        ]
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]


def test_a_worker_whose_trial_was_given_up_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def suspended(plan: TuningPlan, trial: optuna.Trial) -> float:
        if trial.number == 0:
            assert fail_trials(open_study(request(tmp_path)), lambda _: True) == [0]
        trial.report(0.5, 1)
        return 0.5

    monkeypatch.setattr(studies, "objective", suspended)
    study = run_study(request(tmp_path, n_trials=1))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_mistake_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(plan: TuningPlan, trial: optuna.Trial) -> float:
        raise ValueError("no such setting")

    monkeypatch.setattr(studies, "objective", wrong)
    with pytest.raises(ValueError, match="no such setting"):
        run_study(request(tmp_path, n_trials=1))


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> list[float | str]:
    """Replaces trials: their values, or the messages of their errors."""
    script: list[float | str] = []

    def play(plan: TuningPlan, trial: optuna.Trial) -> float:
        outcome = script.pop(0)
        if isinstance(outcome, str):
            raise RuntimeError(outcome)
        return outcome

    monkeypatch.setattr(studies, "objective", play)
    return script


def test_a_study_whose_trials_all_fail_ends_and_says_why(
    tmp_path: Path, outcomes: list[float | str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes += ["out of memory", "out of memory", "matrix is\nsingular", 0.5, 0.5]
    with pytest.raises(ConfigError, match="3 trials in a row failed, the last one: matrix is singular"):
        run_study(request(tmp_path, verbose=1))
    assert capsys.readouterr().out.splitlines() == [
        "trial 0: fail (out of memory)",
        "trial 1: fail (out of memory)",
        "trial 2: fail (matrix is singular)",
    ]


def test_single_trials_may_fail(tmp_path: Path, outcomes: list[float | str]) -> None:
    outcomes += ["singular", "singular", 0.5, "singular", "singular", 0.6]
    assert run_study(request(tmp_path)).best_value == 0.6


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"n_timesteps": 3000}, "n_timesteps=2000, got 3000"),
        ({"metric": "return"}, "metric=success, got return"),
        ({"task": ["1"]}, r"task=\[\], got \['1'\]"),
        ({"config": {"n_timesteps": 1000, "n_envs": 10}}, r"config\.n_envs=50, got 10"),
        ({"config": {"n_timesteps": 1000}}, r"config\.n_envs=50, got nothing"),
        ({"config": {**PLAN.config, "policy_kwargs": {"net_arch": [8]}}}, r"net_arch=nothing, got \[8\]"),
        ({"test": replace(PLAN.test, n_tasks=3)}, r"test\.n_tasks=2, got 3"),
    ],
)
def test_a_study_keeps_to_its_plan(
    tmp_path: Path, outcomes: list[float | str], changes: dict[str, Any], difference: str
) -> None:
    outcomes += [0.5, 0.5]
    run_study(request(tmp_path, n_trials=1))
    with pytest.raises(ConfigError, match=f"the study s was begun with .*{difference}"):
        run_study(request(tmp_path, plan=replace(PLAN, **changes)))
    assert outcomes == [0.5]


def test_a_study_without_scores_takes_the_next_plan(tmp_path: Path, outcomes: list[float | str]) -> None:
    start = {"target_kl": 0.003}
    open_study(request(tmp_path, n_trials=0, start=start)).enqueue_trial({"latent_dim": 2})
    other, third = replace(PLAN, n_timesteps=3000), replace(PLAN, n_seeds=2)
    outcomes += ["singular"] * 3
    with pytest.raises(ConfigError, match="3 trials in a row failed"):
        run_study(request(tmp_path, plan=other, start=start))
    outcomes += [0.5, 0.6]
    study = run_study(request(tmp_path, plan=third, start=start))
    fixed = [(trial.state.name, trial.system_attrs.get("fixed_params")) for trial in study.trials]
    assert fixed == [
        ("FAIL", {"latent_dim": 2}),  # enqueued for the first plan
        *[("FAIL", start), ("FAIL", None), ("FAIL", None)],
        *[("COMPLETE", start), ("COMPLETE", None)],
    ]
    with pytest.raises(ConfigError, match="n_timesteps=2000, got 3000"):
        open_study(request(tmp_path, plan=other))


def test_a_running_trial_keeps_the_plan_of_its_study_until_it_is_stale(tmp_path: Path) -> None:
    open_study(request(tmp_path)).ask()
    other = replace(PLAN, n_timesteps=3000)
    with pytest.raises(ConfigError, match="n_timesteps=2000, got 3000"):
        open_study(request(tmp_path, plan=other))
    time.sleep(0.02)
    open_study(request(tmp_path, plan=other, stale_after=0.01))


def test_a_study_without_a_plan_takes_the_next_one(tmp_path: Path, outcomes: list[float | str]) -> None:
    """Studies of earlier versions have no plan."""
    outcomes += [0.5]
    storage = studies.open_storage(str(tmp_path / "j.log"))
    optuna.create_study(storage=storage, study_name="s", direction="maximize").ask()
    run_study(request(tmp_path))
    with pytest.raises(ConfigError, match="n_seeds=1, got 2"):
        open_study(request(tmp_path, plan=replace(PLAN, n_seeds=2)))


def test_of_two_plans_that_begin_a_study_at_once_one_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(PLAN, n_seeds=2)

    def overtaken(plan: TuningPlan, trial: optuna.Trial) -> float:
        trial.study.set_user_attr(studies.PLAN, other.as_json())
        return 0.5

    monkeypatch.setattr(studies, "objective", overtaken)
    with pytest.raises(ConfigError, match="n_seeds=2, got 1"):
        run_study(request(tmp_path))
    assert len(open_study(request(tmp_path, plan=other)).trials) == 1


def test_a_finished_study_gives_the_same_report(tmp_path: Path, scripted: dict[int, list[float]]) -> None:
    scripted[0] = [0.5, 0.6]
    reports = []
    others: tuple[dict[str, Any], ...] = ({}, {"sampler": "random", "pruner": "none", "seed": 3}, {"n_trials": 0})
    for changes in others:
        study = run_study(request(tmp_path, **changes))
        lines = write_report(study, PLAN, tmp_path / "out")
        reports.append((lines, [(tmp_path / "out" / name).read_bytes() for name in ("best.yml", "trials.csv")]))
    assert reports[0] == reports[1] == reports[2]


def test_two_workers_on_one_journal_of_which_one_is_killed(tmp_path: Path) -> None:
    """Each worker is a process of its own; the one that is killed is in the middle of a trial that would never end."""
    flags = [
        "--env",
        "PointGoal-v0",
        "--storage",
        "j.log",
        "--eval-tasks",
        "2",
        "--eval-rounds",
        "1",
        "--sampler",
        "random",
    ]
    flags += ["--n-evaluations", "1", "--eval-episodes", "2", "--study-name", "s", "-o", "out", "-n", "1000"]
    endless = [sys.executable, "-c", HANGING_TUNE, *flags, "--n-trials", "1"]
    quick = [sys.executable, str(TUNE), *flags, "--n-trials", "3", "--n-jobs", "2"]
    with subprocess.Popen(endless, cwd=tmp_path, stderr=subprocess.DEVNULL) as victim:
        backend = studies.open_storage(str(tmp_path / "j.log"))
        _wait_for(lambda: "s" in optuna.get_all_study_names(backend))
        study = optuna.load_study(study_name="s", storage=backend)
        _wait_for(lambda: any("heartbeat" in trial.user_attrs for trial in study.trials))
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
    assert study.trials[0].state == TrialState.RUNNING
    backend.set_trial_user_attr(study.trials[0]._trial_id, "heartbeat", 0.0)  # as if hours had passed
    done = subprocess.run(quick, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    states = [trial.state for trial in study.trials]
    assert states[0] == TrialState.FAIL
    assert states.count(TrialState.FAIL) == 1
    assert states.count(TrialState.COMPLETE) in (3, 4)  # two workers may both begin the last one
    workers = {trial.user_attrs["worker"] for trial in study.trials}
    assert len(workers) >= 2
    assert (tmp_path / "out" / "best.yml").is_file()


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "mason"}, "did you mean maesn"),
        ({"env_id": "PointGaol-v0"}, "did you mean PointGoal"),
        ({"env_id": "CartPole-v1"}, "no tasks"),
        ({"algo": "trpo", "config": {}}, "choose with --task"),
        ({"config": {"metabatch_size": 3}}, "did you mean meta_batch_size"),
        ({"metric": "fun"}, "success, return"),
        ({"test": EvaluationPlan(rule="kernal")}, "kernel, .*got 'kernal'"),
        ({"test": EvaluationPlan(env_id="PointGaolSparse-v0")}, "did you mean PointGoalSparse-v0"),
        ({"n_seeds": 0}, "n_seeds must be at least 1, got 0"),
        ({"config": {"n_timesteps": "long"}}, "n_timesteps must be a whole number or null, got 'long'"),
        ({"config": {"policy": "MlpPolicy"}}, "MAESN has no policy 'MlpPolicy'; there are: LatentMlpPolicy"),
        ({"config": {"eval_rule": "kernal"}}, "kernel, .*got 'kernal'"),
        ({"fixed": {"gamma": 5}}, "gamma must be between 0 and 1, got 5"),
        ({"fixed": {"meta_batch_size": 400}}, "must not exceed the number of training tasks"),
        ({"fixed": {"stats_window_size": -3}}, "stats_window_size must be at least 1, got -3"),
        ({"fixed": {"inner_update": "magic"}}, "got 'magic'$"),
        (
            {"fixed": {"n_prior_episodes": 100}},
            "got n_prior_episodes=100, .*; the search space varies some of these settings: fix them all",
        ),
        (
            {"algo": "rl2", "config": {}, "test": EvaluationPlan(rule="kernel")},
            "RL2 adapts by its memory: expected no rule",
        ),
        ({"test": EvaluationPlan(env_id="WheeledGoal-v0")}, "Observation spaces do not match"),
    ],
)
def test_impossible_plans_are_refused_before_any_trial(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_plan(replace(PLAN, **changes))


@pytest.mark.parametrize(("name", "value"), [("n_tasks", 0), ("n_rounds", -1), ("n_episodes", 0)])
def test_a_test_of_nothing_is_refused(name: str, value: int) -> None:
    numbers: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} must be at least {value + 1}, got {value}"):
        EvaluationPlan(**numbers)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean target_kl"):
        check_start("maesn", {"target_lk": 0.1})
    check_start("maesn", {"n_prior_episodes": 100})  # of one branch only
    with pytest.raises(ConfigError, match="net_arch must be one of small, medium, large, got 'huge'"):
        check_start("maesn", {"net_arch": "huge"})
    with pytest.raises(ConfigError, match=r"target_kl must be a number from 0.003 to 0.1, got 0.5"):
        check_start("maesn", {"target_kl": 0.5})
    with pytest.raises(ConfigError, match=r"latent_dim must be a whole number from 2 to 4, got 2.5"):
        check_start("maesn", {"latent_dim": 2.5})
    for name, fixed in (("net_arch", {"policy_kwargs": {"net_arch": [8]}}), ("one_minus_gamma", {"gamma": 0.9})):
        with pytest.raises(ConfigError, match=f"--hyperparams fixes {name}: leave it out of --start"):
            check_start("maesn", {name: "small"}, fixed)
    with pytest.raises(ConfigError, match="unknown pruner 'medain'; did you mean median"):
        open_study(request(tmp_path, pruner="medain"))
    with pytest.raises(ConfigError, match="unknown sampler"):
        open_study(request(tmp_path, sampler="dice"))


def test_a_study_without_results_has_no_report(tmp_path: Path) -> None:
    study = open_study(request(tmp_path))
    with pytest.raises(ConfigError, match="the study s has no trials to report"):
        write_report(study, PLAN, tmp_path)
    study.ask()
    with pytest.raises(ConfigError, match=r"no trial .* has come to an end"):
        write_report(study, PLAN, tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hyperparams", "n_timesteps:abc"], "n_timesteps must be a whole number or null, got 'abc'"),
        (["--hyperparams", "n_envs:[1]"], "n_envs must be a whole number, got [1]"),
        (["--hyperparams", "policy:3"], "policy must be text, got 3"),
        (["--hyperparams", "eval_rule:[kernel]"], "eval_rule must be text or null, got ['kernel']"),
        (["--hyperparams", "eval_rule:kernal"], "got 'kernal'"),
        (["--storage", "sqlite:///nowhere/s.db"], "cannot open the storage sqlite:///nowhere/s.db: "),
        (["--storage", "foo://x"], "cannot open the storage foo://x: "),
        (["--n-jobs", "0"], "n_jobs must be at least 1, got 0"),
        (["--n-trials", "-1"], "n_trials must be at least 0, got -1"),
        (["--n-trials", "0"], "the study maesn-PointGoal-v0 has no trials to report"),
        (["--start", "gamma=2"], "--start takes key:value, got 'gamma=2'"),
    ],
)
def test_bad_flags_are_refused_on_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: list[float | str],
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes += [0.5]
    with pytest.raises(SystemExit) as ended:
        load("tune").main(["--env", "PointGoal-v0", "--n-trials", "1", *flags])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_scripts_own_keys_are_read_as_by_train() -> None:
    script = load("tune")
    flags = ["--env", "PointGoal-v0", "--hyperparams", "n_timesteps:1e6", "eval_rule:kernel"]
    plan = script.make_request(script.make_parser().parse_args(flags)).plan
    assert plan.config["n_timesteps"] == 1_000_000
    assert plan.test.rule == "kernel"
    assert plan.fixed == {"n_timesteps": 1_000_000, "eval_rule": "kernel"}
    flags += ["--eval-rule", "posterior"]
    assert script.make_request(script.make_parser().parse_args(flags)).plan.test.rule == "posterior"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_worker_gets_some_time_before_it_is_taken_for_dead(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"stale_after must be a positive number of seconds, got {seconds}"):
        request(tmp_path, stale_after=seconds)
