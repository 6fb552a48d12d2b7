"""The coordination port: a linearizable key-value store with leases, guarded writes and watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the service holds it."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a write: the key's create or mod revision equals `revision` (0 = the key is absent)."""

    key: str
    revision: int
    of: str = "mod"  # "mod" | "create"


@dataclass(frozen=True, slots=True)
class Put:
    """Write one key, attached to a lease where `lease_id` is not 0."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or with ``prefix=True`` all keys that begin with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a watched prefix at one revision: the first batch, and again whenever events may have been missed."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key written (`value` is bytes) or deleted (`value` is None)."""

    key: str
    value: bytes | None
    mod_revision: int
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in revision order, none missing since the batch before."""

    changes: tuple[Change, ...]
    revision: int


class Watch(Protocol):
    """An open watch. Iterating blocks; `close` (any thread) ends the iteration."""

    def __iter__(self) -> Iterator[Snapshot | Changes]: ...

    def close(self) -> None:
        """End the watch and its iteration. From any thread; idempotent."""
        ...


class Lease(Protocol):
    """A right that runs out unless renewed.

    `expires_at` is on this process's monotonic clock, counted from *before* the renewal was sent, so it is
    never later than the service's own deadline would be.
    """

    @property
    def lease_id(self) -> int:
        """Return the service's name for this lease."""
        ...

    @property
    def ttl_s(self) -> float:
        """Return how long one renewal lasts."""
        ...

    @property
    def expires_at(self) -> float:
        """Return when it has run out for certain, on the monotonic clock."""
        ...

    def renew(self) -> None:
        """Renew once.

        Raises:
            LeaseExpired: It is gone (the service answered TTL 0, or the local deadline passed).
            CoordinationUnavailable: No answer; the lease may still live until `expires_at`.
        """

    def revoke(self) -> None:
        """Give the lease back; its keys are deleted at once. Gone already: no-op."""
        ...


class Coordination(Protocol):
    """A linearizable key-value store with leases, guarded writes and watches (etcd v3's model).

    Every method may raise CoordinationUnavailable (after `deadline_s` of trying all endpoints) or
    CoordinationDenied. Safe from many threads; an instance must not be used in a forked child.
    """

    def get(self, key: str) -> KeyValue | None:
        """Return one key, or None when it is absent."""
        ...

    def list(self, prefix: str) -> Snapshot:
        """Return all keys of a prefix at one revision."""
        ...

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations at once if every guard holds; return the revision they made.

        A commit whose answer was lost is resolved (by re-reading) or raised as CoordinationUnavailable; it is never
        applied twice.

        Raises:
            GuardFailed: A guard did not hold; nothing was written.
        """
        ...

    def grant(self, ttl_s: float) -> Lease:
        """Grant a lease that runs out after `ttl_s` unless renewed."""
        ...

    def watch(self, prefix: str) -> Watch:
        """Watch a prefix: first a Snapshot, then Changes; a new Snapshot after compaction or a gap."""
        ...

    def close(self) -> None:
        """Close all connections and watches. Leases run out by themselves."""
        ...
