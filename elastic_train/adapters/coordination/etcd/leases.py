"""Leases whose local deadline is never later than the server's."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import GRANT, KEEP_ALIVE, REVOKE
from elastic_train.adapters.coordination.etcd.failures import Failure
from elastic_train.adapters.coordination.etcd.transport import Refused, Transport
from elastic_train.errors import CoordinationUnavailable, LeaseExpired

_TRIES_PER_LIFE = 4
"""A renewal asks so many members, at least, before the lease runs out, however short it is."""
_TRY_FLOOR_S = 0.25


class EtcdLease:
    """A lease on etcd; `expires_at` counts from before the request that the server answered was sent."""

    def __init__(
        self, transport: Transport, lease_id: int, ttl_s: float, expires_at: float, clock: Callable[[], float]
    ) -> None:
        self._transport = transport
        self._lease_id = lease_id
        self._ttl_s = ttl_s
        self._expires_at = expires_at
        self._clock = clock
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"EtcdLease({self._lease_id:x}, ttl_s={self._ttl_s:g})"

    @property
    def lease_id(self) -> int:
        """Return the id that keys are attached to."""
        return self._lease_id

    @property
    def ttl_s(self) -> float:
        """Return what the server granted; it may be more than was asked for."""
        return self._ttl_s

    @property
    def expires_at(self) -> float:
        """Return the local monotonic time from which the lease must be taken for lost."""
        return self._expires_at

    def renew(self) -> None:
        """Renew once, trying every member until the lease has run out or the call's deadline passed.

        Raises:
            LeaseExpired: The server said so, or the local deadline passed.
            CoordinationUnavailable: No answer; the lease may still live until `expires_at`.
            CoordinationDenied: Wrong credentials or no permission.
        """
        end = min(self._clock() + self._transport.timing.deadline_s, self._expires_at)
        while True:
            sent = self._clock()
            if sent >= self._expires_at:
                raise self._expired("its local deadline passed without an answer to a renewal")
            if sent >= end:
                raise CoordinationUnavailable(f"etcd did not answer the renewal of {self!r} in time")
            try:
                answer = self._transport.call(
                    KEEP_ALIVE, pb.LeaseKeepAliveRequest(ID=self._lease_id), deadline_s=self._try_s(end - sent)
                )
            except CoordinationUnavailable:
                self._transport.check_usable()
                continue
            except Refused as refusal:
                if refusal.failure is Failure.LEASE_NOT_FOUND:
                    raise self._expired("the server does not know it") from refusal
                raise refusal.translated() from refusal
            if answer.TTL <= 0:  # that is how etcd says it; there is no error
                raise self._expired("the server answered TTL 0")
            with self._lock:
                self._ttl_s = float(answer.TTL)
                self._expires_at = max(self._expires_at, sent + answer.TTL)
            return

    def revoke(self, deadline_s: float | None = None) -> None:
        """End the lease and delete its keys. One that is gone already is as good.

        Args:
            deadline_s: How long to try; the client's usual deadline where it is None.

        Raises:
            CoordinationUnavailable: No member answered in time; the lease runs out by itself.
            CoordinationDenied: Wrong credentials or no permission.
        """
        with self._lock:
            self._expires_at = -math.inf
        try:
            self._transport.call(REVOKE, pb.LeaseRevokeRequest(ID=self._lease_id), deadline_s=deadline_s)
        except Refused as refusal:
            if refusal.failure is not Failure.LEASE_NOT_FOUND:
                raise refusal.translated() from refusal

    def _try_s(self, left_s: float) -> float:
        share_s = max(self._ttl_s / _TRIES_PER_LIFE, _TRY_FLOOR_S)
        return min(left_s, share_s, self._transport.timing.try_s)

    def _expired(self, why: str) -> LeaseExpired:
        with self._lock:
            self._expires_at = -math.inf
        return LeaseExpired(f"{self!r} ran out: {why}. Every key attached to it is gone or will be.")


def grant_lease(transport: Transport, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> EtcdLease:
    """Grant a lease of at least `ttl_s` (whole seconds, rounded up; etcd has a minimum of its own).

    Raises:
        CoordinationUnavailable: No member answered in time.
        CoordinationDenied: Wrong credentials or no permission.
    """
    # the id is ours, so that a request whose answer was lost can be sent again
    lease_id = random.SystemRandom().getrandbits(62) + 1
    sent = clock()
    try:
        answer = transport.call(GRANT, pb.LeaseGrantRequest(TTL=math.ceil(ttl_s), ID=lease_id))
    except Refused as refusal:
        if refusal.failure is not Failure.LEASE_EXISTS:
            raise refusal.translated() from refusal
        lease = EtcdLease(transport, lease_id, float(math.ceil(ttl_s)), sent + math.ceil(ttl_s), clock)
        lease.renew()
        return lease
    return EtcdLease(transport, lease_id, float(answer.TTL), sent + answer.TTL, clock)
