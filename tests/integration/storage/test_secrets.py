"""No credential is ever shown: not in a message, a repr, a traceback, an attribute or a log."""

from __future__ import annotations

import io
import logging
import math
import traceback
from collections.abc import Iterator

import pytest

from storage import RetryPolicy, StorageError, open_store
from storage.backends.credentials import Credentials
from storage.testing import FaultProxy, Refuse, Reset
from tests.integration.storage.conftest import OpenS3

pytestmark = [pytest.mark.integration, pytest.mark.s3]

KEY_ID = "AKIACANARYCANARY"
SECRET = "canary+secret/with=odd&chars"
TOKEN = "canary-session-token-0123456789"
CANARIES = (KEY_ID, SECRET, TOKEN, "canary%2Bsecret%2Fwith%3Dodd%26chars", "canary-", "canary+", "AKIACANARY")
ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def everything_logged() -> Iterator[io.StringIO]:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.setLevel(level)
    root.removeHandler(handler)


def shown(error: BaseException) -> str:
    """Return all that any reporter could print of an error, its causes and contexts included."""
    parts = ["".join(traceback.format_exception(error)), repr(error), repr(error.args), repr(vars(error))]
    parts += [shown(other) for other in (error.__cause__, error.__context__) if other is not None]
    return "\n".join(parts)


def test_no_canary_is_shown_by_any_failure(
    open_s3: OpenS3, proxy: FaultProxy, everything_logged: io.StringIO, client: str
) -> None:
    echo = f"bad signature of {KEY_ID} {SECRET} {TOKEN}"
    store = open_s3(access_key_id=KEY_ID, secret_access_key=SECRET, session_token=TOKEN, retry=ONCE)
    failures: list[BaseException] = []
    for fault in (
        Refuse(status=403, code="SignatureDoesNotMatch", message=echo, times=math.inf),
        Refuse(status=400, code="ExpiredToken", message=echo, times=math.inf),
        Refuse(status=500, code="InternalError", message=echo, times=math.inf),
        Refuse(status=418, code="Teapot", message=echo, times=math.inf),
        Reset(times=math.inf),
    ):
        proxy.script([fault])
        for use in (
            lambda: store.get("key"),
            lambda: store.put("key", b"x", if_absent=True),
            lambda: store.head("key"),
            lambda: list(store.list()),
            lambda: store.delete_many(["a", "b"]),
        ):
            with pytest.raises(StorageError) as caught:
                use()
            failures.append(caught.value)
            failures += [last for last in [getattr(caught.value, "last", None)] if last is not None]
    text = "\n".join([*(shown(failure) for failure in failures), repr(store), str(store), everything_logged.getvalue()])
    assert not [canary for canary in CANARIES if canary.lower() in text.lower()]
    assert client  # both clients


def test_fetched_credentials_are_not_shown_either(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(
        credentials=lambda: Credentials(KEY_ID, SECRET, TOKEN),
        access_key_id=None,
        secret_access_key=None,
        retry=ONCE,
    )
    proxy.script([Refuse(status=403, code="AccessDenied", message=f"{KEY_ID} {TOKEN}", times=math.inf)])
    with pytest.raises(StorageError) as caught:
        store.get("key")
    assert "canary" not in shown(caught.value).lower()
    assert "canary" not in repr(Credentials(KEY_ID, SECRET, TOKEN)).lower()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (f"s3://{KEY_ID}:canarysecret@bucket/prefix", {}),
        (f"s3://bucket/prefix?X-Amz-Security-Token={TOKEN}", {}),
        ("gs://canary:canary@bucket", {}),
        ("az://container?sig=canary0123", {}),
        ("nonsense://user:canarypassword@host/path?token=canary0123", {}),
        ("sftp://user:canarypassword@host/path", {"key_filename": 5}),
        (f"file://canary:canary@host/{'x'}", {}),
        ("memory://x", {"secret": "canary0123"}),
        ("s3://bucket", {"secret_access_key": "canary0123"}),
        ("s3://bucket", {"access_key_id": KEY_ID, "secret_access_key": "canary0123", "nonsense": TOKEN}),
        ("http://user:canarypassword@127.0.0.1:1/x", {"client_kwargs": {"token": TOKEN}}),
    ],
)
def test_a_url_or_option_with_secrets_is_refused_or_used_without_showing_them(
    url: str, options: dict[str, object], everything_logged: io.StringIO
) -> None:
    failures: list[BaseException] = []
    text = ""
    try:
        store = open_store(url, retry=ONCE, **options)  # type: ignore[arg-type]  # any options
    except StorageError as error:
        failures.append(error)
    else:
        with store:
            text = repr(store) + store.url
            with pytest.raises(StorageError) as caught:
                store.get("key")
            failures.append(caught.value)
    # The source line of this very call would be in a traceback; it is the caller's own, so it holds no literal.
    text += everything_logged.getvalue() + "\n".join(shown(failure) for failure in failures)
    assert "canary" not in text.lower()
