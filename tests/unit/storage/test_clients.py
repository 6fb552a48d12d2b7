"""Settings, credentials, and what clients' errors mean, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage import ConfigError, PermissionDenied, StorageError
from storage.backends import fsspec_calls, obstore_errors
from storage.backends.credentials import Credentials, CredentialSource
from storage.backends.settings import S3Settings, botocore_provider, s3_settings
from storage.errors import (
    AlreadyExists,
    BackendError,
    BucketNotFound,
    ConnectionLost,
    CredentialsExpired,
    NotFound,
    PreconditionFailed,
    RangeNotSatisfiable,
    RequestTimeout,
    StoreFull,
    Throttled,
    TruncatedBody,
)
from storage.redaction import Scrubber

# Settings


def test_arguments_win_over_the_environment() -> None:
    environ = {
        "AWS_ACCESS_KEY_ID": "env-key",
        "AWS_SECRET_ACCESS_KEY": "env-secret",
        "AWS_REGION": "env-region",
        "AWS_ENDPOINT_URL": "http://env",
    }
    from_environment = s3_settings({}, environ)
    assert (from_environment.access_key_id, from_environment.region) == ("env-key", "env-region")
    assert from_environment.endpoint_url == "http://env"
    chosen = s3_settings({"access_key_id": "key", "secret_access_key": "secret", "region": "here"}, environ)
    assert (chosen.access_key_id, chosen.secret_access_key, chosen.region) == ("key", "secret", "here")
    assert s3_settings({"anonymous": True}, environ).access_key_id is None
    assert s3_settings({}, {**environ, "AWS_ENDPOINT_URL_S3": "http://s3"}).endpoint_url == "http://s3"


def test_the_profile_of_the_configuration_files_is_used_where_there_is_nothing_else(tmp_path: Path) -> None:
    assert s3_settings({}, {"HOME": str(tmp_path)}).profile is None
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("[default]\n")
    assert s3_settings({}, {"HOME": str(tmp_path)}).profile == "default"
    assert s3_settings({}, {"HOME": str(tmp_path), "AWS_PROFILE": "mine"}).profile == "mine"


def test_a_profile_is_read_as_the_aws_tools_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    file.write_text("[mine]\naws_access_key_id = key\naws_secret_access_key = secret\naws_session_token = token\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert botocore_provider("mine")() == Credentials("key", "secret", "token")
    with pytest.raises(ConfigError, match="'other'"):
        botocore_provider("other")()


def test_the_payload_is_signed_over_plain_http_only_unless_said_otherwise() -> None:
    assert not S3Settings().signs_payload
    assert not S3Settings(endpoint_url="https://host").signs_payload
    assert S3Settings(endpoint_url="http://host").signs_payload
    assert not S3Settings(endpoint_url="http://host", unsigned_payload=True).signs_payload
    assert S3Settings(unsigned_payload=False).signs_payload


def test_settings_show_no_secret() -> None:
    assert "hunter" not in repr(S3Settings(access_key_id="hunter1", secret_access_key="hunter2"))


# Credentials


def _counting(expires_in_s: float | None, now: Callable[[], float]) -> tuple[Callable[[], Credentials], list[int]]:
    fetched: list[int] = []

    def provide() -> Credentials:
        fetched.append(1)
        expires_at = None if expires_in_s is None else now() + expires_in_s
        return Credentials(f"key{len(fetched)}", f"secret{len(fetched)}", None, expires_at)

    return provide, fetched


def test_lasting_credentials_are_fetched_once() -> None:
    provide, fetched = _counting(None, lambda: 0.0)
    source = CredentialSource(provide, Scrubber(), now=lambda: 1e9)
    assert source.current() == source.current()
    assert len(fetched) == 1


def test_credentials_are_fetched_before_they_run_out() -> None:
    now = [1000.0]
    provide, fetched = _counting(3600.0, lambda: now[0])
    source = CredentialSource(provide, Scrubber(), now=lambda: now[0])
    source.current()
    now[0] += 3500.0
    assert source.current().access_key_id == "key1"
    now[0] += 50.0
    assert source.current().access_key_id == "key2"
    assert len(fetched) == 2


def test_refreshing_says_whether_there_is_anything_new() -> None:
    provide, _ = _counting(None, lambda: 0.0)
    source = CredentialSource(provide, Scrubber())
    source.current()
    assert source.refresh()
    fixed = CredentialSource(lambda: Credentials("key", "secret"), Scrubber())
    fixed.current()
    assert not fixed.refresh()


def test_the_scrubber_knows_every_secret_that_was_fetched() -> None:
    scrubber = Scrubber()
    CredentialSource(lambda: Credentials("accesskey", "secretkey", "sessiontoken"), scrubber).current()
    assert scrubber.scrub("accesskey secretkey sessiontoken") == "*** *** ***"


# What obstore says


class Generic(Exception):
    """Stands for obstore's GenericError: only its text is looked at."""


_DEBUG = (
    "\n\nDebug source:\nGeneric {{ retry_timeout: 5s, inner: Http(HttpError {{ kind: {kind}, source: {source} }}) }}"
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("HTTP error: error sending request" + _DEBUG.format(kind="Interrupted", source="Io"), ConnectionLost),
        ("HTTP error: error sending request" + _DEBUG.format(kind="Connect", source="Connect"), ConnectionLost),
        ("HTTP error: error sending request" + _DEBUG.format(kind="Timeout", source="TimedOut"), RequestTimeout),
        (
            "HTTP error: request or response body error" + _DEBUG.format(kind="Interrupted", source="kind: Body"),
            TruncatedBody,
        ),
        ("status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>", Throttled),
        ("status code: 429 Too Many Requests", Throttled),
        ("status code: 416: <Code>InvalidRange</Code><Message>no</Message>", RangeNotSatisfiable),
        ("status code: 404: <Code>NoSuchBucket</Code>", BucketNotFound),
        ("status code: 400: <Code>ExpiredToken</Code>", CredentialsExpired),
        ("status code: 418 I'm a teapot", BackendError),
        ("something new", BackendError),
    ],
)
def test_obstores_text_is_understood(text: str, kind: type[StorageError]) -> None:
    error = obstore_errors.translate(Generic(text), Scrubber(), if_absent=False)
    assert type(error) is kind


def test_obstores_detail_is_short_and_scrubbed() -> None:
    text = "status code: 403: <Code>AccessDenied</Code><Message>no rights for hunter22</Message>" + "x" * 5000
    error = obstore_errors.translate(Generic(text), Scrubber(["hunter22"]), if_absent=False)
    assert error.detail == "AccessDenied: no rights for ***"
    assert len(obstore_errors.translate(Generic("x" * 5000), Scrubber(), if_absent=False).detail) == 300


# What fsspec file systems say


def _client_error(code: str, status: int) -> Exception:
    error = Exception("An error occurred")
    error.response = {  # type: ignore[attr-defined]  # as botocore's ClientError has it
        "Error": {"Code": code, "Message": "why"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return error


def _caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def _with(name: str, base: type[Exception] = Exception, **attributes: object) -> Exception:
    error: Exception = type(name, (base,), {})("text")
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError(2, "x"), NotFound),
        (FileNotFoundError("x"), NotFound),
        (IsADirectoryError(21, "x"), NotFound),
        (FileExistsError("x"), AlreadyExists),
        (PermissionError("x"), PermissionDenied),
        (OSError(28, "No space left on device"), StoreFull),
        (TimeoutError("late"), RequestTimeout),
        (ConnectionResetError("x"), ConnectionLost),
        (EOFError(), ConnectionLost),
        (ValueError("x"), BackendError),
        (_client_error("NoSuchBucket", 404), BucketNotFound),
        (_caused(OSError(5, "x"), _client_error("SlowDown", 503)), Throttled),
        (_caused(OSError(22, "x"), _client_error("PreconditionFailed", 412)), PreconditionFailed),
        (_with("ClientPayloadError", code=400), TruncatedBody),
        (_with("SomeHttpError", status=403), PermissionDenied),
        (_with("EndpointConnectionError"), ConnectionLost),
        (_with("NoCredentialsError"), PermissionDenied),
        (_with("FSTimeoutError"), RequestTimeout),
    ],
)
def test_a_file_systems_error_is_named(error: Exception, kind: type[StorageError]) -> None:
    assert type(fsspec_calls.translate(error, Scrubber())) is kind


def test_the_translated_error_has_no_cause_and_no_context() -> None:
    def fail() -> None:
        try:
            raise KeyError("hunter22")
        except KeyError as error:
            raise ValueError("hunter22") from error

    with pytest.raises(BackendError) as caught:
        fsspec_calls.call_fsspec(Scrubber(["hunter22"]), fail)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "hunter22" not in str(caught.value)


def test_a_call_on_a_thread_returns_raises_and_times_out() -> None:
    import threading

    assert fsspec_calls.run_in_thread(lambda: 5, 30.0) == 5
    with pytest.raises(KeyError):
        fsspec_calls.run_in_thread(lambda: {"a": 1}["missing"], 30.0)
    release = threading.Event()
    with pytest.raises(TimeoutError, match="no answer"):
        fsspec_calls.run_in_thread(release.wait, 0.01)
    release.set()
