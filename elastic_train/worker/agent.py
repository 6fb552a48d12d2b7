"""The worker's agent: two threads that answer the controller whatever the training thread is doing.

One follows the ``world`` prefix and acknowledges; the other renews the lease and watches the training thread's
progress. The training thread reads what they know through `WorldView`-like methods and blocks only in `await_world`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import NoReturn, Protocol

from elastic_train.core.records import (
    Failure,
    Keys,
    ProbeRecord,
    Suspicion,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.errors import CoordinationError, CoordinationUnavailable, LeaseExpired, WorkerLeaving
from elastic_train.ports import Coordination, Guard, Lease, Put, Snapshot
from elastic_train.worker.progress import ProgressDeadline
from elastic_train.worker.view import SealedWorld, WorldView

_log = logging.getLogger(__name__)

_RETRY_S = 0.2
_TICK_S = 0.1  # how often the progress deadline is looked at; the lease is renewed when a third of it has passed


class Abortable(Protocol):
    """Whatever the training thread may be blocked in."""

    def abort(self) -> None:
        """Make it fail now; from any thread, idempotent."""


class Agent:
    """Speaks for one worker in the coordination service.

    Args:
        coordination: A connection of this process.
        keys: The job's keys.
        record: This worker's first record (status ``starting``).
        lease_ttl_s: How long the worker's key outlives its last renewal.
    """

    def __init__(self, coordination: Coordination, keys: Keys, record: WorkerRecord, lease_ttl_s: float) -> None:
        self._coordination = coordination
        self._keys = keys
        self._record = record
        self._lease: Lease = coordination.grant(lease_ttl_s)
        self._publishing = threading.Lock()  # orders the writes of this worker's record
        self._changed = threading.Condition()
        self._view = WorldView(record.worker_id)
        self._blocked_in: Abortable | None = None
        self._version = 0
        self._unsaid: Put | None = None  # a suspicion that nobody has heard yet
        self._closing = threading.Event()
        self.progress = ProgressDeadline()
        coordination.commit(
            [Put(keys.worker(record.worker_id), record.to_bytes(), self._lease.lease_id)],
            guards=[Guard(keys.worker(record.worker_id), 0)],
        )
        self._watch = coordination.watch(keys.world)
        self._threads = [
            threading.Thread(target=self._follow_world, name="elastic-agent-world", daemon=True),
            threading.Thread(target=self._keep_alive, name="elastic-agent-lease", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------------ asked by the training thread

    @property
    def interrupted(self) -> bool:
        """Whether the training thread must leave its world now (an unplanned change, or this worker is dismissed)."""
        return self._view.interrupted

    @property
    def planned(self) -> WorldRecord | None:
        """Return the planned proposal that is to take this world's place at a step boundary, if there is one."""
        return self._view.planned

    def may_commit(self) -> bool:
        """Say whether this worker still has the right to commit a step: its lease lives and nobody dismissed it."""
        return not self._view.dismissed and time.monotonic() < self._lease.expires_at

    def ready(self) -> None:
        """Tell the controller that the training thread stands at its first step or evaluation."""
        self._publish(status=WorkerStatus.READY)

    def acknowledge(self, membership_epoch: int, version: int) -> None:
        """Acknowledge a planned proposal: the last step of the old world is committed and its group left."""
        self._version = version
        self._publish(acknowledged=membership_epoch)

    def await_planned(self) -> WorldRecord | None:
        """Block until the proposal is known that another member announced in-band; None if it was overtaken.

        Raises:
            WorkerLeaving: This worker is dismissed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.planned is not None or self.interrupted)
            self._leave_if_dismissed()
            return self.planned

    def await_world(self, after: int) -> SealedWorld:
        """Block until a world newer than `after` that includes this worker is sealed.

        Raises:
            WorkerLeaving: The job ended, or this worker was drained or left out.
        """
        with self._changed:
            sealed = self._changed.wait_for(lambda: self._view.dismissed or self._view.sealed_after(after))
            self._leave_if_dismissed()
            if not isinstance(sealed, SealedWorld):
                raise AssertionError("woken without a world")  # noqa: TRY004 - a broken invariant, not a wrong type
            self._view.membership_epoch = sealed.record.membership_epoch
            return sealed

    def await_right_to_commit(self) -> None:
        """Block while the lease cannot be renewed (the coordination service is away); return once it is.

        Raises:
            WorkerLeaving: The lease is gone or this worker was dismissed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._view.dismissed or self.may_commit())
            self._leave_if_dismissed()

    def await_end(self) -> None:
        """Block until there is something to do for a finished worker: a change of the world, or the end of the job.

        Raises:
            WorkerLeaving: The job ended or this worker was dismissed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.interrupted or self.planned is not None)
            self._leave_if_dismissed()

    def await_dismissal(self) -> NoReturn:
        """Block until the others have gone on without this worker, which has said that it leaves.

        Raises:
            WorkerLeaving: Always.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._view.dismissed)
            raise WorkerLeaving(self._view.dismissed)

    def await_interruption(self, timeout_s: float) -> bool:
        """Wait for the news that this world is broken; return whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self.interrupted, timeout_s)

    def block_in(self, abortable: Abortable | None) -> None:
        """Name what the training thread is about to block in; abort it at once if a change is under way."""
        with self._changed:
            self._blocked_in = abortable
            interrupted = self.interrupted
        if interrupted and abortable is not None:
            abortable.abort()

    def suspect(self, detail: str, *, broken: bool, waited_s: float = 0.0) -> None:
        """Report that this world is broken or stuck."""
        membership_epoch = self._view.membership_epoch
        suspicion = Suspicion(self._record.worker_id, membership_epoch, broken, waited_s, self._version, detail)
        key = self._keys.suspicion(membership_epoch, self._record.worker_id)
        put = Put(key, suspicion.to_bytes(), self._lease.lease_id)
        self._unsaid = None if self._try_commit(put) else put

    def finish(self, status: WorkerStatus, failure: Failure | None = None) -> None:
        """Publish how the train function ended."""
        self._publish(status=status, failure=failure)

    def committed(self, version: int) -> None:
        """Remember the version of the state, for the next acknowledgement."""
        self._version = version

    def close(self) -> None:
        """Revoke the lease and end both threads."""
        self._closing.set()
        self._watch.close()
        for thread in self._threads:
            thread.join()
        try:
            self._lease.revoke()
        except CoordinationError:
            _log.debug("the lease could not be revoked; it runs out by itself")

    # ------------------------------------------------------------------ the world thread

    def _follow_world(self) -> None:
        try:
            for batch in self._watch:
                if isinstance(batch, Snapshot):
                    for item in batch.items:
                        self._apply(item.key, item.value, item.mod_revision)
                else:
                    for change in batch.changes:
                        if change.value is not None:
                            self._apply(change.key, change.value, change.mod_revision)
        except CoordinationError as error:
            self._dismiss(f"lost touch with the coordination service: {error}")

    def _apply(self, key: str, value: bytes, revision: int) -> None:
        if key == self._keys.probe:
            probe = ProbeRecord.from_bytes(value)
            if probe.number > self._record.probe:
                self._publish(probe=probe.number)
        elif key == self._keys.world:
            self._apply_world(WorldRecord.from_bytes(value), revision)

    def _apply_world(self, world: WorldRecord, revision: int) -> None:
        with self._changed:
            acknowledge = self._view.learn(world, revision)
            blocked_in = self._blocked_in if self.interrupted else None
            self._changed.notify_all()
        if blocked_in is not None:
            blocked_in.abort()
        if acknowledge:
            self._publish(acknowledged=world.membership_epoch)

    def _leave_if_dismissed(self) -> None:
        if self._view.dismissed:
            raise WorkerLeaving(self._view.dismissed)

    # ------------------------------------------------------------------ the lease thread

    def _keep_alive(self) -> None:
        renew_at = time.monotonic() + self._lease.ttl_s / 3
        while not self._closing.wait(_TICK_S):
            now = time.monotonic()
            if now >= renew_at:
                renew_at = now + (self._lease.ttl_s / 3 if self._renew() else _TICK_S)
            overdue_s = self.progress.overdue_s(now)
            if overdue_s is not None and not self.interrupted:
                self.suspect("no progress", broken=False, waited_s=overdue_s)
            elif self._unsaid is not None:
                self._say_again(self._unsaid)

    def _say_again(self, unsaid: Put) -> None:
        """Repeat a suspicion that was not written: if it was everybody's, nothing else would ever end the wait."""
        if self.interrupted or self._try_commit(unsaid):
            self._unsaid = None

    def _renew(self) -> bool:
        try:
            self._lease.renew()
        except LeaseExpired:
            self._dismiss("its lease ran out: the others have gone on without it")
        except CoordinationUnavailable as error:
            _log.warning("lease not renewed, will try again: %s", error)
            return False
        with self._changed:
            self._changed.notify_all()  # the right to commit may be back
        return True

    def _dismiss(self, reason: str) -> None:
        with self._changed:
            if self._closing.is_set():
                return
            self._view.dismiss(reason)
            blocked_in = self._blocked_in
            self._changed.notify_all()
        if blocked_in is not None:
            blocked_in.abort()

    # ------------------------------------------------------------------ writing

    def _publish(self, *, acknowledged: int = 0, **changes: object) -> None:
        with self._publishing:
            activity, since = self.progress.activity
            self._record = replace(
                self._record,
                version=self._version,
                activity=activity,
                activity_s=time.monotonic() - since,
                acknowledged=max(acknowledged, self._record.acknowledged),  # the other thread may have answered a newer
                **changes,  # type: ignore[arg-type]  # names of WorkerRecord's fields, checked by its constructor
            )
            put = Put(self._keys.worker(self._record.worker_id), self._record.to_bytes(), self._lease.lease_id)
            while not self._try_commit(put):  # what it says must be known sooner or later; the lease bounds how late
                if self._view.dismissed or self._closing.wait(_RETRY_S):
                    return

    def _try_commit(self, put: Put) -> bool:
        """Write; return False if the service did not answer."""
        try:
            self._coordination.commit([put])
        except LeaseExpired as error:
            self._dismiss(f"its record was refused: {error}")
        except CoordinationUnavailable as error:
            _log.warning("%s not written: %s", put.key, error)
            return False
        return True
