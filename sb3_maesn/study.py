"""Optuna studies that several processes, on one or more machines, run at once, and that outlive any of them.

A process that runs trials is a worker. The trial of a worker that dies is failed (see :mod:`sb3_maesn.heartbeat`), and
another trial takes its place.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any

import numpy as np
import optuna
import torch as th
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sb3_maesn.cli import one_line_errors
from sb3_maesn.common.suggestions import did_you_mean
from sb3_maesn.config import ConfigError
from sb3_maesn.heartbeat import GIVEN_UP, belongs_to, fail_trials, heartbeats, is_stale
from sb3_maesn.tuning import TuningPlan, objective

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "halving": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=4, min_early_stopping_rate=0),
    "median": lambda: MedianPruner(n_startup_trials=5),
    "none": NopPruner,
}
SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "random": lambda seed: RandomSampler(seed=seed),
    "tpe": lambda seed: TPESampler(n_startup_trials=10, seed=seed),
}
#: States of the trials that count towards the requested number.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
REASON = "reason"  # attribute of a trial: why it failed or was pruned
PLAN = "plan"  # attribute of a study: its plan as plain values
MAX_FAILURES = 3  # failed trials of one worker in a row, after which it stops
HEARTBEATS = 5  # number of heartbeats in ``StudyRequest.stale_after`` seconds


@dataclass(frozen=True)
class StudyRequest:
    """Request to run a study: its plan, storage, number of trials and samplers.

    :param plan: training and evaluation of every trial
    :param storage: journal file, or URL of a database that Optuna supports
    :param name: name of the study
    :param n_trials: total number of trials of the study, including those of earlier calls and of other processes
    :param n_jobs: number of worker processes
    :param sampler: key of ``SAMPLERS``
    :param pruner: key of ``PRUNERS``
    :param seed: seed of the sampler, None for a random one; several workers are not reproducible even with a seed
    :param start: parameters of the first trial; empty to sample them
    :param stale_after: seconds without a heartbeat after which a running trial is failed
    :param verbose: 0 for no output, 1 for a line per trial, 2 for Optuna's messages too
    """

    plan: TuningPlan
    storage: str
    name: str
    n_trials: int
    n_jobs: int = 1
    sampler: str = "tpe"
    pruner: str = "median"
    seed: int | None = None
    start: Mapping[str, Any] = field(default_factory=dict)
    stale_after: float = 120.0
    verbose: int = 1

    def __post_init__(self) -> None:
        for name, least in (("n_trials", 0), ("n_jobs", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 < self.stale_after <= TIMEOUT_MAX:
            raise ConfigError(f"stale_after must be a positive number of seconds, got {self.stale_after}")


def open_storage(storage: str) -> BaseStorage:
    """Open a storage that several processes may share.

    :param storage: journal file, created if missing, or URL of a database
    :return: storage
    :raises ConfigError: if the database cannot be opened
    """
    if "://" in storage:
        try:
            return RDBStorage(storage)
        except SQLAlchemyError as error:
            raise ConfigError(f"cannot open the storage {storage}: {error.args[0]}") from error
    Path(storage).parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(storage))


def open_study(request: StudyRequest, worker: int = 0) -> optuna.Study:
    """Open a study, or create it if there is none of that name.

    :param request: study and how to run it
    :param worker: number of the worker; every worker has its own sampler
    :return: study
    :raises ConfigError: if the sampler or the pruner is unknown, or the study has trials of another plan
    """
    for kind, name, known in (("sampler", request.sampler, SAMPLERS), ("pruner", request.pruner, PRUNERS)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    study = optuna.create_study(
        storage=open_storage(request.storage),
        sampler=SAMPLERS[request.sampler](None),
        pruner=PRUNERS[request.pruner](),
        study_name=request.name,
        direction="maximize",
        load_if_exists=True,
    )
    if PLAN not in study.user_attrs:
        study.set_user_attr(PLAN, request.plan.as_json())
    elif not _keeps_its_plan(study, request):
        _discard_waiting(study)
        study.set_user_attr(PLAN, request.plan.as_json())
    check_same_plan(study, request.plan)
    if request.seed is not None:
        study.sampler = SAMPLERS[request.sampler](_sampler_seed(request.seed, worker, len(study.trials)))
    return study


def _sampler_seed(seed: int, worker: int, n_trials: int) -> int:
    """Derive the seed of a sampler; a study that goes on needs another one, lest it draw its first trials again."""
    return int(np.random.SeedSequence([seed, worker, n_trials]).generate_state(1)[0])


def _keeps_its_plan(study: optuna.Study, request: StudyRequest) -> bool:
    """Tell whether a study has the plan of the request, or scores of its own plan now or soon."""
    if _flatten(study.user_attrs[PLAN]) == _flatten(request.plan.as_json()):
        return True
    counted = study.get_trials(deepcopy=False, states=COUNTED)
    return any(trial.state.is_finished() or not is_stale(trial, request.stale_after) for trial in counted)


def _discard_waiting(study: optuna.Study) -> None:
    """Fail the trials that an earlier call has enqueued for another plan."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def check_same_plan(study: optuna.Study, plan: TuningPlan) -> None:
    """Check that a study has a given plan, since scores of different plans cannot be compared.

    :param study: study
    :param plan: plan of the trials to come
    :raises ConfigError: if the plans differ; the message names the first difference
    """
    had, came = _flatten(study.user_attrs[PLAN]), _flatten(plan.as_json())
    for name in dict.fromkeys([*came, *had]):
        before, now = (values.get(name, "nothing") for values in (had, came))
        if before != now:
            raise ConfigError(
                f"the study {study.study_name} was begun with {name}={before}, got {now}: their scores do not compare;"
                " keep to the former, or give the latter a study of another name"
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: the keys of the result are dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def run_study(request: StudyRequest) -> optuna.Study:
    """Run trials of a study until it has the requested number.

    :param request: study and how to run it
    :return: study
    :raises ConfigError: if all workers failed
    """
    _set_verbosity(request)
    study = open_study(request)  # before the workers do: two processes must not create a database at once
    if request.start and not _has_start(study, request.start):
        study.enqueue_trial(dict(request.start), user_attrs={"start": True})
    if request.n_jobs == 1:
        run_worker(request, 0)
    else:
        _run_workers(request, study)
    return study


def _has_start(study: optuna.Study, start: Mapping[str, Any]) -> bool:
    """Tell whether a trial with the parameters of the first one is enqueued, runs, or has been run without failure."""
    trials = study.get_trials(deepcopy=False, states=(*COUNTED, TrialState.WAITING))
    return any(trial.system_attrs.get("fixed_params") == start for trial in trials)


def _set_verbosity(request: StudyRequest) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO if request.verbose >= 2 else optuna.logging.ERROR)


def _run_workers(request: StudyRequest, study: optuna.Study) -> None:
    """Run the workers in processes of their own; if one dies, its trial is failed and the others replace it."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch and MuJoCo
    workers = [context.Process(target=_run_worker_process, args=(request, i)) for i in range(request.n_jobs)]
    for process in workers:
        process.start()
    try:
        running: dict[Any, SpawnProcess] = {process.sentinel: process for process in workers}
        while running:
            for sentinel in wait(list(running)):
                _join_worker(running.pop(sentinel), study)
    except BaseException:
        for process in workers:
            process.terminate()
            _join_worker(process, study)
        raise
    if all(process.exitcode for process in workers):
        raise ConfigError("no worker came to an end; the same command goes on with the study")


def _join_worker(process: SpawnProcess, study: optuna.Study) -> None:
    """Wait until a worker ends, and fail its trial if the worker died."""
    process.join()
    if process.exitcode:
        failed = fail_trials(study, lambda trial: belongs_to(trial, process.pid))
        print(f"a worker died (exit code {process.exitcode}), and with it trials {failed}", file=sys.stderr)


def _run_worker_process(request: StudyRequest, worker: int) -> None:
    _set_verbosity(request)
    with one_line_errors(request.verbose):
        run_worker(request, worker)


def run_worker(request: StudyRequest, worker: int) -> None:
    """Run one trial after the other until the study has the requested number.

    :param request: study and how to run it
    :param worker: number of the worker
    :raises ConfigError: if ``MAX_FAILURES`` trials in a row fail, or the study has another plan
    """
    th.set_num_threads(1)
    study = open_study(request, worker)
    n_failures = 0
    while _needs_more_trials(study, request):
        check_same_plan(study, request.plan)  # two processes may have created the study at once with different plans
        trial = _run_trial(study, request)
        if request.verbose:
            _print_trial(study, trial)
        failed = trial.state == TrialState.FAIL and not trial.user_attrs.get(GIVEN_UP)
        n_failures = n_failures + 1 if failed else 0
        if n_failures == MAX_FAILURES:
            raise ConfigError(f"{n_failures} trials in a row failed, the last one: {trial.user_attrs.get(REASON)}")


def _needs_more_trials(study: optuna.Study, request: StudyRequest) -> bool:
    """Fail the stale trials, then tell whether the study has fewer trials than requested."""
    failed = fail_trials(study, lambda trial: is_stale(trial, request.stale_after))
    if failed and request.verbose:
        print(f"given up, as their workers are silent: trials {failed}", flush=True)
    return len(study.get_trials(deepcopy=False, states=COUNTED)) < request.n_trials


def _run_trial(study: optuna.Study, request: StudyRequest) -> FrozenTrial:
    """Run one trial; a RuntimeError, as torch raises for a singular matrix, fails this trial only."""

    def objective_with_heartbeats(trial: optuna.Trial) -> float:
        with heartbeats(trial, request.stale_after / HEARTBEATS):
            try:
                return objective(request.plan, trial)
            except (RuntimeError, optuna.TrialPruned) as error:
                trial.set_user_attr(REASON, " ".join(str(error).split()) or type(error).__name__)
                raise

    try:
        study.optimize(objective_with_heartbeats, n_trials=1, catch=(RuntimeError,), gc_after_trial=True)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        # Another process fails the trial of a worker that sends no heartbeats, as on a machine that was suspended.
        if not _last_trial_of_this_process(study).user_attrs.get(GIVEN_UP):
            raise
    return _last_trial_of_this_process(study)


def _print_trial(study: optuna.Study, trial: FrozenTrial) -> None:
    """Print the outcome of a trial and the best value so far."""
    value = "" if trial.value is None else f" {trial.value:.4g}"
    reason = f" ({trial.user_attrs[REASON]})" if REASON in trial.user_attrs else ""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = f", best so far {study.best_value:.4g} of trial {study.best_trial.number}" if done else ""
    print(f"trial {trial.number}: {trial.state.name.lower()}{value}{reason}{best}", flush=True)


def _last_trial_of_this_process(study: optuna.Study) -> FrozenTrial:
    return [trial for trial in study.get_trials(deepcopy=False) if belongs_to(trial, os.getpid())][-1]
