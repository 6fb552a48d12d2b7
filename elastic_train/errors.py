"""The errors of elastic_train.

ElasticTrainError
├── ConfigurationError (ValueError)       bad input, found before anything starts
├── JobError
│   ├── JobAlreadyRunning
│   ├── JobNotFound
│   ├── JobStopped                        somebody asked the job to stop
│   └── NotEnoughWorkers                  below min_workers for longer than allowed
├── TrainingFailed                        the user's own code raised, on the worker named
├── UsageError (RuntimeError)             the step API was used in a way that cannot work
│   └── StateNotRestorable
├── StateDiverged                         workers have different states, and there is no majority
├── LaunchError                           a worker process could not be started
├── GroupBroken                           a collective failed: a member of the world is gone
└── CoordinationError
    ├── CoordinationUnavailable           no endpoint answered in time
    ├── CoordinationDenied                wrong credentials or no permission
    ├── GuardFailed                       a guarded write was refused: somebody else was first
    └── LeaseExpired

BaseException
└── ControlFlow                           unwinds user code; never an error, never to be caught
    ├── StepAborted                       this step is run again
    └── WorkerLeaving                     this worker was drained or superseded
"""

from __future__ import annotations

from typing import Any


class ElasticTrainError(Exception):
    """The root of everything elastic_train raises on purpose."""


class ConfigurationError(ElasticTrainError, ValueError):
    """An argument that cannot work.

    Args:
        parameter: Its name as the user wrote it.
        problem: What is wrong, with the value seen.
        remedy: What to do about it.
    """

    def __init__(self, parameter: str, problem: str, remedy: str) -> None:
        super().__init__(f"{parameter}: {problem}. {remedy}")
        self.parameter = parameter
        self.problem = problem
        self.remedy = remedy


class JobError(ElasticTrainError):
    """Something about a job as a whole."""

    def __init__(self, job: str, message: str) -> None:
        super().__init__(f"job {job!r}: {message}")
        self.job = job


class JobAlreadyRunning(JobError):
    """Another driver runs a job of this name."""


class JobNotFound(JobError):
    """No job of this name is known where it was looked for."""


class JobStopped(JobError):
    """The job was stopped before it finished.

    Attributes:
        result: The `Result` until then, where there is one.
    """

    def __init__(self, job: str, message: str, result: Any = None) -> None:
        super().__init__(job, message)
        self.result = result


class NotEnoughWorkers(JobError):
    """The job stood below its minimum of workers for longer than allowed."""


class TrainingFailed(ElasticTrainError):
    """The user's train function raised.

    Attributes:
        worker_id, rank, membership_epoch: Where it happened.
        step: Index of the step under way, or None outside of one.
        samples: Half-open range of positions in the sample order that the worker held, or None.
        error_type: Qualified name of the original exception.
        remote_traceback: Its formatted traceback.
    """

    def __init__(self, message: str, **where: object) -> None:
        super().__init__(message)
        self.worker_id = where.get("worker_id")
        self.rank = where.get("rank")
        self.membership_epoch = where.get("membership_epoch")
        self.step = where.get("step")
        self.samples = where.get("samples")
        self.error_type = where.get("error_type")
        self.remote_traceback = where.get("remote_traceback")


class UsageError(ElasticTrainError, RuntimeError):
    """The step API was used in a way that cannot work; the message says which and what to write instead."""


class StateNotRestorable(UsageError):
    """An object handed to TrainState cannot be sent to another worker or written to a checkpoint."""


class StateDiverged(ElasticTrainError):
    """Workers have different states where all should have one, and no majority says which is right.

    Args:
        workers: Who they are.
        steps: Committed when it was found.
        tensors: What differs.
    """

    def __init__(self, workers: tuple[str, ...], steps: int, tensors: str) -> None:
        super().__init__(
            f"after {steps} steps the states of {', '.join(workers)} differ in {tensors}, and there is no majority "
            "that says which is right: look for user code that differs between workers, then for faulty hardware, and "
            "restart the job from a checkpoint of before"
        )
        self.workers = workers
        self.steps = steps
        self.tensors = tensors


class LaunchError(ElasticTrainError):
    """A worker process could not be started."""


class GroupBroken(ElasticTrainError):
    """A collective failed or was aborted: this world cannot go on."""


class CoordinationError(ElasticTrainError):
    """The coordination service refused or did not answer."""


class CoordinationUnavailable(CoordinationError):
    """No endpoint answered before the deadline."""


class CoordinationDenied(CoordinationError):
    """The coordination service refused the credentials or the key."""


class GuardFailed(CoordinationError):
    """A guarded write was refused because its guard no longer holds: nothing was written."""


class LeaseExpired(CoordinationError):
    """The lease ran out; every key attached to it is gone."""


class ControlFlow(BaseException):  # not an Exception: `except Exception` in user code must not swallow it
    """Unwinds user code for a reason that is not an error."""


class StepAborted(ControlFlow):
    """Leave the step; the loop yields it again."""


class WorkerLeaving(ControlFlow):
    """Leave the train function: this worker was drained, superseded, or the job ended."""
