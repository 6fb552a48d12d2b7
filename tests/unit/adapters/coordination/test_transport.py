"""Calls over scripted members: which one is asked, how often, and what becomes of each way to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import AUTHENTICATE, RANGE, Endpoint, EndpointPool, Method
from elastic_train.adapters.coordination.etcd.failures import Failure, classify, translate
from elastic_train.adapters.coordination.etcd.transport import Refused, Timing, Transport
from elastic_train.errors import (
    ConfigurationError,
    CoordinationDenied,
    CoordinationUnavailable,
    LeaseExpired,
    UsageError,
)

CODE = grpc.StatusCode
QUICK = Timing(deadline_s=0.05, try_s=0.01)


class StatusError(grpc.RpcError):  # type: ignore[misc]  # gRPC ships no types
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


Answer = Callable[[Any, dict[str, Any]], object]


class ScriptedMember(Endpoint):
    """Answers calls by a function instead of a channel, and writes down what it was asked."""

    def __init__(self, address: str, answer: Answer) -> None:
        super().__init__(address, channel=None)
        self._answer = answer
        self.asked: list[str] = []
        self.closed = False

    def unary(self, method: Method) -> Any:
        def call(request: object, **options: object) -> object:
            self.asked.append(method.path.rpartition("/")[2])
            return self._answer(request, {**options, "method": method})

        return call

    def close(self) -> None:
        self.closed = True


def failing(code: grpc.StatusCode, details: str = "") -> Answer:
    def answer(_request: object, _options: object) -> object:
        raise StatusError(code, details)

    return answer


def answering(_request: object, _options: object) -> object:
    return "answer"


def transport(*members: ScriptedMember, timing: Timing | None = None, **options: Any) -> Transport:
    return Transport(EndpointPool(members), timing=timing, **options)


def test_one_member_is_asked_as_long_as_it_answers() -> None:
    one, two = ScriptedMember("one:1", answering), ScriptedMember("two:1", answering)
    calls = transport(one, two)
    for _ in range(5):
        assert calls.call_counting(RANGE, pb.RangeRequest()) == ("answer", 1)
    assert (len(one.asked), len(two.asked)) == (5, 0)


@pytest.mark.parametrize(
    "code", [CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED, CODE.UNKNOWN, CODE.INTERNAL, CODE.CANCELLED]
)
def test_the_next_member_is_asked_when_one_does_not_answer_and_kept(code: grpc.StatusCode) -> None:
    dead, alive = ScriptedMember("dead:1", failing(code)), ScriptedMember("alive:1", answering)
    calls = transport(dead, alive)
    assert calls.call_counting(RANGE, pb.RangeRequest()) == ("answer", 2)
    assert calls.call_counting(RANGE, pb.RangeRequest()) == ("answer", 1)
    assert len(dead.asked) == 1


def test_a_deadline_that_passes_names_every_member_with_what_it_said() -> None:
    members = [ScriptedMember(f"m{n}:1", failing(CODE.UNAVAILABLE, f"reason {n}")) for n in range(2)]
    with pytest.raises(CoordinationUnavailable, match=r"0\.1 s.*m0:1.*reason 0.*m1:1.*reason 1") as caught:
        transport(*members, timing=QUICK).call(RANGE, pb.RangeRequest())
    assert "quorum" in str(caught.value)


def test_an_answer_that_another_try_cannot_mend_is_given_to_the_caller_at_once() -> None:
    member = ScriptedMember("m:1", failing(CODE.NOT_FOUND, "etcdserver: requested lease not found"))
    with pytest.raises(Refused) as caught:
        transport(member, ScriptedMember("other:1", answering)).call(RANGE, pb.RangeRequest())
    assert caught.value.failure is Failure.LEASE_NOT_FOUND
    assert len(member.asked) == 1


class GuardedMember(ScriptedMember):
    """Wants a token, and gives out a new one each time it is asked."""

    def __init__(self) -> None:
        super().__init__("m:1", self._guard)
        self.valid = ""
        self.given = 0

    def _guard(self, _request: object, options: dict[str, Any]) -> object:
        if options["method"] is AUTHENTICATE:
            self.given += 1
            self.valid = f"token-{self.given}"
            return pb.AuthenticateResponse(token=self.valid)
        if dict(options["metadata"]).get("token") != self.valid:
            raise StatusError(CODE.UNAUTHENTICATED, "etcdserver: invalid auth token")
        return "answer"


def test_a_token_is_fetched_before_the_first_call_and_used_until_it_is_void() -> None:
    member = GuardedMember()
    calls = transport(member, credentials=("user", "password"))
    for _ in range(3):
        calls.call(RANGE, pb.RangeRequest())
    assert member.asked == ["Authenticate", "Range", "Range", "Range"]
    member.valid = "void"
    calls.call(RANGE, pb.RangeRequest())
    assert member.asked[4:] == ["Range", "Authenticate", "Range"]


def test_a_void_token_without_credentials_is_denied_saying_what_to_do() -> None:
    member = GuardedMember()
    calls = transport(member, token="somebody else's")
    with pytest.raises(CoordinationDenied, match="user and password"):
        calls.call(RANGE, pb.RangeRequest())


def test_a_token_given_from_outside_is_used() -> None:
    member = GuardedMember()
    member.valid = "given"
    assert transport(member, token="given").call(RANGE, pb.RangeRequest()) == "answer"
    assert member.asked == ["Range"]


def test_a_cluster_that_asks_for_no_credentials_is_asked_once_whether_it_does() -> None:
    def answer(_request: object, options: dict[str, Any]) -> object:
        if options["method"] is AUTHENTICATE:
            raise StatusError(CODE.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
        return "answer"

    member = ScriptedMember("m:1", answer)
    calls = transport(member, credentials=("user", "password"))
    calls.call(RANGE, pb.RangeRequest())
    calls.call(RANGE, pb.RangeRequest())
    assert member.asked == ["Authenticate", "Range", "Range"]


def test_a_closed_transport_closes_its_channels_and_refuses_calls() -> None:
    member = ScriptedMember("m:1", answering)
    calls = transport(member)
    calls.close()
    calls.close()
    assert member.closed
    with pytest.raises(CoordinationUnavailable, match="closed"):
        calls.call(RANGE, pb.RangeRequest())


def test_a_transport_of_another_process_refuses_calls_and_leaves_its_channels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    member = ScriptedMember("m:1", answering)
    calls = transport(member)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(UsageError, match="fork"):
        calls.call(RANGE, pb.RangeRequest())
    calls.close()
    assert not member.closed


def test_members_that_failed_a_moment_ago_are_passed_over_and_tried_again_later() -> None:
    now = [100.0]
    members = [ScriptedMember(f"m{n}:1", answering) for n in range(3)]
    pool = EndpointPool(members, clock=lambda: now[0])
    pool.failed(members[0])
    pool.failed(members[1])
    assert pool.current() is members[2]
    pool.failed(members[2])
    assert pool.current() is members[0], "all failed: in turn"
    now[0] += 60.0
    pool.failed(members[0])
    assert pool.current() is members[1]


def test_a_failure_reported_by_several_threads_moves_on_once() -> None:
    members = [ScriptedMember(f"m{n}:1", answering) for n in range(3)]
    pool = EndpointPool(members)
    pool.failed(members[0])
    pool.failed(members[0])
    assert pool.current() is members[1]


@pytest.mark.parametrize(
    ("code", "details", "failure", "error"),
    [
        (CODE.UNAVAILABLE, "etcdserver: request timed out", Failure.NO_ANSWER, None),
        (CODE.UNAVAILABLE, "etcdserver: no leader", Failure.NO_ANSWER, None),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Failure.NO_ANSWER, None),
        (CODE.INVALID_ARGUMENT, "etcdserver: auth: revision in header is old", Failure.TOKEN, CoordinationDenied),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", Failure.FORBIDDEN, CoordinationDenied),
        (
            CODE.INVALID_ARGUMENT,
            "etcdserver: authentication failed, invalid user ID",
            Failure.DENIED,
            CoordinationDenied,
        ),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", Failure.FULL, CoordinationUnavailable),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", Failure.LEASE_NOT_FOUND, LeaseExpired),
        (CODE.INVALID_ARGUMENT, "etcdserver: request is too large", Failure.BAD_REQUEST, ConfigurationError),
        (
            CODE.INVALID_ARGUMENT,
            "etcdserver: too many operations in txn request",
            Failure.BAD_REQUEST,
            ConfigurationError,
        ),
    ],
)
def test_etcds_errors_become_ours(
    code: grpc.StatusCode, details: str, failure: Failure, error: type[Exception] | None
) -> None:
    status = StatusError(code, details)
    assert classify(status) is failure
    if error is not None:
        translated = translate(failure, "m:1", details)
        assert type(translated) is error
        assert "m:1" in str(translated)
