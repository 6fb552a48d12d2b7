"""One controller at a time: whoever holds the job's ``leader`` key, which is attached to a lease.

The key's create_revision names the term; every write of the controller is guarded by it, so that one that lost its
lease without noticing writes nothing (etcd locks alone do not fence: https://jepsen.io/analyses/etcd-3.4.3).
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable

from elastic_train.core.records import Keys
from elastic_train.errors import CoordinationError, CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Coordination, Guard, Lease, Put, Snapshot, Watch

_log = logging.getLogger(__name__)


class Leadership:
    """One term; renews its lease in a thread until it is resigned or lost.

    Args:
        guard: What every write of this term is guarded by.
        lease: Holds the leader key.
        clock: Monotonic seconds; the lease's deadline is on it.
        on_lost: Called once, from the renewing thread, when the lease ran out.
    """

    def __init__(
        self,
        guard: Guard,
        lease: Lease,
        clock: Callable[[], float],
        on_lost: Callable[[LeaseExpired], None],
    ) -> None:
        self.guard = guard
        self._lease = lease
        self._clock = clock
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="elastic-controller-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that this term may still act.

        Raises:
            LeaseExpired: Its lease ran out, counted from before the last renewal was sent.
        """
        if self._clock() >= self._lease.expires_at:
            raise LeaseExpired("the controller's lease ran out: another candidate may lead by now")

    def wait(self, seconds: float) -> None:
        """Pause for a retry; return at once when the term ends."""
        self._ended.wait(seconds)

    def resign(self) -> None:
        """End the term: the leader key is deleted at once, or with its lease if the service does not answer."""
        self._ended.set()
        self._thread.join()
        try:
            self._lease.revoke()
        except CoordinationError as error:
            _log.debug("the controller's lease was not revoked, it runs out by itself: %s", error)

    def _renew(self) -> None:
        pause_s = self._lease.ttl_s / 3
        while not self._ended.wait(pause_s):
            pause_s = self._lease.ttl_s / 3
            try:
                self._lease.renew()
            except CoordinationUnavailable as error:
                _log.warning("the controller's lease was not renewed, trying again: %s", error)
                pause_s = min(pause_s, 0.2)
            except LeaseExpired as error:
                self._on_lost(error)
                return
            if self._clock() >= self._lease.expires_at:
                self._on_lost(LeaseExpired("the controller's lease could not be renewed in time"))
                return


class Candidate:
    """Campaigns for a job's leader key, again and again if need be.

    Args:
        coordination: Where the key is.
        keys: The job's keys.
        name: Of this candidate, for people.
        lease_ttl_s: How long leadership outlives the leader.
        clock: Monotonic seconds.
    """

    def __init__(
        self, coordination: Coordination, keys: Keys, name: str, lease_ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._coordination = coordination
        self._keys = keys
        self._name = name
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock
        self._withdrawn = threading.Event()
        self._watch: Watch | None = None

    def campaign(self, on_lost: Callable[[LeaseExpired], None]) -> Leadership | None:
        """Wait until nobody leads, and lead; None if this candidate was withdrawn meanwhile.

        Raises:
            CoordinationUnavailable: The service did not answer.
            CoordinationDenied: The service refuses this candidate.
        """
        while not self._withdrawn.is_set():
            leadership = self.try_once(on_lost)
            if leadership is not None:
                return leadership
            self._await_vacancy()
        return None

    def try_once(self, on_lost: Callable[[LeaseExpired], None]) -> Leadership | None:
        """Lead if nobody does.

        Raises:
            CoordinationUnavailable: The service did not answer.
            CoordinationDenied: The service refuses this candidate.
        """
        lease = self._coordination.grant(self._lease_ttl_s)
        ballot = f"{self._name} {uuid.uuid4().hex}".encode()
        put = Put(self._keys.leader, ballot, lease.lease_id)
        try:
            revision = self._coordination.commit([put], [Guard(self._keys.leader, 0)])
        except (GuardFailed, CoordinationUnavailable) as error:
            held = self._coordination.get(self._keys.leader)
            if held is None or held.value != ballot:  # else: it was written, and the answer was lost
                self._give_back(lease)
                if isinstance(error, CoordinationUnavailable):
                    raise
                return None
            revision = held.create_revision
        return Leadership(Guard(self._keys.leader, revision, of="create"), lease, self._clock, on_lost)

    @property
    def is_withdrawn(self) -> bool:
        """Whether this candidate will not lead again."""
        return self._withdrawn.is_set()

    def wait(self, seconds: float) -> None:
        """Pause for a retry; return at once when this candidate is withdrawn."""
        self._withdrawn.wait(seconds)

    def withdraw(self) -> None:
        """Let a campaign under way, and every later one, return None; from any thread."""
        self._withdrawn.set()
        watch = self._watch
        if watch is not None:
            watch.close()

    def _await_vacancy(self) -> None:
        watch = self._watch = self._coordination.watch(self._keys.leader)
        if self._withdrawn.is_set():
            watch.close()
        try:
            for batch in watch:
                last = batch.items[-1:] if isinstance(batch, Snapshot) else batch.changes[-1:]
                if not any(item.value is not None for item in last):
                    return
        finally:
            watch.close()

    def _give_back(self, lease: Lease) -> None:
        try:
            lease.revoke()
        except CoordinationError as error:
            _log.debug("a lease was not revoked, it runs out by itself: %s", error)
