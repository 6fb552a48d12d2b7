"""The keys through which nodes meet, and what one node sees of them: no leader, every decision one guarded write.

Below ``/elastic-train/<run id>/rendezvous/``:

=================== ========================================================================================
``nodes/<node>``    here while the node lives (its lease); the value is its address
``waiting/<node>``  wants to be in the next round (the same lease)
``round``           the newest round: its number and members, in the order of their ranks
``store/<round>``   where the store of that round listens (the lease of the node that hosts it)
``closed``          there shall be no further round (a lease of its own, so that a run id can be used again)
=================== ========================================================================================
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from elastic_train.errors import CoordinationError, CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Coordination, Delete, Guard, KeyValue, Lease, Put, Snapshot

_log = logging.getLogger(__name__)

_RETRY_S = 0.2
_CLOSED_S = 60.0  # a run id may be used again after this long, if its nodes did not leave in peace


@dataclass(frozen=True, slots=True)
class Round:
    """One formed group of nodes; a node's index is its rank."""

    number: int = 0
    members: tuple[str, ...] = ()
    revision: int = 0  # of the key that says so; 0: there was no round yet


@dataclass(frozen=True, slots=True)
class View:
    """What is on the board at one revision."""

    round: Round
    nodes: dict[str, int]  # to the revision at which each appeared
    waiting: dict[str, int]
    stores: dict[int, str]
    closed: bool

    def seniority(self, node: str) -> tuple[int, int]:
        """Return what nodes are ordered by: their rank in the round before, then who came first."""
        known = self.round.members.index(node) if node in self.round.members else len(self.round.members)
        return known, self.waiting.get(node, 0)


class Board:
    """One node's part in a rendezvous: its keys, and a watch on everybody's.

    Args:
        coordination: Closed with the board.
        run_id: Names the job.
        node: This node's name, never used before.
        lease_ttl_s: How long this node's keys outlive it.
    """

    def __init__(self, coordination: Coordination, run_id: str, node: str, lease_ttl_s: float) -> None:
        self.node = node
        self._coordination = coordination
        self._prefix = f"/elastic-train/{run_id}/rendezvous/"
        self._ttl_s = lease_ttl_s
        self._items: dict[str, KeyValue] = {}
        self._changed = threading.Condition()
        self._failure: CoordinationError | None = None
        self._closing = threading.Event()
        self._lease: Lease | None = None
        self._watch = coordination.watch(self._prefix)
        self._threads = [
            threading.Thread(target=self._follow, name="elastic-rendezvous-watch", daemon=True),
            threading.Thread(target=self._keep_alive, name="elastic-rendezvous-lease", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------ reading

    @property
    def view(self) -> View:
        """Return what is on the board now, as far as this node knows."""
        with self._changed:
            return self._see()

    def wait_for(self, condition: Callable[[View], bool], timeout_s: float) -> View | None:
        """Wait until the board fulfils a condition; None if it did not in time.

        Raises:
            CoordinationDenied: The service refuses this node.
        """
        with self._changed:
            met = self._changed.wait_for(lambda: self._failure is not None or condition(self._see()), timeout_s)
            if self._failure is not None:
                raise self._failure
            return self._see() if met else None

    # ------------------------------------------------------------------ writing

    def wait_in_line(self, address: str) -> None:
        """Show that this node lives and wants to be in the next round.

        Raises:
            CoordinationUnavailable: The service did not answer.
        """
        for key in ("nodes/", "waiting/"):
            self._put_leased(key + self.node, address)

    def seal(self, view: View, members: tuple[str, ...]) -> None:
        """Form the next round, if the board still is as it was seen; say nothing if it is not.

        Raises:
            CoordinationUnavailable: The service did not answer.
        """
        value = json.dumps({"number": view.round.number + 1, "members": members}).encode()
        guards = [Guard(self._prefix + "round", view.round.revision), Guard(self._prefix + "closed", 0)]
        guards += [Guard(f"{self._prefix}waiting/{node}", view.waiting[node], of="create") for node in members]
        leave = [Delete(f"{self._prefix}waiting/{node}") for node in members]
        try:
            self._coordination.commit([Put(self._prefix + "round", value), *leave], guards)
        except GuardFailed:
            _log.debug("round %d was formed by another node, or a member left", view.round.number + 1)

    def offer_store(self, number: int, address: str) -> None:
        """Say where the store of a round listens.

        Raises:
            CoordinationUnavailable: The service did not answer.
        """
        self._put_leased(f"store/{number}", address)

    def close_rendezvous(self) -> None:
        """Let there be no further round.

        Raises:
            CoordinationUnavailable: The service did not answer.
        """
        lease = self._coordination.grant(_CLOSED_S)
        self._coordination.commit([Put(self._prefix + "closed", self.node.encode(), lease.lease_id)])

    def leave(self) -> None:
        """Take this node off the board, and everything if it was the last one; end both threads and the connection."""
        self._closing.set()
        self._watch.close()
        for thread in self._threads:
            thread.join()
        try:
            if self._lease is not None:
                self._lease.revoke()
            if not self._coordination.list(self._prefix + "nodes/").items:
                self._coordination.commit([Delete(self._prefix, prefix=True)])
        except CoordinationError as error:
            _log.info("keys of the rendezvous are left to their leases: %s", error)
        self._coordination.close()

    # ------------------------------------------------------------------ inside

    def _see(self) -> View:
        items = {key.removeprefix(self._prefix): item for key, item in self._items.items()}
        formed = Round()
        if "round" in items:
            record = json.loads(items["round"].value)
            formed = Round(int(record["number"]), tuple(record["members"]), items["round"].mod_revision)
        below = {
            name: {key.removeprefix(name): item for key, item in items.items() if key.startswith(name)}
            for name in ("nodes/", "waiting/", "store/")
        }
        return View(
            round=formed,
            nodes={node: item.create_revision for node, item in below["nodes/"].items()},
            waiting={node: item.create_revision for node, item in below["waiting/"].items()},
            stores={int(number): item.value.decode() for number, item in below["store/"].items()},
            closed="closed" in items,
        )

    def _put_leased(self, key: str, value: str) -> None:
        for _ in range(2):
            lease = self._lease
            if lease is None:
                lease = self._lease = self._coordination.grant(self._ttl_s)
            try:
                self._coordination.commit([Put(self._prefix + key, value.encode(), lease.lease_id)])
            except LeaseExpired:  # this process was stopped for long: the others went on without it
                self._lease = None
            else:
                return
        raise CoordinationUnavailable(f"{self._prefix + key}: two leases in a row ran out at once")

    def _follow(self) -> None:
        try:
            for batch in self._watch:
                with self._changed:
                    if isinstance(batch, Snapshot):
                        self._items = {item.key: item for item in batch.items}
                    else:
                        for change in batch.changes:
                            self._take_in(change.key, change.value, change.mod_revision, change.create_revision)
                    self._changed.notify_all()
        except CoordinationError as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _take_in(self, key: str, value: bytes | None, mod_revision: int, create_revision: int) -> None:
        if value is None:
            self._items.pop(key, None)
        else:
            self._items[key] = KeyValue(key, value, create_revision, mod_revision)

    def _keep_alive(self) -> None:
        pause_s = self._ttl_s / 3
        while not self._closing.wait(pause_s):
            pause_s = self._ttl_s / 3
            lease = self._lease
            if lease is None:
                continue
            try:
                lease.renew()
            except LeaseExpired:
                _log.warning("this node's lease ran out: the others go on without it until it comes back")
                self._lease = None
            except CoordinationUnavailable as error:
                _log.warning("this node's lease was not renewed, trying again: %s", error)
                pause_s = _RETRY_S
