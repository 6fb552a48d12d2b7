"""What an S3 store does when the network and the server misbehave."""

from __future__ import annotations

import math
import time

import pytest

from storage import (
    AlreadyExists,
    BucketNotFound,
    CredentialsExpired,
    DeadlineExceeded,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RetryPolicy,
)
from storage.backends.credentials import Credentials
from storage.errors import ConnectionLost, RequestTimeout, Throttled, TruncatedBody
from storage.testing import FaultProxy, LoseAnswer, Refuse, Reset, SlowStart, Stall, Truncate
from tests.integration.storage.conftest import OpenS3

pytestmark = [pytest.mark.integration, pytest.mark.s3]

SHORT = RetryPolicy(deadline_s=1.5, base_delay_s=0.01, max_delay_s=0.05)
ONCE = RetryPolicy(max_attempts=1)
LARGE = bytes(range(256)) * (68 * 2**12) + b"end"


def test_a_put_that_is_never_answered_ends_with_the_doubt_stated(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(retry=SHORT)
    proxy.script([Stall(times=math.inf)])
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        store.put("key", b"data")
    assert time.monotonic() - started < 10
    assert caught.value.maybe_applied
    assert isinstance(caught.value.last, RequestTimeout)


def test_a_stalled_request_is_tried_again_on_another_connection(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    proxy.script([Stall(), Stall(method="GET")])
    store.put("key", b"data")
    assert store.get("key") == b"data"
    assert not proxy.unused


def test_ten_refusals_in_a_row_are_survived_and_lower_the_limit(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    before = store.concurrency_limit
    proxy.script([Refuse(times=5), Refuse(status=429, code="TooManyRequests", times=5)])
    store.put("key", b"data")
    assert store.get("key") == b"data"
    assert store.concurrency_limit < before


@pytest.mark.parametrize(
    ("fault", "last"),
    [
        (Reset(times=math.inf), ConnectionLost),
        (Refuse(times=math.inf), Throttled),
        (Truncate(times=math.inf, method="GET"), TruncatedBody),
        (SlowStart(times=math.inf, delay_s=30.0), RequestTimeout),
    ],
)
def test_a_lasting_fault_is_named(open_s3: OpenS3, proxy: FaultProxy, fault: Reset, last: type) -> None:
    open_s3().put("key", b"data")  # with retries: what is tested begins with the fault
    store = open_s3(retry=ONCE)
    proxy.script([fault])
    with pytest.raises(DeadlineExceeded) as caught:
        store.get("key")
    assert type(caught.value.last) is last
    assert not caught.value.maybe_applied
    assert "1 attempts" in str(caught.value)


def test_a_server_that_is_gone_is_a_lost_connection(open_s3: OpenS3) -> None:
    with FaultProxy("http://127.0.0.1:1") as other:
        url = other.url
    store = open_s3(endpoint_url=url, retry=ONCE)
    with pytest.raises(DeadlineExceeded) as caught:
        store.get("key")
    assert isinstance(caught.value.last, ConnectionLost)


def test_a_large_object_gets_through_broken_parts(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(request_timeout_s=10.0)
    proxy.script(
        [Reset(path_contains="partNumber=2"), Refuse(path_contains="partNumber=1"), LoseAnswer(method="POST", skip=1)]
    )
    store.put("large", LARGE)
    proxy.script([Truncate(method="GET", after_nbytes=2**20), Reset(method="GET", skip=1)])
    out = bytearray(len(LARGE))
    store.get_range_into("large", 0, out)
    assert out == LARGE
    assert not proxy.unused


def test_a_failed_upload_in_parts_is_called_off(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(retry=ONCE, request_timeout_s=10.0)
    proxy.script([Refuse(path_contains="partNumber=", times=math.inf, status=403, code="AccessDenied")])
    with pytest.raises(PermissionDenied):
        store.put("large", LARGE)
    assert [seen.method for seen in proxy.seen if "uploadId=" in seen.path and seen.method == "DELETE"] == ["DELETE"]
    assert not store.exists("large")


# Answers that are lost


def test_a_create_whose_answer_was_lost_is_recognised_as_ours(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    proxy.script([LoseAnswer(method="PUT")])
    info = store.put("key", b"mine", if_absent=True)
    assert not proxy.unused
    assert store.get("key") == b"mine"
    assert info.etag == store.head("key").etag
    with pytest.raises(AlreadyExists):
        store.put("key", b"mine", if_absent=True)


def test_a_create_that_lost_to_another_writer_of_the_same_bytes_is_not_ours(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store, rival = open_s3(), open_s3()
    rival.put("key", b"same", if_absent=True)
    proxy.script([Reset(method="PUT")])
    with pytest.raises(AlreadyExists):
        store.put("key", b"same", if_absent=True)
    assert not proxy.unused


def test_a_swap_whose_answer_was_lost_is_recognised_as_ours(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    first = store.put("key", b"one")
    proxy.script([LoseAnswer(method="PUT")])
    second = store.put("key", b"two", if_match=first.etag)
    assert not proxy.unused
    assert second.etag == store.head("key").etag
    with pytest.raises(PreconditionFailed):
        store.put("key", b"three", if_match=first.etag)


def test_a_delete_whose_answer_was_lost_succeeds(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    store.put("key", b"one")
    proxy.script([LoseAnswer(method="DELETE"), LoseAnswer(method="POST", path_contains="delete")])
    store.delete("key")
    assert not store.exists("key")


# Refusals that do not go away


def test_a_missing_bucket_is_named_by_every_operation(open_s3: OpenS3) -> None:
    store = open_s3("s3://no-such-bucket/prefix")
    for use in (
        lambda: store.get("key"),
        lambda: store.head("key"),
        lambda: store.exists("key"),
        lambda: store.put("key", b""),
        lambda: store.put("key", b"", if_absent=True),
        lambda: store.put("key", LARGE),
        lambda: list(store.list()),
        lambda: store.get_range("key", 0, 1),
    ):
        with pytest.raises(BucketNotFound) as caught:
            use()
        assert "no-such-bucket" in str(caught.value)


def test_a_refusal_is_not_retried(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    proxy.script([Refuse(status=403, code="AccessDenied", message="Access Denied", times=math.inf)])
    for use in (lambda: store.get("key"), lambda: store.put("key", b"data"), lambda: list(store.list())):
        seen = len(proxy.seen)
        with pytest.raises(PermissionDenied, match="permission denied"):
            use()
        assert len(proxy.seen) == seen + 1


def test_a_missing_object_costs_no_second_request_once_the_bucket_is_known(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3()
    store.put("key", b"")
    proxy.script([])
    assert not store.exists("missing")
    assert len(proxy.seen) == 1


# Credentials


def test_expired_credentials_are_fetched_anew_and_the_request_is_repeated(open_s3: OpenS3, proxy: FaultProxy) -> None:
    fetched: list[Credentials] = []

    def provide() -> Credentials:
        fetched.append(Credentials(f"key{len(fetched)}", "secret", f"session{len(fetched)}"))
        return fetched[-1]

    store = open_s3(credentials=provide, access_key_id=None, secret_access_key=None)
    store.put("key", b"data")
    assert len(fetched) == 1
    proxy.script([Refuse(status=400, code="ExpiredToken", message="The provided token has expired.")])
    assert store.get("key") == b"data"
    assert len(fetched) == 2


def test_credentials_that_stay_expired_are_reported(open_s3: OpenS3, proxy: FaultProxy) -> None:
    store = open_s3(credentials=lambda: Credentials("key", "secret"), access_key_id=None, secret_access_key=None)
    proxy.script([Refuse(status=400, code="ExpiredToken", message="The provided token has expired.", times=math.inf)])
    with pytest.raises(CredentialsExpired):
        store.get("key")


def test_not_found_stays_not_found_through_a_proxy(open_s3: OpenS3) -> None:
    with pytest.raises(NotFound):
        open_s3().get("missing")
