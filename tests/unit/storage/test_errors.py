"""The error tree and what it says."""

from __future__ import annotations

import inspect
import pickle

import pytest

from storage import errors
from storage.backends.http_errors import error_for
from storage.errors import (
    AlreadyExists,
    BackendError,
    BucketNotFound,
    ConnectionLost,
    CredentialsExpired,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    StorageError,
    Throttled,
    TransientError,
)

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StorageError)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_is_in_the_drawing(kind: type[StorageError]) -> None:
    assert errors.__doc__ is not None
    assert kind.__name__ in errors.__doc__
    depth = len(kind.__mro__) - len(StorageError.__mro__)
    line = next(line for line in errors.__doc__.splitlines() if kind.__name__ in line.split())
    assert (line.index(kind.__name__) - 4) // 4 == depth


def test_a_message_says_what_where_and_why() -> None:
    error = NotFound("it was deleted", key="a/b")
    error.locate(operation="get", store="s3://bucket", key="other")
    assert str(error) == "get 'a/b' in s3://bucket: no such object: it was deleted"
    assert (error.key, error.store, error.operation) == ("a/b", "s3://bucket", "get")


def test_running_out_of_time_keeps_the_last_failure() -> None:
    error = DeadlineExceeded(attempts=3, elapsed_s=1.25, maybe_applied=True, last=ConnectionLost("reset"))
    assert "after 3 attempts in 1.2 s" in str(error)
    assert "reset; the write may have been applied" in str(error)


@pytest.mark.parametrize("kind", [NotFound, Throttled, BackendError])
def test_errors_travel_between_processes(kind: type[StorageError]) -> None:
    error = kind("why", operation="get", store="memory://x", key="k")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back)) == (kind, str(error))


def test_a_deadline_error_travels_too() -> None:
    error = DeadlineExceeded(attempts=3, elapsed_s=1.25, maybe_applied=True, last=ConnectionLost("reset"))
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.attempts, back.maybe_applied) == (str(error), 3, True)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "NoSuchKey", NotFound),
        (404, "NoSuchBucket", BucketNotFound),
        (404, "", NotFound),
        (403, "", PermissionDenied),
        (400, "ExpiredToken", CredentialsExpired),
        (403, "ExpiredToken", CredentialsExpired),
        (409, "ConditionalRequestConflict", TransientError),
        (409, "Whatever", BackendError),
        (412, "", PreconditionFailed),
        (429, "", Throttled),
        (503, "SlowDown", Throttled),
        (503, "Unheard", Throttled),
        (500, "", TransientError),
        (None, "SlowDown", Throttled),
        (None, "", BackendError),
    ],
)
def test_an_answer_is_named(status: int | None, code: str, kind: type[StorageError]) -> None:
    assert error_for(status, code) is kind


def test_a_failed_precondition_of_a_creation_means_that_it_exists() -> None:
    assert error_for(412, "PreconditionFailed", if_absent=True) is AlreadyExists
