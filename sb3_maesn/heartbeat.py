"""Heartbeats of a study's running trials, by which its processes notice that a worker has died.

Optuna's journal files do not support heartbeats. Every worker therefore writes the time into an attribute of its
running trial, on whatever storage the study uses. A trial whose heartbeats have stopped is failed, and another takes
its place.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import optuna
from optuna.trial import FrozenTrial, TrialState

#: Attribute of a trial that another process failed because its worker had died or had stopped sending heartbeats.
GIVEN_UP = "given_up"


def worker_name(pid: int | None) -> str:
    """Name a process uniquely among all machines.

    :param pid: process id
    :return: ``{host}:{pid}``
    """
    return f"{socket.gethostname()}:{pid}"


def belongs_to(trial: FrozenTrial, pid: int | None) -> bool:
    """Tell whether a process of this machine runs or ran a trial.

    :param trial: trial
    :param pid: process id
    """
    return trial.user_attrs.get("worker") == worker_name(pid)


@contextmanager
def heartbeats(trial: optuna.Trial, every: float) -> Iterator[None]:
    """Write heartbeats of a trial in a thread while the body runs.

    A reader compares the time of a heartbeat with its own clock. The clocks of all machines therefore have to agree to
    within a fraction of the time after which a trial counts as stale.

    :param trial: running trial
    :param every: seconds between two heartbeats
    """
    done = Event()

    def beat() -> None:
        while not done.wait(every):
            try:
                trial.set_user_attr("heartbeat", time.time())
            except optuna.exceptions.UpdateFinishedTrialError:  # another process has failed the trial
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
    """Tell whether the worker of a running trial has died on this machine, or has been silent for too long.

    :param trial: running trial
    :param stale_after: seconds without a heartbeat after which a trial is stale
    """
    if _died_here(str(trial.user_attrs.get("worker", ""))):
        return True
    # The start of the trial stands in for a heartbeat: a worker may die before it writes the first one.
    begun = 0.0 if trial.datetime_start is None else trial.datetime_start.timestamp()
    return time.time() - float(trial.user_attrs.get("heartbeat", begun)) > stale_after


def _died_here(worker: str) -> bool:
    """Tell whether a worker was a process of this machine that is no more, as far as the system tells."""
    host, _, pid = worker.rpartition(":")
    if os.name != "posix" or host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        with suppress(PermissionError):  # it lives, but is another user's
            os.kill(int(pid), 0)  # sends no signal
    except ProcessLookupError:
        return True
    return False


def fail_trials(study: optuna.Study, which: Callable[[FrozenTrial], bool]) -> list[int]:
    """Fail running trials of other workers, marked as :data:`GIVEN_UP`.

    :param study: study
    :param which: function that returns whether to fail a running trial
    :return: numbers of the trials that were failed
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if which(trial):
            try:
                study._storage.set_trial_user_attr(trial._trial_id, GIVEN_UP, True)
                study.tell(trial.number, state=TrialState.FAIL)
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError):  # the trial has ended in the meantime
                continue
            failed.append(trial.number)
    return failed
