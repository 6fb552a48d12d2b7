"""What a worker process does with the user's train function: run it, and say how it ended."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

from elastic_train.core.records import Activity, Failure, WorkerStatus
from elastic_train.errors import GroupBroken, UsageError, WorkerLeaving
from elastic_train.worker.runtime import Runtime

_log = logging.getLogger(__name__)


def run_train_function(runtime: Runtime, train: Callable[[], Any], *, save_at_end: bool) -> int:
    """Run `train` and stay until the job ends.

    Returns:
        The process's exit code: 0 if the worker finished or was asked to leave, 1 if the train function raised.
    """
    try:
        runtime.prepare()
        train()
        if runtime.progress.version == 0:
            raise UsageError(
                "the train function returned without taking a step: "
                "write `for step in state.steps(batches): with step: ...` in it"
            )
        _finish(runtime, save_at_end=save_at_end)
        runtime.serve_until_ended()
    except WorkerLeaving as leaving:
        _log.debug("leaving: %s", leaving)
        runtime.journal.record("worker_left", membership_epoch=runtime.membership_epoch, reason=str(leaving))
        return 0
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code may raise anything, and all of it must be told
        _fail(runtime, error)
        return 1
    return 0


def _finish(runtime: Runtime, *, save_at_end: bool) -> None:
    """Write the state the job ends with, then say that this worker is done: done means that it is safe."""
    version = -1
    while save_at_end and version != runtime.progress.version:
        version = runtime.progress.version
        try:
            runtime.save(wait=True)
        except GroupBroken as error:  # the members it is written with have changed: again, with those there are now
            version = -1
            runtime.recover(error)
    runtime.agent.progress.now(Activity.IDLE)
    runtime.journal.record("worker_finished", membership_epoch=runtime.membership_epoch)
    runtime.agent.finish(WorkerStatus.FINISHED)


def _fail(runtime: Runtime, error: BaseException) -> None:
    traceback.print_exception(error)
    step, samples = runtime.where if runtime.where is not None else (None, None)
    failure = Failure(
        error_type=f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins."),
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        rank=runtime.rank,
        membership_epoch=runtime.membership_epoch,
        step=step,
        samples=samples,
    )
    runtime.journal.record(
        "worker_failed",
        membership_epoch=runtime.membership_epoch,
        error_type=failure.error_type,
        message=failure.message,
        step=step,
        samples=samples,
    )
    runtime.agent.finish(WorkerStatus.FAILED, failure)
