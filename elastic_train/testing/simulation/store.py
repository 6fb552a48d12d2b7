"""A simulated etcd: the in-process store of the Coordination port, reached over a network with delays and losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from elastic_train.adapters.coordination.memory import MemoryStore
from elastic_train.errors import GuardFailed, LeaseExpired
from elastic_train.ports import Changes, Delete, Put, Snapshot
from elastic_train.testing.simulation.kernel import Kernel, Process

Batch = Snapshot | Changes

_COMPACT_EVERY = 512  # revisions: bounds the history that is kept, and cuts watches that lag


class Subscription:
    """A watch of one process. Batches keep their order; what one watch sees late, another may see early."""

    def __init__(self, store: SimulatedStore, owner: Process, prefix: str, deliver: Callable[[Batch], None]) -> None:
        self.owner = owner
        self.prefix = prefix
        self.delay_s = 0.0  # added to every batch: a slow or paused member of the cluster
        self._store = store
        self._deliver = deliver
        self._revision = 0  # 0: list first
        self._scheduled = False
        self._closed = False
        self.wake()

    def wake(self) -> None:
        """Notice that something has changed."""
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._store.kernel.after(self._store.latency_s() + self.delay_s, self._arrive)

    def cut(self) -> None:
        """Break the watch; it is opened again and lists first."""
        self._revision = 0
        self.wake()

    def close(self) -> None:
        """End it."""
        self._closed = True
        self._store.subscriptions.remove(self)

    def _arrive(self) -> None:
        self._scheduled = False
        if self._closed or not self.owner.alive:
            return
        batch = self._next()
        if batch is not None:
            self._revision = batch.revision
            self.owner.post(0.0, self._hand_over, batch)

    def _hand_over(self, batch: Batch) -> None:
        if not self._closed:
            self._deliver(batch)

    def _next(self) -> Batch | None:
        store = self._store
        if self._revision == 0 or self._revision < store.compacted:
            return store.below(self.prefix)
        changes = store.since(self._revision, self.prefix)
        return Changes(changes, store.revision) if changes else None


class SimulatedStore(MemoryStore):
    """The state that all see, and how they reach it.

    Args:
        kernel: Time and chance.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.clock)
        self.changed.acquire()  # one thread, for ever
        self.kernel = kernel
        self.subscriptions: list[Subscription] = []
        self.on_write: Callable[[Sequence[Put | Delete]], None] = lambda _: None
        self.lose: Callable[[Process, Sequence[Put | Delete]], str] = lambda *_: ""
        self.slow_until_s = 0.0
        self.slow_by_s = 0.0
        self._leases: dict[int, float] = {}

    # ------------------------------------------------------------------ the network

    def latency_s(self) -> float:
        """Draw how long one message takes now."""
        delay_s = 0.0005 + self.kernel.random.random() * 0.004
        return delay_s + (self.slow_by_s * self.kernel.random.random() if self.kernel.now_s < self.slow_until_s else 0)

    def watch(self, owner: Process, prefix: str, deliver: Callable[[Batch], None]) -> Subscription:
        """Open a watch for a process."""
        subscription = Subscription(self, owner, prefix, deliver)
        self.subscriptions.append(subscription)
        return subscription

    def request(self, owner: Process, operations: Sequence[Put | Delete], answer: Callable[[str], None]) -> None:
        """Send a write for a process; it gets "", "lease" (its lease is gone) or "lost" (nobody answered)."""
        fate = self.lose(owner, operations)
        if fate == "request":
            owner.post(self.latency_s() + 0.5, answer, "lost")
            return
        self.kernel.after(self.latency_s(), self._carry_out, owner, operations, answer, fate)
        if fate == "duplicate":  # late: the client takes care that what must keep its order is not sent twice
            self.kernel.after(self.latency_s() * 20, self._carry_out, owner, operations, lambda _: None, "")

    def _carry_out(
        self, owner: Process, operations: Sequence[Put | Delete], answer: Callable[[str], None], fate: str
    ) -> None:
        verdict = ""
        try:
            self.apply(operations, ())
        except LeaseExpired:
            verdict = "lease"
        except GuardFailed:
            verdict = "guard"
        if fate == "answer":
            owner.post(self.latency_s() + 0.5, answer, "lost")
        else:
            owner.post(self.latency_s(), answer, verdict)

    def ask(self, owner: Process, question: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Send another request of a process: carried out at one moment, answered at a later one."""

        def carry_out() -> None:
            owner.post(self.latency_s(), answer, question())

        self.kernel.after(self.latency_s(), carry_out)

    # ------------------------------------------------------------------ leases

    def grant(self, ttl_s: float) -> int:
        """Begin a lease; it ends by itself."""
        lease_id = super().grant(ttl_s)
        self._await_end(lease_id, ttl_s)
        return lease_id

    def renew(self, lease_id: int, ttl_s: float) -> bool:
        """Prolong a lease; say whether there was one."""
        held = super().renew(lease_id, ttl_s)
        if held:
            self._await_end(lease_id, ttl_s)
        return held

    def holds(self, lease_id: int) -> bool:
        """Say whether a lease is there."""
        return lease_id in self._leases

    def prolong_all(self, by_s: float) -> None:
        """Do to all leases what a change of etcd's leader does: they begin anew."""
        for lease_id in list(self._leases):
            self.renew(lease_id, by_s)

    def end_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys."""
        self._leases.pop(lease_id, None)
        super().end_lease(lease_id)

    def _await_end(self, lease_id: int, ttl_s: float) -> None:
        known = lease_id in self._leases
        self._leases[lease_id] = self.kernel.now_s + ttl_s
        if not known:
            self.kernel.after(ttl_s + 0.01, self._look_at_lease, lease_id)

    def _look_at_lease(self, lease_id: int) -> None:
        end_s = self._leases.get(lease_id)
        if end_s is None:
            return
        if end_s <= self.kernel.now_s:
            self.tick()
        else:
            self.kernel.after(end_s - self.kernel.now_s + 0.01, self._look_at_lease, lease_id)

    # ------------------------------------------------------------------ writes

    def _change(self, operations: Sequence[Put | Delete], touched: Sequence[Sequence[str]]) -> None:
        before = self.revision
        super()._change(operations, touched)
        if self.revision == before:
            return
        self.on_write(operations)
        keys = [key for group in touched for key in group]
        for subscription in self.subscriptions:
            if any(key.startswith(subscription.prefix) for key in keys):
                subscription.wake()
        if self.revision - self.compacted > _COMPACT_EVERY:
            self.compact(self.revision - _COMPACT_EVERY // 2)
