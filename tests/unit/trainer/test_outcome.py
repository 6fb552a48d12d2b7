"""Each way a job can end has its error, with what a person needs to go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from elastic_train.core.effects import Ending, FinishJob
from elastic_train.core.records import Failure
from elastic_train.errors import JobStopped, LaunchError, NotEnoughWorkers, TrainingFailed, UsageError
from elastic_train.trainer.outcome import error_of
from elastic_train.trainer.result import Result

RESULT = Result(
    name="digits", path=Path("/jobs/digits"), journal_path=Path("/jobs/digits/journal/run-2"), wall_s=1, steps=9
)


def test_a_finished_job_is_no_error() -> None:
    assert error_of(FinishJob(Ending.FINISHED, "all finished"), RESULT) is None


def test_a_stopped_job_carries_its_result() -> None:
    error = error_of(FinishJob(Ending.STOPPED, "Ctrl-C"), RESULT)
    assert isinstance(error, JobStopped)
    assert error.result is RESULT
    assert "after 9 steps: Ctrl-C" in str(error)


def test_a_failure_of_user_code_carries_where_it_happened_and_its_traceback() -> None:
    failure = Failure("ValueError", "bad batch", "Traceback ...\nValueError: bad batch\n", 1, 3, 7, (448, 456))
    error = error_of(FinishJob(Ending.USER_CODE, "raised", failure), RESULT)
    assert isinstance(error, TrainingFailed)
    assert "ValueError: bad batch on rank 1, in step 7, with positions 448 to 456" in str(error)
    assert (error.rank, error.step, error.samples, error.error_type) == (1, 7, (448, 456), "ValueError")
    assert error.remote_traceback == failure.traceback
    assert "/jobs/digits/logs/run-2" in "".join(error.__notes__)


@pytest.mark.parametrize(
    ("ending", "kind", "words"),
    [
        (Ending.USER_CODE, TrainingFailed, "why"),
        (Ending.NEVER_STEPPED, UsageError, "without taking a step"),
        (Ending.NO_START, LaunchError, "/jobs/digits/logs/run-2"),
        (Ending.NOT_ENOUGH_WORKERS, NotEnoughWorkers, "lower min_workers"),
    ],
)
def test_every_other_ending_has_an_error_that_says_what_to_do(
    ending: Ending, kind: type[Exception], words: str
) -> None:
    error = error_of(FinishJob(ending, "why"), RESULT)
    assert type(error) is kind
    assert words in str(error)
