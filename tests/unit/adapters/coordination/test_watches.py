"""Watches over scripted streams: where they resume, when they list again, and when they give up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import grpc
import pytest

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd import watches
from elastic_train.adapters.coordination.etcd.transport import Timing, Transport
from elastic_train.adapters.coordination.etcd.watches import EtcdWatch
from elastic_train.errors import CoordinationDenied, CoordinationUnavailable
from elastic_train.ports import Change, Changes, KeyValue, Snapshot
from tests.unit.adapters.coordination.test_transport import StatusError

CLUSTER = 7


def header(revision: int, cluster: int = CLUSTER) -> Any:
    return pb.ResponseHeader(revision=revision, cluster_id=cluster)


def created(revision: int = 100, cluster: int = CLUSTER) -> Any:
    return pb.WatchResponse(header=header(revision, cluster), created=True)


def written(revision: int, key: str = "/job/one/a", value: bytes = b"x") -> Any:
    item = pb.KeyValue(key=key.encode(), value=value, mod_revision=revision, create_revision=1)
    return pb.WatchResponse(header=header(revision), events=[pb.Event(type=pb.Event.PUT, kv=item)])


def refused(reason: str) -> Any:
    return pb.WatchResponse(header=header(100), created=True, canceled=True, watch_id=-1, cancel_reason=reason)


class Stream:
    """One scripted stream: answers, and at the end an error or None for a plain end."""

    def __init__(self, answers: Sequence[Any], end: Exception | None = None) -> None:
        self._answers = iter(answers)
        self._end = end
        self.start_revision = 0
        self.cancelled = False

    def open(self, requests: Iterator[Any], **_: object) -> Stream:
        self.start_revision = next(requests).create_request.start_revision
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        for answer in self._answers:
            return answer
        raise self._end or StopIteration

    def cancel(self) -> None:
        self.cancelled = True


class ScriptedMembers:
    """Stands in for `Transport` and its pool: one stream after another, and the same list every time."""

    def __init__(self, *streams: Stream) -> None:
        self.timing = Timing()
        self.pool = self
        self.endpoints = (self,)
        self.address = "m:1"
        self.items = [pb.KeyValue(key=b"/job/one/a", value=b"0", create_revision=1, mod_revision=5)]
        self.list_revisions = iter([5, 50, 100])
        self.lists = 0
        self.failures = 0
        self.renewals = 0
        self._streams = iter(streams)

    def current(self) -> ScriptedMembers:
        return self

    def failed(self, _: object) -> None:
        self.failures += 1

    def stream(self, _: object) -> Callable[..., Stream]:
        return next(self._streams).open

    def call(self, *_: object, **__: object) -> Any:
        self.lists += 1
        return pb.RangeResponse(header=header(next(self.list_revisions)), kvs=self.items)

    def metadata(self, _: float) -> tuple[tuple[str, str], ...]:
        return ()

    def renew_token(self, *_: object) -> None:
        self.renewals += 1

    def check_usable(self) -> None:
        """Be usable."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_PAUSES_S", (0.0,))


def watch(members: ScriptedMembers) -> EtcdWatch:
    return EtcdWatch(cast("Transport", members), "/job/one/")


def take(count: int, members: ScriptedMembers) -> list[Snapshot | Changes]:
    """Return the first batches of a watch, and end it."""
    opened = watch(members)
    batches = iter(opened)
    taken = [next(batches) for _ in range(count)]
    opened.close()
    return taken


def test_the_first_stream_begins_after_the_list() -> None:
    stream = Stream([created(), written(6)])
    snapshot, changes = take(2, ScriptedMembers(stream))
    assert snapshot == Snapshot((KeyValue("/job/one/a", b"0", 1, 5),), 5)
    assert stream.start_revision == 6
    assert changes == Changes((Change("/job/one/a", b"x", 6, 1),), 6)


@pytest.mark.parametrize("end", [None, StatusError(grpc.StatusCode.UNAVAILABLE, "gone")])
def test_a_stream_that_ends_is_resumed_after_what_was_seen_and_its_member_is_passed_over(end: Exception | None) -> None:
    streams = [Stream([created(), written(6), written(9)], end), Stream([created(), written(10)])]
    members = ScriptedMembers(*streams)
    batches = take(4, members)
    assert [batch.revision for batch in batches] == [5, 6, 9, 10]
    assert streams[1].start_revision == 10
    assert (members.failures, members.lists) == (1, 1)
    assert streams[0].cancelled


def test_our_own_keys_are_hidden_but_count_for_where_to_resume() -> None:
    streams = [Stream([created(), written(6), written(7, "/job/one/.commits/x-1")]), Stream([created(), written(8)])]
    batches = take(3, ScriptedMembers(*streams))
    assert [batch.revision for batch in batches] == [5, 6, 8]
    assert streams[1].start_revision == 8


def test_an_answer_about_progress_brings_nothing_and_moves_nothing() -> None:
    streams = [Stream([created(), pb.WatchResponse(header=header(90), watch_id=-1)]), Stream([created(), written(8)])]
    batches = take(2, ScriptedMembers(*streams))
    assert [batch.revision for batch in batches] == [5, 8]
    assert streams[1].start_revision == 6, "its revision may be ahead of events that were not sent yet"


@pytest.mark.parametrize(
    "answer",
    [
        pb.WatchResponse(header=header(100), created=True, canceled=True, compact_revision=40),
        created(cluster=CLUSTER + 1),
        created(revision=3),
    ],
    ids=["compacted", "another cluster", "a member that lost its data"],
)
def test_what_cannot_be_resumed_is_listed_again(answer: Any) -> None:
    streams = [Stream([answer]), Stream([created(), written(60)])]
    members = ScriptedMembers(*streams)
    batches = take(3, members)
    assert [type(batch) for batch in batches] == [Snapshot, Snapshot, Changes]
    assert streams[1].start_revision == 51
    assert members.failures == 0


def test_a_denial_counts_from_the_second_time_because_a_void_token_looks_the_same() -> None:
    once = [Stream([refused("etcdserver: permission denied")]), Stream([created(), written(6)])]
    members = ScriptedMembers(*once)
    assert [batch.revision for batch in take(2, members)] == [5, 6]
    assert members.renewals == 1
    twice = ScriptedMembers(*(Stream([refused("etcdserver: permission denied")]) for _ in range(2)))
    with pytest.raises(CoordinationDenied, match="/job/one/"):
        take(2, twice)


def test_a_stream_refused_for_its_token_is_opened_again_with_a_new_one() -> None:
    streams = [
        Stream([], StatusError(grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token")),
        Stream([created(), written(6)]),
    ]
    members = ScriptedMembers(*streams)
    assert [batch.revision for batch in take(2, members)] == [5, 6]
    assert (members.renewals, members.failures) == (1, 0)


def test_a_list_that_fails_is_tried_again_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    members = ScriptedMembers(Stream([created(), written(6)]))
    real, outages = members.call, iter(range(7))

    def call(*arguments: object, **options: object) -> Any:
        if next(outages, None) is not None:
            raise CoordinationUnavailable("away")
        return real(*arguments, **options)

    monkeypatch.setattr(members, "call", call)
    assert [batch.revision for batch in take(2, members)] == [5, 6]


def test_a_closed_client_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    members = ScriptedMembers(Stream([created()], StatusError(grpc.StatusCode.CANCELLED, "Channel closed!")))

    def closed() -> None:
        raise CoordinationUnavailable("this etcd client was closed")

    monkeypatch.setattr(members, "check_usable", closed)
    assert [batch.revision for batch in watch(members)] == [5]
