"""Watches that outlive members, connections and compaction.

A watch begins with a list (Snapshot) and streams what came after it. When its stream ends or falls silent it goes on
at the next revision through another member, so nothing is missed or seen twice; only when etcd has compacted what is
missing does it list again. Silence is told from quiet by asking: half-way through `Timing.watch_silence_s` a progress
request is sent, which a live member answers at once and a paused one does not. A member cut off from the others ends
the stream by itself, because ``hasleader`` asks it to.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import RANGE, WATCH, Endpoint
from elastic_train.adapters.coordination.etcd.failures import Failure, classify, classify_text, describe
from elastic_train.adapters.coordination.etcd.ranges import end_of_prefix, is_hidden, start_of_prefix
from elastic_train.adapters.coordination.etcd.transport import NEED_LEADER, Interrupt, Metadata, Refused, Transport
from elastic_train.errors import CoordinationDenied, CoordinationUnavailable
from elastic_train.ports import Change, Changes, KeyValue, Snapshot

logger = logging.getLogger(__name__)

_PAUSES_S = (0.0, 0.05, 0.1, 0.2, 0.5)


def list_prefix(
    transport: Transport, prefix: str, *, deadline_s: float | None = None, interrupt: Interrupt | None = None
) -> tuple[Snapshot, int]:
    """Return all keys below a prefix, and the id of the cluster that answered.

    Raises:
        CoordinationUnavailable: No member answered in time.
        CoordinationDenied: Wrong credentials or no permission.
    """
    start, end = start_of_prefix(prefix.encode()), end_of_prefix(prefix.encode())
    try:
        answer = transport.call(
            RANGE, pb.RangeRequest(key=start, range_end=end), deadline_s=deadline_s, interrupt=interrupt
        )
    except Refused as refusal:
        raise refusal.translated() from refusal
    items = tuple(to_key_value(item) for item in answer.kvs if not is_hidden(item.key))
    return Snapshot(items, answer.header.revision), answer.header.cluster_id


def to_key_value(item: Any) -> KeyValue:
    """Return a key as the port describes it."""
    return KeyValue(item.key.decode(), item.value, item.create_revision, item.mod_revision, item.lease)


class EtcdWatch:
    """An open watch of a prefix. One thread iterates; any thread may close.

    Iterating goes on through any outage, for as long as it lasts, until `close`: who must know that etcd is away
    hears it from the calls that fail. It raises CoordinationDenied when the prefix may not be read.
    """

    def __init__(self, transport: Transport, prefix: str) -> None:
        self._transport = transport
        self._prefix = prefix
        self._interrupt = Interrupt()
        self._revision = 0  # everything up to here was given out
        self._cluster_id = 0
        self._troubles = 0  # streams and lists in a row that brought nothing
        self._denied_once = False
        self._pacer: _Pacer | None = None

    def __iter__(self) -> Iterator[Snapshot | Changes]:
        """Yield a Snapshot, then Changes, and a Snapshot again whenever changes were lost."""
        self._revision = 0
        while not self._interrupt.is_set():
            if not self._revision:
                snapshot = self._list()
                if snapshot is None:
                    continue
                yield snapshot
            yield from self._stream()

    def close(self) -> None:
        """End the iteration, from any thread. Idempotent."""
        self._interrupt.set()
        pacer = self._pacer
        if pacer is not None:
            pacer.stop()

    # ------------------------------------------------------------------ list

    def _list(self) -> Snapshot | None:
        try:
            snapshot, self._cluster_id = list_prefix(self._transport, self._prefix, interrupt=self._interrupt)
        except CoordinationUnavailable as error:
            self._trouble(str(error))
            return None
        self._troubles = 0
        self._revision = snapshot.revision
        return snapshot

    # ------------------------------------------------------------------ stream

    def _stream(self) -> Iterator[Changes]:
        """Yield changes from one stream until it ends, whatever the reason."""
        endpoint = self._transport.pool.current()
        try:
            metadata = self._transport.metadata(self._transport.timing.deadline_s)
            pacer = _Pacer(self._create_request(), self._transport.timing.watch_silence_s)
            call = endpoint.stream(WATCH)(pacer.requests(), metadata=metadata + NEED_LEADER)
        except (CoordinationUnavailable, ValueError) as error:  # ValueError: gRPC on a channel that was closed
            self._trouble(str(error))
            return
        pacer.watch_over(call)
        self._pacer = pacer
        try:
            with self._interrupt.ends(call):
                for answer in pacer.paced(call):
                    if self._interrupt.is_set() or not self._accept(answer, metadata):
                        return
                    changes = self._changes(answer)
                    if changes is not None:
                        yield changes
            self._lost(endpoint, "the stream was closed")
        except grpc.RpcError as error:
            self._failed(endpoint, error, metadata, silent=pacer.silent)
        finally:
            pacer.stop()
            call.cancel()

    def _create_request(self) -> Any:
        start, end = start_of_prefix(self._prefix.encode()), end_of_prefix(self._prefix.encode())
        return pb.WatchRequest(
            create_request=pb.WatchCreateRequest(key=start, range_end=end, start_revision=self._revision + 1)
        )

    def _accept(self, answer: Any, metadata: Metadata) -> bool:
        """Say whether the stream goes on after this answer."""
        if answer.header.cluster_id and answer.header.cluster_id != self._cluster_id:
            self._relist("another cluster answers there, and its revisions mean nothing here")
            return False
        if answer.created and not answer.canceled and answer.header.revision < self._revision:
            # A member that lags behind catches up while it lists; one that lost its data would be silent for ever.
            self._relist(f"the member is at revision {answer.header.revision}, before {self._revision} which was seen")
            return False
        if answer.compact_revision:
            self._relist(f"revisions up to {answer.compact_revision} were compacted")
            return False
        if not answer.canceled:
            self._denied_once = False
            if not answer.created:  # a stream has to bring more than its greeting to count as a good one
                self._troubles = 0
            return True
        # A token that ran out is reported here as a denial, so a denial counts from the second time.
        failure = classify_text(answer.cancel_reason)
        if failure not in {Failure.DENIED, Failure.FORBIDDEN, Failure.TOKEN}:
            self._trouble(answer.cancel_reason)
            return False
        if self._denied_once:
            raise CoordinationDenied(f"etcd refuses a watch of {self._prefix!r} ({answer.cancel_reason})")
        self._denied_once = True
        self._renew_token(metadata)
        return False

    def _changes(self, answer: Any) -> Changes | None:
        """Return the user's part of an answer, None if there is nothing in it."""
        if not answer.events:
            return None  # `header.revision` of a progress answer may be ahead of the events (etcd #15220): no use of it
        self._revision = max(event.kv.mod_revision for event in answer.events)
        changes = tuple(_to_change(event) for event in answer.events if not is_hidden(event.kv.key))
        return Changes(changes, self._revision) if changes else None

    def _failed(self, endpoint: Endpoint, error: grpc.RpcError, metadata: Metadata, *, silent: bool) -> None:
        if self._interrupt.is_set():
            return
        failure = classify(error)
        if failure is Failure.TOKEN:
            self._renew_token(metadata)
        elif failure in {Failure.DENIED, Failure.FORBIDDEN}:
            raise CoordinationDenied(f"etcd refuses a watch of {self._prefix!r} ({describe(error)})") from error
        else:
            self._lost(endpoint, "it fell silent" if silent else describe(error))

    def _lost(self, endpoint: Endpoint, why: str) -> None:
        self._transport.pool.failed(endpoint)
        self._trouble(f"{endpoint.address}: {why}")

    def _renew_token(self, stale: Metadata) -> None:
        try:
            self._transport.renew_token(stale, self._transport.timing.deadline_s)
        except CoordinationUnavailable as error:
            self._trouble(str(error))

    def _relist(self, why: str) -> None:
        logger.info("watch of %s lists again: %s", self._prefix, why)
        self._revision = 0

    def _trouble(self, why: str) -> None:
        """Say what went wrong, once an outage; wait longer each time in a row, unless closed."""
        if self._interrupt.is_set():
            return
        try:
            self._transport.check_usable()
        except CoordinationUnavailable:  # the client was closed, and its watches with it
            self._interrupt.set()
            return
        level = logging.INFO if self._troubles != len(self._transport.pool.endpoints) else logging.WARNING
        logger.log(level, "watch of %s goes on elsewhere: %s", self._prefix, why)
        pause_s = _PAUSES_S[min(self._troubles, len(_PAUSES_S) - 1)]
        self._troubles += 1
        self._interrupt.wait(pause_s)


class _Pacer:
    """Feeds a watch stream with its requests, and cancels it when it stays silent although it was asked.

    gRPC takes requests from an iterator in a thread of its own; that thread is the clock here, so a watch needs no
    other. Silence counts only while somebody waits for the stream.
    """

    def __init__(self, create_request: Any, silence_s: float) -> None:
        self._create_request = create_request
        self._silence_s = silence_s
        self._condition = threading.Condition()
        self._waiting_since: float | None = None
        self._stopped = False
        self._call: Any = None
        self.silent = False

    def watch_over(self, call: Any) -> None:
        """Take the stream to cancel."""
        with self._condition:
            self._call = call

    def paced(self, call: Any) -> Iterator[Any]:
        """Yield what the stream brings, noting when somebody waits for it."""
        while True:
            self._set_waiting(time.monotonic())
            answer = next(call, None)
            self._set_waiting(None)
            if answer is None:
                return
            yield answer

    def stop(self) -> None:
        """End the thread that asks for requests."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def requests(self) -> Iterator[Any]:
        """Yield the request that begins the watch, then one for progress when half the allowed silence has passed."""
        yield self._create_request
        asked = 0.0
        while True:
            with self._condition:
                if self._stopped:
                    return
                since = self._waiting_since
                now = time.monotonic()
                quiet_s = 0.0 if since is None else now - since
                if quiet_s >= self._silence_s:
                    self.silent = True
                    self._call.cancel()
                    return
                ask = since is not None and quiet_s >= self._silence_s / 2 and asked < since
                if not ask:
                    next_s = self._silence_s if quiet_s >= self._silence_s / 2 else self._silence_s / 2
                    self._condition.wait(next_s - quiet_s)
                    continue
                asked = now
            yield pb.WatchRequest(progress_request=pb.WatchProgressRequest())

    def _set_waiting(self, since: float | None) -> None:
        with self._condition:
            self._waiting_since = since


def _to_change(event: Any) -> Change:
    item = event.kv
    value = None if event.type == pb.Event.DELETE else item.value
    return Change(item.key.decode(), value, item.mod_revision, item.create_revision)
