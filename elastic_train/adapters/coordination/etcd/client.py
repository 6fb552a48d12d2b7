"""The Coordination port on etcd v3."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.commits import Committer
from elastic_train.adapters.coordination.etcd.endpoints import RANGE, EndpointPool, connect_endpoints
from elastic_train.adapters.coordination.etcd.failures import Failure
from elastic_train.adapters.coordination.etcd.leases import EtcdLease, grant_lease
from elastic_train.adapters.coordination.etcd.transport import Refused, Timing, Transport
from elastic_train.adapters.coordination.etcd.url import EtcdAddress
from elastic_train.adapters.coordination.etcd.watches import EtcdWatch, list_prefix, to_key_value
from elastic_train.errors import CoordinationUnavailable
from elastic_train.ports import Delete, Guard, KeyValue, Put, Snapshot

logger = logging.getLogger(__name__)


class EtcdCoordination:
    """A client of an etcd cluster; safe from many threads, not to be used in a forked child.

    Args:
        transport: The way to the cluster; `close` closes it.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._committer = Committer(transport)
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()

    @classmethod
    def at(cls, address: EtcdAddress, timing: Timing | None = None) -> EtcdCoordination:
        """Make a client for a parsed URL. Nothing is sent yet: see `check`.

        Raises:
            ConfigurationError: A TLS file cannot be read.
        """
        pool = EndpointPool(connect_endpoints(address.endpoints, address.tls))
        credentials = (address.user, address.password or "") if address.user is not None else None
        return cls(Transport(pool, credentials=credentials, timing=timing))

    def __repr__(self) -> str:
        return f"EtcdCoordination({', '.join(endpoint.address for endpoint in self._transport.pool.endpoints)})"

    @property
    def transport(self) -> Transport:
        """Return the way to the cluster, for what the port does not offer (`admin`)."""
        return self._transport

    def check(self, deadline_s: float) -> None:
        """Make sure that the cluster answers, with a quorum, and takes our credentials.

        Raises:
            CoordinationUnavailable: None answered in time; names each.
            CoordinationDenied: Wrong credentials.
        """
        try:
            self._transport.call(RANGE, pb.RangeRequest(key=b"\0", count_only=True), deadline_s=deadline_s)
        except Refused as refusal:
            if refusal.failure is Failure.FORBIDDEN:  # it knows who we are, and that key is not ours: that will do
                return
            raise refusal.translated() from refusal

    def get(self, key: str) -> KeyValue | None:
        """Return a key as of now.

        Raises:
            CoordinationUnavailable: No member answered in time.
            CoordinationDenied: Wrong credentials or no permission.
        """
        try:
            answer = self._transport.call(RANGE, pb.RangeRequest(key=key.encode()))
        except Refused as refusal:
            raise refusal.translated() from refusal
        return to_key_value(answer.kvs[0]) if answer.kvs else None

    def list(self, prefix: str) -> Snapshot:
        """Return all keys below a prefix, as of one revision.

        Raises:
            CoordinationUnavailable: No member answered in time.
            CoordinationDenied: Wrong credentials or no permission.
        """
        return list_prefix(self._transport, prefix)[0]

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations at once if every guard holds, exactly once; return the revision they made.

        Raises:
            GuardFailed: A guard did not hold; nothing was written.
            LeaseExpired: A lease that an operation names is gone; nothing was written.
            CoordinationUnavailable: No answer in time. The operations were applied, or may yet be, once or not at all.
            CoordinationDenied: Wrong credentials or no permission.
            ConfigurationError: etcd cannot take these operations (two for one key, too many, too large).
        """
        return self._committer.commit(operations, guards)

    def grant(self, ttl_s: float) -> EtcdLease:
        """Grant a lease of at least `ttl_s`.

        Raises:
            CoordinationUnavailable: No member answered in time.
            CoordinationDenied: Wrong credentials or no permission.
        """
        return grant_lease(self._transport, ttl_s)

    def watch(self, prefix: str) -> EtcdWatch:
        """Watch a prefix: first a Snapshot, then Changes; a new Snapshot after compaction."""
        self._transport.check_usable()
        watch = EtcdWatch(self._transport, prefix)
        self._watches.add(watch)
        return watch

    def close(self) -> None:
        """End every watch and every call under way, and all threads. Idempotent; does nothing in a forked child."""
        if self._transport.belongs_to_another_process:
            return
        for watch in list(self._watches):
            watch.close()
        try:
            self._committer.close()
        except CoordinationUnavailable as error:
            logger.info("commit markers are left to their lease: %s", error)
        finally:
            self._transport.close()
