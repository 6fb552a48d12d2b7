"""Workers, a launcher and a nemesis around the membership core, in one thread and on one imagined clock.

The core's effects are performed on simulated workers, whose answers wait in one queue per worker until they are
delivered: in which order, between which faults, is up to the caller's `choose`. Every step checks the invariants.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace

from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import (
    Effect,
    EndWorld,
    FinishJob,
    KillWorker,
    LaunchWorkers,
    NoteMembershipEpoch,
    ProbeWorld,
    ProposeWorld,
    RememberJob,
    SealWorld,
)
from elastic_train.core.events import (
    Event,
    Loss,
    Tick,
    WorkerAcknowledged,
    WorkerAnsweredProbe,
    WorkerAppeared,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
    WorkerLost,
    WorkerReady,
    WorldPublished,
    WorldSuspected,
)
from elastic_train.core.membership import step, wake_at
from elastic_train.core.records import (
    Activity,
    ControllerRecord,
    Failure,
    Suspicion,
    WorkerId,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.core.recovery import Remains, resume
from elastic_train.core.table import TABLE
from elastic_train.core.world import JobState, Phase
from tests.unit.core.invariants import check
from tests.unit.core.simulated_worker import SimulatedWorker

Choose = Callable[[int], int]
"""Returns a number in ``range(n)``."""


class SimulatedJob:
    """A job under the nemesis; `observed` collects the transitions seen."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.now_s = 1000.0
        self.state = JobState.initial(bounds, self.now_s)
        self.workers: dict[WorkerId, SimulatedWorker] = {}
        self.world: WorldRecord | None = None  # newest record written
        self.sealed: dict[int, WorldRecord] = {}
        self.revision = 100
        self.internal: deque[Event] = deque()
        self.launches: list[float] = []
        self.reformations: list[float] = []
        self.outcome: FinishJob | None = None
        self.memo: ControllerRecord | None = None
        self.observed: Counter[tuple[Phase, str, Phase]] = Counter()
        self.appearances = 0
        self.log: list[str] = []

    # ------------------------------------------------------------------ time and delivery

    def feed(self, event: Event) -> None:
        """Give one event to the core, perform the effects, check the invariants."""
        before, transition = self.state, step(self.state, event, self.bounds)
        self.state = transition.state
        self.observed[before.phase, type(event).__name__, self.state.phase] += 1
        declared = TABLE[before.phase, type(event)].goes_to | TABLE[before.phase, Tick].goes_to | {before.phase}
        assert self.state.phase in declared, f"{before.phase} + {type(event).__name__} led to {self.state.phase}"
        if not isinstance(event, Tick) or transition.effects or transition.reason:
            led_to = f"{self.state.phase}: {transition.reason} {transition.effects}"
            self.log.append(f"{self.now_s:9.3f} {before.phase} + {event} -> {led_to}")
            assert transition.reason, f"{event} was decided without a reason"
        for effect in transition.effects:
            self._perform(effect)
        self.check(before)

    def tick(self) -> bool:
        """Go to the moment the core asked to be woken at; False if it did not ask."""
        at_s = wake_at(self.state, self.bounds)
        if at_s is None:
            return False
        self.now_s = max(self.now_s, at_s)
        self.feed(Tick(at_s=self.now_s))
        again = wake_at(self.state, self.bounds)
        assert again is None or again > self.now_s, f"asked to be woken in the past: {self.state}"
        return True

    def deliver(self, choose: Choose) -> bool:
        """Deliver one event that waits; False if none does."""
        if self.internal:
            self.feed(self.internal.popleft())
            return True
        talking = [worker for worker in self.workers.values() if worker.said]
        if not talking:
            return False
        worker = talking[choose(len(talking))]
        event = worker.said.popleft()
        if isinstance(event, WorkerLost) and event.why is Loss.LEASE:
            worker.has_record = False
        self.feed(_restamped(event, self.now_s))
        return True

    def pass_time(self, seconds: float) -> None:
        """Let time pass, waking the core whenever it asked for it."""
        until_s = self.now_s + seconds
        while not self.state.phase.is_terminal:
            at_s = wake_at(self.state, self.bounds)
            if at_s is None or at_s > until_s:
                break
            self.tick()
        self.now_s = max(self.now_s, until_s)

    def live(self, seconds: float) -> None:
        """Let time pass while everybody goes on and is heard at once."""
        until_s = self.now_s + seconds
        while not self.state.phase.is_terminal:
            while self.deliver(first) or self.progress(first):
                pass
            at_s = wake_at(self.state, self.bounds)
            if at_s is None or at_s > until_s:
                break
            self.tick()
        self.now_s = max(self.now_s, until_s)

    # ------------------------------------------------------------------ what workers do by themselves

    def progress(self, choose: Choose) -> bool:
        """Let one worker go on: start, become ready, or come to a step boundary; False if none can."""
        moves = [move for worker in self.workers.values() for move in self._moves(worker)]
        if self._at_boundary():
            moves.append(self._cross_boundary)
        if not moves:
            return False
        moves[choose(len(moves))]()
        return True

    def _moves(self, worker: SimulatedWorker) -> list[Callable[[], None]]:
        if not worker.alive or worker.stopped or worker.ready:
            return []

        def go_on() -> None:
            self.appearances += 1
            worker.appeared, worker.has_record = self.appearances, True
            worker.said.append(WorkerAppeared(at_s=0, worker_id=worker.worker_id))
            worker.said.append(WorkerReady(at_s=0, worker_id=worker.worker_id))
            worker.ready, worker.status = True, WorkerStatus.READY

        return [go_on]

    def _at_boundary(self) -> bool:
        world, old = self.world, self._current()
        if world is None or old is None or world.stage != "proposed" or not world.planned or not self._trains(old):
            return False
        return any(self.workers[member].acknowledged < world.membership_epoch for member in old.members)

    def _current(self) -> WorldRecord | None:
        return self.sealed[max(self.sealed)] if self.sealed else None

    def _trains(self, world: WorldRecord | None) -> bool:
        """Say whether all members of a sealed world are there and have not left it."""
        if world is None:
            return False
        members = [self.workers[member] for member in world.members]
        return all(w.alive and not w.stopped and w.sealed == world.membership_epoch for w in members)

    def _cross_boundary(self) -> None:
        world, old = self.world, self._current()
        assert world is not None
        assert old is not None
        for member in old.members:
            worker = self.workers[member]
            if worker.acknowledged >= world.membership_epoch:
                continue
            worker.acknowledged = world.membership_epoch
            if member in world.members:
                worker.said.append(self._acknowledgement(worker, world))
            else:
                worker.status = WorkerStatus.LEAVING
                worker.said.append(WorkerLeft(at_s=0, worker_id=member))

    def _acknowledgement(self, worker: SimulatedWorker, world: WorldRecord) -> Event:
        worker.acknowledged = world.membership_epoch
        return WorkerAcknowledged(
            at_s=0, worker_id=worker.worker_id, membership_epoch=world.membership_epoch, version=7
        )

    # ------------------------------------------------------------------ faults

    def kill(self, worker: SimulatedWorker, why: Loss = Loss.EXITED, code: int | None = -9) -> None:
        """End a worker's process; what it said before may or may not be heard first."""
        if not worker.alive:
            return
        worker.alive = False
        worker.said.append(
            WorkerLost(at_s=0, worker_id=worker.worker_id, why=why, exit_code=code if why is Loss.EXITED else None)
        )
        if why is Loss.EXITED:
            worker.said.append(WorkerLost(at_s=0, worker_id=worker.worker_id, why=Loss.LEASE))

    def expire_leases(self) -> None:
        """Let the leases of stopped workers run out."""
        for worker in self.workers.values():
            if worker.alive and worker.stopped and not worker.said:
                worker.said.append(WorkerLost(at_s=0, worker_id=worker.worker_id, why=Loss.LEASE))

    def complain(self) -> bool:
        """Let a live member of a world that cannot go on say so; False if all is well."""
        world = self._current()
        if world is None or self.world is None or self.world.stage == "ended":
            return False
        members = [self.workers[member] for member in world.members]
        able = [
            w for w in members if w.alive and not w.stopped and not w.finished and w.sealed == world.membership_epoch
        ]
        reporter = next((worker for worker in able if worker.acknowledged <= world.membership_epoch), None)
        if reporter is None or self._trains(world):
            return False
        if self.now_s < reporter.complains_s:
            return False
        reporter.complains_s = self.now_s + 3.0
        broken = any(not worker.alive for worker in members)
        suspicion = Suspicion(reporter.worker_id, world.membership_epoch, broken, 3.0, 7, "connection reset")
        reporter.said.append(WorldSuspected(at_s=0, suspicion=suspicion))
        return True

    def breaks(self, reporter: SimulatedWorker) -> None:
        """Let a member report a broken collective though nobody is gone."""
        suspicion = Suspicion(reporter.worker_id, reporter.sealed, True, 0.0, 7, "connection reset")
        reporter.said.append(WorldSuspected(at_s=0, suspicion=suspicion))

    def fail(self, worker: SimulatedWorker) -> None:
        """Let user code raise in a worker."""
        failure = Failure("ValueError", "loss is nan", "", membership_epoch=worker.sealed)
        worker.status = WorkerStatus.FAILED
        worker.said.append(WorkerFailed(at_s=0, worker_id=worker.worker_id, failure=failure))
        self.kill(worker, code=1)

    def finish_world(self) -> None:
        """Let the train function return in every member of a world that trains."""
        world = self._current()
        if self._trains(world):
            assert world is not None
            for member in world.members:
                worker = self.workers[member]
                if not worker.finished:
                    worker.finished, worker.status = True, WorkerStatus.FINISHED
                    worker.said.append(WorkerFinished(at_s=0, worker_id=member))

    def join(self) -> None:
        """Let somebody start a worker by hand."""
        worker_id = WorkerId(f"x{len(self.workers):04d}")
        self.workers[worker_id] = SimulatedWorker(worker_id, external=True)

    def take_over(self) -> None:
        """Let the controller die, and another one lead from what is written down."""
        self.internal.clear()
        known = sorted((w for w in self.workers.values() if w.has_record), key=lambda w: w.appeared)
        for worker in self.workers.values():  # what records say is read from them; exits and ended leases are told anew
            worker.said = deque(event for event in worker.said if isinstance(event, WorkerLost))
        remains = Remains(
            world=self.world,
            fence=self.revision if self.world is not None and self.world.stage == "sealed" else 0,
            workers=tuple(worker.record for worker in known),
            memo=self.memo,
            ours=frozenset(w.worker_id for w in self.workers.values() if not w.external and (w.alive or w.said)),
        )
        self.state = resume(remains, self.bounds, self.now_s)
        self.log.append(f"{self.now_s:9.3f} another controller takes over: {self.state.phase}")
        self.check(self.state)

    def request(self, event: Event) -> None:
        """Ask something of the controller."""
        self.internal.append(event)

    # ------------------------------------------------------------------ effects

    def _perform(self, effect: Effect) -> None:
        match effect:
            case LaunchWorkers(worker_ids):
                self._launch(worker_ids)
            case KillWorker(worker_id):
                self._end(self.workers[worker_id])
            case ProposeWorld(record) | EndWorld(record):
                self._publish(record)
            case SealWorld(record):
                self._seal(record)
            case ProbeWorld(record):
                self._probe(record.number)
            case RememberJob(record):
                self.memo = record
            case FinishJob():
                self.outcome = effect
            case NoteMembershipEpoch(change):
                assert change.took_s >= 0

    def _launch(self, worker_ids: tuple[WorkerId, ...]) -> None:
        for worker_id in worker_ids:
            assert worker_id not in self.workers, f"{worker_id} is used twice"
            self.workers[worker_id] = SimulatedWorker(worker_id)
            self.launches.append(self.now_s)

    def _end(self, worker: SimulatedWorker) -> None:
        if not worker.external:
            worker.stopped = False
            self.kill(worker)

    def _publish(self, record: WorldRecord) -> None:
        self.world = record
        for worker in list(self.workers.values()):
            if worker.alive and not worker.stopped:
                self._react(worker, record)

    def _seal(self, record: WorldRecord) -> None:
        assert record.membership_epoch not in self.sealed, "two worlds of one membership epoch"
        self.sealed[record.membership_epoch] = record
        self.reformations.append(self.now_s)
        self.revision += 3
        self.internal.append(
            WorldPublished(at_s=self.now_s, membership_epoch=record.membership_epoch, fence=self.revision)
        )
        self._publish(record)

    def _probe(self, number: int) -> None:
        for worker in self.workers.values():
            if worker.alive and not worker.stopped:
                self._answer_probe(worker, number)

    def _answer_probe(self, worker: SimulatedWorker, number: int) -> None:
        worker.probed = number
        activity = Activity.IDLE if worker.finished else Activity.WAITING
        worker.said.append(
            WorkerAnsweredProbe(at_s=0, worker_id=worker.worker_id, probe=number, activity=activity, activity_s=1.0)
        )

    def _react(self, worker: SimulatedWorker, record: WorldRecord) -> None:
        member, took_part = worker.worker_id in record.members, worker.sealed > 0
        if record.stage == "ended" or (
            not member and took_part and not (record.stage == "proposed" and record.planned)
        ):
            self._walk_out(worker)
        elif not member:
            return
        elif record.stage == "sealed":
            worker.sealed = record.membership_epoch
        elif not record.planned or not took_part:
            worker.said.append(self._acknowledgement(worker, record))

    def _walk_out(self, worker: SimulatedWorker) -> None:
        worker.status = WorkerStatus.LEAVING
        worker.said.append(WorkerLeft(at_s=0, worker_id=worker.worker_id))
        self.kill(worker, code=0)

    def wake(self, worker: SimulatedWorker) -> None:
        """Continue a stopped worker: it sees the newest world now."""
        if worker.stopped and worker.alive:
            worker.stopped = False
            if self.world is not None and worker.ready:
                self._react(worker, self.world)

    # ------------------------------------------------------------------ invariants

    def check(self, before: JobState) -> None:
        """Check what must hold after every step."""
        check(before, self.state, self.bounds)
        assert not self.state.phase.is_terminal or self.outcome is not None

    @property
    def is_healthy(self) -> bool:
        """Whether training goes on: a sealed world, all of whose members are there."""
        return self.state.phase is Phase.RUNNING and self._trains(self._current())


def _restamped(event: Event, at_s: float) -> Event:
    return replace(event, at_s=at_s)


def first(_: int) -> int:
    """Choose the first of anything."""
    return 0
