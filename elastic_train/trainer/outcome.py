"""How a job's end is told to the caller of `fit`: nothing, or the error that says it."""

from __future__ import annotations

from elastic_train.core.effects import Ending, FinishJob
from elastic_train.core.records import Failure
from elastic_train.errors import (
    ElasticTrainError,
    JobStopped,
    LaunchError,
    NotEnoughWorkers,
    TrainingFailed,
    UsageError,
)
from elastic_train.trainer.result import Result


def error_of(finish: FinishJob, result: Result) -> ElasticTrainError | None:
    """Return the error for an ending, None where the job has finished."""
    match finish.ending:
        case Ending.FINISHED:
            return None
        case Ending.STOPPED:
            return JobStopped(result.name, f"was stopped after {result.steps} steps: {finish.reason}", result)
        case Ending.USER_CODE if finish.failure is not None:
            return _training_failed(finish.failure, result)
        case Ending.USER_CODE:
            return TrainingFailed(f"job {result.name!r}: {finish.reason}")
        case Ending.NEVER_STEPPED:
            return UsageError(
                f"job {result.name!r}: the train function returned without taking a step. "
                "Write `for step in state.steps(batches): with step: ...` in it"
            )
        case Ending.NO_START:
            return LaunchError(
                f"job {result.name!r}: workers end before their first step: {finish.reason}. Logs: {_logs(result)}"
            )
        case Ending.NOT_ENOUGH_WORKERS:
            return NotEnoughWorkers(result.name, f"{finish.reason}. Bring more workers, or lower min_workers")


def _training_failed(failure: Failure, result: Result) -> TrainingFailed:
    where = "" if failure.rank is None else f" on rank {failure.rank}"
    if failure.step is not None:
        where += f", in step {failure.step}"
    if failure.samples is not None:
        where += f", with positions {failure.samples[0]} to {failure.samples[1]} of the sample order"
    message = f"job {result.name!r}: the train function raised {failure.error_type}: {failure.message}{where}"
    error = TrainingFailed(
        message,
        rank=failure.rank,
        membership_epoch=failure.membership_epoch,
        step=failure.step,
        samples=failure.samples,
        error_type=failure.error_type,
        remote_traceback=failure.traceback,
    )
    error.add_note(f"\nIn the worker:\n\n{failure.traceback.rstrip()}\n\nAll logs: {_logs(result)}")
    return error


def _logs(result: Result) -> str:
    return str(result.path / "logs" / result.journal_path.name)
