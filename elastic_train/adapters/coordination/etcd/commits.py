"""Guarded writes that are applied exactly once, however often their answer is lost.

etcd does not recognise a request that is sent again, and an answer that never came says nothing: the write may have
been applied, or still lie in the buffer of a member that was paused, to be applied later. So each transaction carries
a *marker*: a key of this client's own, with the guard that it has not changed since this client saw it last, and a put
that changes it to a token of this transaction. Sent a second time, to whichever member, the transaction finds the
guard broken if the first was applied, and the first finds it broken should it come late. Reading the marker in the
failure branch tells which: our token means that the transaction was applied, at the marker's mod_revision.

Markers lie below ``<first two components of the key>/.commits/``, so that a user limited to a job's prefix may write
them. They are hidden from lists, watches and prefix deletes. They hang on a lease of their own, so that a killed
client's go away by themselves; a transaction that comes when that lease is gone is refused whole, because its put of
the marker names it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import TXN
from elastic_train.adapters.coordination.etcd.failures import Failure
from elastic_train.adapters.coordination.etcd.leases import EtcdLease, grant_lease
from elastic_train.adapters.coordination.etcd.ranges import MARKERS, root_of, without_markers
from elastic_train.adapters.coordination.etcd.transport import Refused, Transport
from elastic_train.errors import CoordinationUnavailable, GuardFailed
from elastic_train.ports import Delete, Guard, Put

MARKER_TTL_S = 600.0
"""A marker is used for the first half of its lease: the rest outlives any call."""

_CLOSING_S = 0.5
"""Closing a client waits so long, at most, for a cluster that does not answer."""

_REFUSED = b"refused "


@dataclass(slots=True)
class _Marker:
    """A key that changes with each transaction that uses it."""

    root: str
    key: bytes
    lease: EtcdLease
    mod_revision: int = 0


class _MarkerLostError(Exception):
    """A marker was changed by somebody else; the transaction was not applied."""


class Committer:
    """Applies operations under guards, exactly once."""

    def __init__(self, transport: Transport, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._clock = clock
        self._name = uuid.uuid4().hex[:16]
        self._serial = 0
        self._lease: EtcdLease | None = None
        self._free: dict[str, list[_Marker]] = {}  # by root; as many as there were transactions under way at once
        self._lock = threading.Lock()
        self._grant_lock = threading.Lock()

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard]) -> int:
        """Apply all operations if all guards hold; return the revision.

        Raises:
            GuardFailed: A guard did not hold; nothing was written.
            LeaseExpired: A lease that an operation names is gone; nothing was written.
            CoordinationUnavailable: No answer in time. The operations were applied, or may yet be, once or not at all.
            CoordinationDenied: Wrong credentials or no permission.
            ConfigurationError: etcd cannot take these operations (two for one key, too many, too large).
        """
        root = root_of((*operations, *guards)[0].key) if operations or guards else ""
        try:
            return self._commit_with(self._take(root), operations, guards)
        except _MarkerLostError:
            pass  # an operator's doing, or a prefix delete from far above
        except Refused as refusal:
            if refusal.failure is not Failure.LEASE_NOT_FOUND or refusal.tries > 1:
                raise refusal.translated() from refusal
        self._forget_lease()  # the lease that is gone may be the markers'
        try:
            return self._commit_with(self._take(root), operations, guards)
        except _MarkerLostError:
            raise CoordinationUnavailable(
                f"somebody deletes or changes keys below {root}{MARKERS} all the time: leave these to this client"
            ) from None
        except Refused as refusal:
            raise refusal.translated() from refusal

    def close(self) -> None:
        """Delete the markers by ending their lease.

        Raises:
            CoordinationUnavailable: No member answered in time; the lease runs out by itself.
        """
        lease = self._forget_lease()
        if lease is not None:
            lease.revoke(_CLOSING_S)

    # ------------------------------------------------------------------ one transaction

    def _commit_with(self, marker: _Marker, operations: Sequence[Put | Delete], guards: Sequence[Guard]) -> int:
        """Send the transaction until it is answered; give the marker back if its state is known."""
        token = self._next_token()
        answer, tries = self._transport.call_counting(TXN, _transaction(marker, token, operations, guards))
        if answer.succeeded:
            return self._applied(marker, answer.header.revision)
        found = [next(iter(response.response_range.kvs), None) for response in answer.responses]
        applied_at = self._read_marker(marker, token, found[0], tries)
        if applied_at is None and tries > 1:
            applied_at = self._fence(marker, token)
        if applied_at is not None:
            return self._applied(marker, applied_at)
        self._give_back(marker)
        raise GuardFailed(_describe_failed(guards, found[1:]))

    def _read_marker(self, marker: _Marker, token: bytes, found: Any, tries: int) -> int | None:
        """Return the revision at which the transaction was applied, None if it was not: a guard did not hold."""
        if found is not None and found.value == token:
            return int(found.mod_revision)
        if (found.mod_revision if found is not None else 0) == marker.mod_revision:
            return None
        if tries == 1:
            raise _MarkerLostError
        raise CoordinationUnavailable(
            f"a commit's answer was lost and its marker {marker.key.decode()} was changed by somebody else: "
            "the operations were applied once or not at all"
        )

    def _fence(self, marker: _Marker, token: bytes) -> int | None:
        """Keep earlier tries of a refused transaction from being applied late, when the guards may hold again.

        Return the revision at which one was applied in the meantime, None if none can be any more.
        """
        fenced = _REFUSED + token
        answer = self._transport.call(
            TXN,
            pb.TxnRequest(
                compare=[_unchanged(marker)],
                success=[_put(marker.key, fenced, marker.lease.lease_id)],
                failure=[_read(marker.key)],
            ),
        )
        if answer.succeeded:
            marker.mod_revision = answer.header.revision
            return None
        found = next(iter(answer.responses[0].response_range.kvs), None)
        if found is not None and found.value == fenced:  # this call's own answer had been lost
            marker.mod_revision = found.mod_revision
            return None
        return self._read_marker(marker, token, found, tries=2)

    def _applied(self, marker: _Marker, revision: int) -> int:
        marker.mod_revision = revision
        self._give_back(marker)
        return int(revision)

    # ------------------------------------------------------------------ markers

    def _take(self, root: str) -> _Marker:
        lease = self._usable_lease()
        with self._lock:
            free = self._free.get(root)
            if free:
                return free.pop()
        key = f"{root}{MARKERS}{self._next_token().decode()}".encode()
        return _Marker(root, key, lease)

    def _give_back(self, marker: _Marker) -> None:
        with self._lock:
            if marker.lease is self._lease:
                self._free.setdefault(marker.root, []).append(marker)

    def _usable_lease(self) -> EtcdLease:
        lease = self._lease
        if lease is not None and self._is_young(lease):
            return lease
        with self._grant_lock:
            lease = self._lease
            if lease is None or not self._is_young(lease):
                lease = grant_lease(self._transport, MARKER_TTL_S, self._clock)
                with self._lock:
                    self._lease, self._free = lease, {}
            return lease

    def _is_young(self, lease: EtcdLease) -> bool:
        return lease.expires_at - self._clock() > MARKER_TTL_S / 2

    def _forget_lease(self) -> EtcdLease | None:
        with self._lock:
            lease, self._lease, self._free = self._lease, None, {}
        return lease

    def _next_token(self) -> bytes:
        with self._lock:
            self._serial += 1
            return f"{self._name}-{self._serial}".encode()


def _transaction(marker: _Marker, token: bytes, operations: Sequence[Put | Delete], guards: Sequence[Guard]) -> Any:
    return pb.TxnRequest(
        compare=[_unchanged(marker), *map(_comparison, guards)],
        success=[
            _put(marker.key, token, marker.lease.lease_id),
            *(request for operation in operations for request in _requests(operation, marker.root)),
        ],
        failure=[_read(marker.key), *(_read(guard.key.encode()) for guard in guards)],
    )


def _requests(operation: Put | Delete, root: str) -> list[Any]:
    if isinstance(operation, Put):
        return [_put(operation.key.encode(), operation.value, operation.lease_id)]
    if not operation.prefix:
        return [pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=operation.key.encode()))]
    return [
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=start, range_end=end))
        for start, end in without_markers(operation.key, (root, root_of(operation.key)))
    ]


def _put(key: bytes, value: bytes, lease_id: int) -> Any:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease_id))


def _read(key: bytes) -> Any:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def _unchanged(marker: _Marker) -> Any:
    return pb.Compare(target=pb.Compare.MOD, key=marker.key, mod_revision=marker.mod_revision)


def _comparison(guard: Guard) -> Any:
    key = guard.key.encode()
    if guard.of == "create":
        return pb.Compare(target=pb.Compare.CREATE, key=key, create_revision=guard.revision)
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=guard.revision)


def _describe_failed(guards: Sequence[Guard], found: Sequence[Any]) -> str:
    """Name the first guard that did not hold, with what was found instead."""
    for guard, item in zip(guards, found, strict=True):
        revision = 0 if item is None else item.create_revision if guard.of == "create" else item.mod_revision
        if revision != guard.revision:
            return (
                f"{guard.key} has {guard.of}_revision {revision} and not {guard.revision} (0: absent): "
                "somebody else was first, nothing was written"
            )
    return "a guard did not hold; nothing was written"
