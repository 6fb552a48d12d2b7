"""A simulated worker: the agent (lease, record, view of the worlds) around a training thread.

The agent's rules are the real ones where they are pure (`WorldView`, `ProgressDeadline`, the records); what the real
agent does with threads and waits is done here with continuations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from elastic_train.core.records import ProbeRecord, Suspicion, WorkerId, WorkerRecord, WorkerStatus, WorldRecord
from elastic_train.ports import Put, Snapshot
from elastic_train.testing.simulation.invariants import decode_world
from elastic_train.testing.simulation.kernel import Process
from elastic_train.testing.simulation.store import Batch, Subscription
from elastic_train.testing.simulation.training import Training
from elastic_train.testing.simulation.world import WORKER_TTL_S, Owner, SimulatedWorld
from elastic_train.worker.progress import ProgressDeadline
from elastic_train.worker.view import WorldView

_RETRY_S = 0.2
_TICK_S = 0.5


class SimulatedWorker(Training):
    """One worker process.

    Args:
        world: What it shares with the others.
        worker_id: Its name.
        owner: Whose launcher started it.
    """

    def __init__(self, world: SimulatedWorld, worker_id: WorkerId, owner: Owner) -> None:
        super().__init__(world, worker_id)
        self.owner = owner
        self.process = Process(world.kernel, worker_id)
        self.view = WorldView(worker_id)
        self.progress = ProgressDeadline(self.process.clock)
        self.record = WorkerRecord(worker_id, WorkerStatus.STARTING)
        self.lease_id = 0
        self.exited = False
        self._expires_at = 0.0
        self._renew_at = 0.0
        self._renewing = False
        self._watch: Subscription | None = None
        self._outbox: list[bytes] = []
        self._unsaid: Put | None = None  # a suspicion that was not written yet
        self._waiting_for: Callable[[], bool] | None = None
        random = world.kernel.random
        self.process.post(0.05 + random.random() * 0.2, self._connect)

    # ------------------------------------------------------------------ life

    def _connect(self) -> None:
        world = self.world
        sent = self.process.clock()

        def granted(lease_id: int) -> None:
            self.lease_id, self._expires_at = lease_id, sent + WORKER_TTL_S
            self._renew_at = sent + WORKER_TTL_S / 3
            self._publish()
            self._watch = world.store.watch(self.process, world.keys.world, self._hear)
            self.process.post(_TICK_S, self._tick)
            self.process.post(world.kernel.random.random() * 0.4, self._stand_ready)

        world.store.ask(self.process, lambda: world.store.grant(WORKER_TTL_S), granted)

    def _stand_ready(self) -> None:
        self._publish(status=WorkerStatus.READY)
        self.rejoin()

    def kill(self, exit_code: int = -9) -> None:
        """End the process; its launcher sees it."""
        if not self.process.alive:
            return
        self.process.kill()
        self.exited = True
        if self.group is not None:
            self.group.leave(self.worker_id)
        if self._watch is not None:
            self._watch.close()
        self.owner.on_exit(self.worker_id, exit_code)

    def leave_job(self) -> None:
        """Give the lease back and exit by oneself."""
        store, lease_id = self.world.store, self.lease_id
        self.kill(0)
        self.world.kernel.after(store.latency_s(), store.end_lease, lease_id)

    def reset_connection(self) -> None:
        """Lose the connections to the other members, though nobody is gone."""
        if self.group is not None:
            self.group.leave(self.worker_id)
            if self._in_group:
                self._interrupt("connection reset by peer")

    def describe(self) -> str:
        """Return where it stands, for a person."""
        process, view = self.process, self.view
        activity, since_s = self.progress.activity
        return (
            f"{self.worker_id}: {self.record.status}, version {self.version}, in {view.membership_epoch}, "
            f"acknowledged {self.record.acknowledged}, {activity} for {process.clock() - since_s:.1f} s, "
            f"in group: {self._in_group}, interrupted: {view.interrupted}, dismissed: {view.dismissed!r}, "
            f"lease held: {self.world.store.holds(self.lease_id)}, stopped: {process.stopped}"
        )

    # ------------------------------------------------------------------ what the training thread asks

    @property
    def may_commit(self) -> bool:
        """Say whether this worker has the right to commit a step."""
        return not self.view.dismissed and self.process.clock() < self._expires_at

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Let `condition` (which acts, and says so, when its time has come) be asked now and after every change."""
        self._waiting_for = condition
        self._ask_again()

    def _ask_again(self) -> None:
        condition = self._waiting_for
        if condition is None:
            return
        if self.view.dismissed:
            self.leave_job()
            return
        self._waiting_for = None
        if not condition():
            self._keep_waiting(condition)

    def _keep_waiting(self, condition: Callable[[], bool]) -> None:
        if self._waiting_for is None and self.process.alive:
            self._waiting_for = condition

    def suspect(self, detail: str, *, broken: bool, waited_s: float = 0.0) -> None:
        """Report that this world is broken or stuck."""
        number = self.view.membership_epoch
        suspicion = Suspicion(self.worker_id, number, broken, waited_s, self.version, detail)
        self._say(Put(self.world.keys.suspicion(number, self.worker_id), suspicion.to_bytes(), self.lease_id))

    def _say(self, put: Put) -> None:
        self._unsaid = put

        def answered(verdict: str) -> None:
            if verdict != "lost" and self._unsaid is put:
                self._unsaid = None

        self.world.store.request(self.process, [put], answered)

    def acknowledge(self, membership_epoch: int) -> None:
        """Acknowledge a proposal."""
        self._publish(acknowledged=max(membership_epoch, self.record.acknowledged))

    def finish(self, status: WorkerStatus) -> None:
        """Publish how the train function ended."""
        self._publish(status=status)

    # ------------------------------------------------------------------ the world thread

    def _hear(self, batch: Batch) -> None:
        items = batch.items if isinstance(batch, Snapshot) else batch.changes
        for item in items:
            if item.value is None:
                continue
            if item.key == self.world.keys.world:
                self._learn(decode_world(item.value), item.mod_revision)
            elif item.key == self.world.keys.probe:
                probe = ProbeRecord.from_bytes(item.value)
                if probe.number > self.record.probe:
                    self._publish(probe=probe.number)

    def _learn(self, record: WorldRecord, revision: int) -> None:
        acknowledge = self.view.learn(record, revision)
        self._changed()
        if acknowledge and self.process.alive:
            self.acknowledge(record.membership_epoch)

    def _changed(self) -> None:
        if self.view.interrupted:
            self.abort()
        self._ask_again()

    def _dismiss(self, reason: str) -> None:
        self.view.dismiss(reason)
        self._changed()

    # ------------------------------------------------------------------ the lease thread

    def _tick(self) -> None:
        now = self.process.clock()
        if now >= self._renew_at and not self._renewing:
            self._renew(now)
        waited_s = self.progress.overdue_s(now)
        if waited_s is not None and not self.view.interrupted:
            self.suspect("no progress", broken=False, waited_s=waited_s)
        elif self._unsaid is not None and not self.view.interrupted:
            self._say(self._unsaid)
        self.process.post(_TICK_S, self._tick)

    def _renew(self, sent: float) -> None:
        if sent >= self._expires_at:
            self._dismiss("its lease ran out")
            return
        store, world = self.world.store, self.world
        self._renewing = True
        cut = store.lose(self.process, ()) != ""

        def answered(held: bool | None) -> None:
            self._renewing = False
            if held is None:
                self._renew_at = self.process.clock() + _TICK_S
            elif held:
                self._expires_at, self._renew_at = sent + WORKER_TTL_S, self.process.clock() + WORKER_TTL_S / 3
                self._ask_again()
            else:
                self._dismiss("its lease ran out: the others have gone on without it")

        question: Callable[[], Any] = lambda: None if cut else store.renew(self.lease_id, WORKER_TTL_S)  # noqa: E731 - one of two answers
        world.store.ask(self.process, question, answered)

    # ------------------------------------------------------------------ writing

    def _publish(self, **changes: Any) -> None:
        activity, since = self.progress.activity
        spent_s = self.process.clock() - since
        self.record = replace(self.record, version=self.version, activity=activity, activity_s=spent_s, **changes)
        self._outbox.append(self.record.to_bytes())
        if len(self._outbox) == 1:
            self._send()

    def _send(self) -> None:
        put = Put(self.world.keys.worker(self.worker_id), self._outbox[0], self.lease_id)
        self.world.store.request(self.process, [put], self._sent)

    def _sent(self, verdict: str) -> None:
        if verdict == "lost":
            self.process.post(_RETRY_S, self._send)
        elif verdict == "lease":
            self._dismiss("its record was refused: its lease is gone")
        else:
            self._outbox.pop(0)
            if self._outbox:
                self._send()
