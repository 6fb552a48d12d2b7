"""The Coordination port inside one process: linearizable, with etcd's semantics, for tests and simulations.

One `MemoryStore` is the service; each `MemoryCoordination` is a client of it. The clock is injected, and faults are:
`MemoryStore.before` is called before every request is carried out and `MemoryStore.after` when it has been, but not
answered yet; what they raise, the caller gets.
"""

from __future__ import annotations

import bisect
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from elastic_train.errors import ConfigurationError, CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Change, Changes, Delete, Guard, KeyValue, Put, Snapshot

_T = TypeVar("_T")

Hook = Callable[[str], None]
"""Gets the name of the request: get, list, commit, grant, renew, revoke or watch."""

_MINIMUM_TTL_S = 1.0


class MemoryStore:
    """The state that all clients see, one revision after another.

    Args:
        clock: Monotonic seconds; leases run out by it. After moving a clock of your own, call `tick`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.changed = threading.Condition(threading.RLock())
        self.revision = 1
        self.compacted = 0
        self._items: dict[str, KeyValue] = {}
        self._history: list[Change] = []
        self._lease_ends: dict[int, float] = {}
        self._ids = itertools.count(0x1000)

    # ------------------------------------------------------------------ what time and operators do

    def tick(self) -> None:
        """End the leases that ran out and wake the watches."""
        with self.changed:
            now = self.clock()
            for lease_id in [lease_id for lease_id, end in self._lease_ends.items() if end <= now]:
                self.end_lease(lease_id)
            self.changed.notify_all()

    def compact(self, revision: int | None = None) -> None:
        """Forget the history up to a revision (default: all of it); watches behind it list again."""
        with self.changed:
            self.compacted = self.revision if revision is None else min(revision, self.revision)
            self._history = [change for change in self._history if change.mod_revision > self.compacted]
            self.changed.notify_all()

    # ------------------------------------------------------------------ reads; the caller holds `changed`

    def get(self, key: str) -> KeyValue | None:
        """Return a key."""
        return self._items.get(key)

    def below(self, prefix: str) -> Snapshot:
        """Return all keys below a prefix."""
        return Snapshot(tuple(self._items[key] for key in sorted(self._items) if key.startswith(prefix)), self.revision)

    def since(self, revision: int, prefix: str) -> tuple[Change, ...]:
        """Return the changes below a prefix after a revision, in order."""
        first = bisect.bisect_right(self._history, revision, key=lambda change: change.mod_revision)
        return tuple(change for change in self._history[first:] if change.key.startswith(prefix))

    def next_lease_end(self) -> float:
        """Return when the next lease runs out."""
        return min(self._lease_ends.values(), default=math.inf)

    # ------------------------------------------------------------------ writes; the caller holds `changed`

    def apply(self, operations: Sequence[Put | Delete], guards: Sequence[Guard]) -> int:
        """Apply all operations if all guards hold; return the revision.

        Raises:
            GuardFailed: A guard did not hold.
            LeaseExpired: A put names a lease that is gone.
            ConfigurationError: Two operations touch the same key.
        """
        for guard in guards:
            self._check_guard(guard)
        for put in (operation for operation in operations if isinstance(operation, Put)):
            if sum(_concerns(operation, put.key) for operation in operations) > 1:
                raise ConfigurationError("coordination request", f"{put.key} is written twice", "Shrink or correct it.")
            if put.lease_id and put.lease_id not in self._lease_ends:
                raise LeaseExpired(f"lease {put.lease_id:x} of {put.key} is gone; nothing was written")
        self._change(operations, [self._touched(operation) for operation in operations])
        return self.revision

    def grant(self, ttl_s: float) -> int:
        """Begin a lease and return its id."""
        lease_id = next(self._ids)
        self._lease_ends[lease_id] = self.clock() + ttl_s
        return lease_id

    def renew(self, lease_id: int, ttl_s: float) -> bool:
        """Prolong a lease; say whether there was one."""
        if lease_id not in self._lease_ends:
            return False
        self._lease_ends[lease_id] = self.clock() + ttl_s
        return True

    def end_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys, in one revision."""
        if self._lease_ends.pop(lease_id, None) is None:
            return
        keys = sorted(key for key, item in self._items.items() if item.lease_id == lease_id)
        self._change([Delete(key) for key in keys], [[key] for key in keys])

    def _check_guard(self, guard: Guard) -> None:
        item = self._items.get(guard.key)
        revision = 0 if item is None else item.create_revision if guard.of == "create" else item.mod_revision
        if revision != guard.revision:
            raise GuardFailed(
                f"{guard.key} has {guard.of}_revision {revision} and not {guard.revision} (0: absent): "
                "somebody else was first, nothing was written"
            )

    def _touched(self, operation: Put | Delete) -> list[str]:
        if isinstance(operation, Put):
            return [operation.key]
        if operation.prefix:
            return sorted(key for key in self._items if key.startswith(operation.key))
        return [operation.key] if operation.key in self._items else []

    def _change(self, operations: Sequence[Put | Delete], touched: Sequence[Sequence[str]]) -> None:
        if not any(touched):
            return
        self.revision += 1
        for operation, keys in zip(operations, touched, strict=True):
            for key in keys:
                self._history.append(self._put(operation) if isinstance(operation, Put) else self._delete(key))
        self.changed.notify_all()

    def _put(self, put: Put) -> Change:
        old = self._items.get(put.key)
        created = old.create_revision if old else self.revision
        self._items[put.key] = KeyValue(put.key, put.value, created, self.revision, put.lease_id)
        return Change(put.key, put.value, self.revision, created)

    def _delete(self, key: str) -> Change:
        self._items.pop(key, None)
        return Change(key, None, self.revision)


def _concerns(operation: Put | Delete, key: str) -> bool:
    if isinstance(operation, Delete) and operation.prefix:
        return key.startswith(operation.key)
    return key == operation.key


class MemoryLease:
    """A lease in a MemoryStore."""

    def __init__(self, client: MemoryCoordination, lease_id: int, ttl_s: float, expires_at: float) -> None:
        self._client = client
        self.lease_id = lease_id
        self.ttl_s = ttl_s
        self.expires_at = expires_at

    def renew(self) -> None:
        """Renew once.

        Raises:
            LeaseExpired: It is gone, or the local deadline passed.
            CoordinationUnavailable: The client was closed, or a fault was injected.
        """
        sent = self._client.store.clock()
        if sent >= self.expires_at or not self._client.run("renew", self._prolong):
            self.expires_at = -math.inf
            raise LeaseExpired(f"lease {self.lease_id:x} ran out. Every key attached to it is gone or will be.")
        self.expires_at = sent + self.ttl_s

    def revoke(self) -> None:
        """End the lease and delete its keys.

        Raises:
            CoordinationUnavailable: The client was closed, or a fault was injected.
        """
        self.expires_at = -math.inf
        self._client.run("revoke", lambda store: store.end_lease(self.lease_id))

    def _prolong(self, store: MemoryStore) -> bool:
        return store.renew(self.lease_id, self.ttl_s)


class MemoryWatch:
    """An open watch on a MemoryStore."""

    def __init__(self, client: MemoryCoordination, prefix: str) -> None:
        self._client = client
        self._store = client.store
        self._prefix = prefix
        self._closed = False
        self._revision = 0

    def __iter__(self) -> Iterator[Snapshot | Changes]:
        """Yield a Snapshot, then Changes, and a Snapshot again after compaction."""
        self._revision = 0
        while (batch := self._next()) is not None:
            self._revision = batch.revision
            yield batch

    def close(self) -> None:
        """End the iteration, from any thread. Idempotent."""
        with self._store.changed:
            self._closed = True
            self._store.changed.notify_all()

    def _next(self) -> Snapshot | Changes | None:
        """Wait for the next batch; None when closed."""
        with self._store.changed:
            while not (self._closed or self._client.closed):
                self._store.tick()
                if self._revision == 0 or self._revision < self._store.compacted:
                    return self._store.below(self._prefix)
                changes = self._store.since(self._revision, self._prefix)
                if changes:
                    return Changes(changes, self._store.revision)
                self._revision = self._store.revision
                left_s = self._store.next_lease_end() - self._store.clock()
                self._store.changed.wait(None if math.isinf(left_s) else max(left_s, 0.0))
        return None


class MemoryCoordination:
    """A client of a MemoryStore; safe from many threads.

    Args:
        store: The service; a new one where it is None.
    """

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.closed = False

    def run(self, request: str, action: Callable[[MemoryStore], _T]) -> _T:
        """Carry out one request, at one moment, with the faults that were injected.

        Raises:
            CoordinationUnavailable: This client was closed; or whatever a hook raises.
        """
        if self.closed:
            raise CoordinationUnavailable("this client was closed")
        if self.store.before is not None:
            self.store.before(request)
        with self.store.changed:
            self.store.tick()
            result = action(self.store)
        if self.store.after is not None:
            self.store.after(request)
        return result

    def get(self, key: str) -> KeyValue | None:
        """Return a key as of now.

        Raises:
            CoordinationUnavailable: This client was closed, or a fault was injected.
        """
        return self.run("get", lambda store: store.get(key))

    def list(self, prefix: str) -> Snapshot:
        """Return all keys below a prefix, as of one revision.

        Raises:
            CoordinationUnavailable: This client was closed, or a fault was injected.
        """
        return self.run("list", lambda store: store.below(prefix))

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations at once if every guard holds; return the revision they made.

        Raises:
            GuardFailed: A guard did not hold; nothing was written.
            LeaseExpired: A lease that an operation names is gone; nothing was written.
            CoordinationUnavailable: This client was closed, or a fault was injected.
            ConfigurationError: Two operations touch the same key.
        """
        return self.run("commit", lambda store: store.apply(operations, guards))

    def grant(self, ttl_s: float) -> MemoryLease:
        """Grant a lease of `ttl_s`, at least one second.

        Raises:
            CoordinationUnavailable: This client was closed, or a fault was injected.
        """
        ttl_s = max(ttl_s, _MINIMUM_TTL_S)
        sent = self.store.clock()
        return MemoryLease(self, self.run("grant", lambda store: store.grant(ttl_s)), ttl_s, sent + ttl_s)

    def watch(self, prefix: str) -> MemoryWatch:
        """Watch a prefix: first a Snapshot, then Changes; a new Snapshot after compaction.

        Raises:
            CoordinationUnavailable: This client was closed, or a fault was injected.
        """
        return self.run("watch", lambda _: MemoryWatch(self, prefix))

    def close(self) -> None:
        """End every watch of this client; the store stays. Idempotent."""
        with self.store.changed:
            self.closed = True
            self.store.changed.notify_all()
