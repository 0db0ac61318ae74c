"""Studies that several processes, on several machines, work on at once, and that survive the death of any of them.

Optuna's journal files know no heartbeat, so every worker writes one of its own into its running trial, on whatever
storage: a trial whose heartbeat has stopped was its worker's last, is given up, and another takes its place.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import TIMEOUT_MAX, Event, Thread
from typing import Any

import optuna
import torch as th
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from sb3_maesn.cli import one_line_errors
from sb3_maesn.config import ConfigError, did_you_mean
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
#: Trials that count towards the number asked for.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
GIVEN_UP = "given_up"  # attribute of a trial that others failed
REASON = "reason"  # attribute of a trial that failed or was pruned, why
PLAN = "plan"  # attribute of a study, what its trials do
MAX_FAILURES = 3  # of one process in a row
BEATS = 5  # heartbeats in the time after which a worker without them is taken for dead


@dataclass(frozen=True)
class StudyRequest:
    """What to study, and how.

    :param plan: what every trial does
    :param storage: journal file, or the URL of a database that Optuna knows
    :param name: name of the study
    :param n_trials: trials that the study shall have in the end, those of earlier calls and of others included
    :param n_jobs: processes
    :param sampler: a key of ``SAMPLERS``
    :param pruner: a key of ``PRUNERS``
    :param seed: of the samplers, None for random ones; with several processes the order of trials is random anyway
    :param start: parameters of a trial to begin with
    :param stale_after: seconds without a heartbeat after which a running trial is given up
    :param verbose: 0, 1 or 2
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

    :param storage: journal file, which is made, or the URL of a database
    :return: the storage
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
    """Open a study, or begin one.

    :param request: what to study
    :param worker: number of the process, so that no two draw the same
    :return: the study
    :raises ConfigError: for an unknown sampler or pruner, or a study with another plan
    """
    for kind, name, known in (("sampler", request.sampler, SAMPLERS), ("pruner", request.pruner, PRUNERS)):
        if name not in known:
            raise ConfigError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}")
    study = optuna.create_study(
        storage=open_storage(request.storage),
        sampler=SAMPLERS[request.sampler](None if request.seed is None else request.seed + worker),
        pruner=PRUNERS[request.pruner](),
        study_name=request.name,
        direction="maximize",
        load_if_exists=True,
    )
    if PLAN not in study.user_attrs:
        study.set_user_attr(PLAN, request.plan.as_json())
    check_same_plan(study, request.plan)
    return study


def check_same_plan(study: optuna.Study, plan: TuningPlan) -> None:
    """Refuse a plan that a study was not begun with: scores of different plans do not compare.

    :param study: the study
    :param plan: what its further trials would do
    :raises ConfigError: naming the first difference
    """
    had, came = _flat(study.user_attrs[PLAN]), _flat(plan.as_json())
    for name in dict.fromkeys([*came, *had]):
        before, now = (values.get(name, "nothing") for values in (had, came))
        if before != now:
            raise ConfigError(
                f"the study {study.study_name} was begun with {name}={before}, got {now}: their scores do not compare;"
                " keep to the former, or give the latter a study of another name"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested mappings, by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def run_study(request: StudyRequest) -> optuna.Study:
    """Work on a study until it has as many trials as asked for.

    :param request: what to study
    :return: the study
    :raises ConfigError: if no worker came to an end
    """
    optuna.logging.set_verbosity(optuna.logging.INFO if request.verbose >= 2 else optuna.logging.ERROR)
    study = open_study(request)  # before any worker: databases do not like to be made twice at once
    if request.start:
        study.enqueue_trial(dict(request.start), user_attrs={"start": True}, skip_if_exists=True)
    if request.n_jobs == 1:
        work(request, 0)
    else:
        _supervise(request, study)
    return study


def _supervise(request: StudyRequest, study: optuna.Study) -> None:
    """Run the workers; a dead one's trial is given up at once, and the others make up for it."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch and MuJoCo
    workers = [context.Process(target=_work_in_process, args=(request, i)) for i in range(request.n_jobs)]
    for process in workers:
        process.start()
    try:
        running: dict[Any, SpawnProcess] = {process.sentinel: process for process in workers}
        while running:
            for sentinel in wait(list(running)):
                _bury(running.pop(sentinel), study)
    except BaseException:
        for process in workers:
            process.terminate()
            _bury(process, study)
        raise
    if all(process.exitcode for process in workers):
        raise ConfigError("no worker came to an end; the same command goes on with the study")


def _bury(process: SpawnProcess, study: optuna.Study) -> None:
    """Wait for a worker's end; give up its trial if it died."""
    process.join()
    if process.exitcode:
        lost = give_up(study, partial(_is_of, worker_name(process.pid)))
        print(f"a worker died (exit code {process.exitcode}), and with it trials {lost}", file=sys.stderr)


def _is_of(worker: str, trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("worker") == worker


def _work_in_process(request: StudyRequest, worker: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO if request.verbose >= 2 else optuna.logging.ERROR)
    with one_line_errors(request.verbose):
        work(request, worker)


def work(request: StudyRequest, worker: int) -> None:
    """Do one trial after the other until there are as many as asked for.

    :param request: what to study
    :param worker: number of the process
    :raises ConfigError: if several trials in a row fail, or the study turns out to have another plan
    """
    th.set_num_threads(1)
    study = open_study(request, worker)
    n_failures = 0
    while _is_wanting(study, request):
        check_same_plan(study, request.plan)  # of two processes that began it at once, one had to give way
        trial = _do_trial(study, request)
        if request.verbose:
            _tell(study, trial)
        failed = trial.state == TrialState.FAIL and not trial.user_attrs.get(GIVEN_UP)
        n_failures = n_failures + 1 if failed else 0
        if n_failures == MAX_FAILURES:
            raise ConfigError(f"{n_failures} trials in a row failed, the last one: {trial.user_attrs.get(REASON)}")


def _is_wanting(study: optuna.Study, request: StudyRequest) -> bool:
    """Whether a study has fewer trials than asked for, not counting those whose workers are silent."""
    lost = give_up(study, lambda trial: is_stale(trial, request.stale_after))
    if lost and request.verbose:
        print(f"given up, as their workers are silent: trials {lost}", flush=True)
    return len(study.get_trials(deepcopy=False, states=COUNTED)) < request.n_trials


def _do_trial(study: optuna.Study, request: StudyRequest) -> FrozenTrial:
    """Do one trial; a failure of linear algebra is that trial's alone."""

    def watched(trial: optuna.Trial) -> float:
        with heartbeat(trial, request.stale_after / BEATS):
            try:
                return objective(request.plan, trial)
            except (RuntimeError, optuna.TrialPruned) as error:
                trial.set_user_attr(REASON, " ".join(str(error).split()) or type(error).__name__)
                raise

    try:
        study.optimize(watched, n_trials=1, catch=(RuntimeError,), gc_after_trial=True)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
        if not _last_of_this_process(study).user_attrs.get(GIVEN_UP):
            raise  # else this process was silent for too long, as a suspended machine is, and goes on
    return _last_of_this_process(study)


def _tell(study: optuna.Study, trial: FrozenTrial) -> None:
    """Print a trial and the best of all."""
    value = "" if trial.value is None else f" {trial.value:.4g}"
    reason = f" ({trial.user_attrs[REASON]})" if REASON in trial.user_attrs else ""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = f", best so far {study.best_value:.4g} of trial {study.best_trial.number}" if done else ""
    print(f"trial {trial.number}: {trial.state.name.lower()}{value}{reason}{best}", flush=True)


def _last_of_this_process(study: optuna.Study) -> FrozenTrial:
    return [trial for trial in study.get_trials(deepcopy=False) if _is_of(worker_name(os.getpid()), trial)][-1]


def worker_name(pid: int | None) -> str:
    """Name a process among all machines.

    :param pid: its number
    """
    return f"{socket.gethostname()}:{pid}"


@contextmanager
def heartbeat(trial: optuna.Trial, every: float) -> Iterator[None]:
    """Keep telling that a trial's worker lives. Machines' clocks have to agree to a fraction of ``stale_after``.

    :param trial: the running trial
    :param every: seconds between heartbeats
    """
    done = Event()

    def beat() -> None:
        while not done.wait(every):
            try:
                trial.set_user_attr("heartbeat", time.time())
            except optuna.exceptions.UpdateFinishedTrialError:  # given up by others
                return

    trial.set_user_attr("worker", worker_name(os.getpid()))
    trial.set_user_attr("heartbeat", time.time())
    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_stale(trial: FrozenTrial, stale_after: float) -> bool:
    """Whether a running trial's worker has been silent too long.

    :param trial: the trial
    :param stale_after: seconds
    """
    # a worker may die between drawing a trial and the first heartbeat
    begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
    return time.time() - float(trial.user_attrs.get("heartbeat", begun)) > stale_after


def give_up(study: optuna.Study, which: Callable[[FrozenTrial], bool]) -> list[int]:
    """Fail running trials.

    :param study: the study
    :param which: whether to give a trial up
    :return: their numbers
    """
    lost = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if which(trial):
            try:
                study._storage.set_trial_user_attr(trial._trial_id, GIVEN_UP, True)
                study.tell(trial.number, state=TrialState.FAIL)
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # it ended, or others were quicker
                continue
            lost.append(trial.number)
    return lost
