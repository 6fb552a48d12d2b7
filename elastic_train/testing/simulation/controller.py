"""A simulated candidate for leadership: the real core, translator, recovery and performer, driven without threads.

One effect is one moment: between two of them the process may be stopped, killed or overtaken, and a write may be
carried out and its answer lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryLease
from elastic_train.controller.election import Leadership
from elastic_train.controller.inbox import Inbox
from elastic_train.controller.performer import Performer, Surroundings
from elastic_train.controller.remains import find_remains
from elastic_train.controller.translator import Translator
from elastic_train.core.effects import Effect
from elastic_train.core.events import Event, LaunchFailed, Loss, Tick, WorkerLost
from elastic_train.core.membership import Transition, step, wake_at
from elastic_train.core.records import WorkerId
from elastic_train.core.recovery import resume
from elastic_train.core.world import JobState
from elastic_train.errors import CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Guard, LauncherSink, Put
from elastic_train.testing.simulation.kernel import Process
from elastic_train.testing.simulation.store import Batch, Subscription
from elastic_train.testing.simulation.world import LEADER_TTL_S, SimulatedWorld

_SPLIT = 0.2  # how often time passes between two effects


class CrashAfterWrite(BaseException):
    """The process died between a write and its answer."""


class SimulatedController(Process):
    """One candidate's process, with a launcher of its own.

    Args:
        world: What it shares with the others.
        name: Of this process.
    """

    def __init__(self, world: SimulatedWorld, name: str) -> None:
        super().__init__(world.kernel, name)
        self.world = world
        self.launcher = SimulatedLauncher(self)
        self.state: JobState | None = None  # while it leads
        self.unreachable_until_s = 0.0
        self.next_write = ""  # "lost": its answer will be; "crash": the process dies before the answer
        self._coordination = MemoryCoordination(world.store)
        self._pending: deque[Event] = deque()
        self._inbox = _DequeInbox(self)
        self._ends: dict[WorkerId, Event] = {}  # of our processes, over all terms
        self._effects: deque[Effect] = deque()
        self._next: JobState | None = None
        self._busy = False
        self._term = 0
        self._ticks = 0
        self._lease: MemoryLease | None = None
        self._leadership: SimulatedLeadership | None = None
        self._performer: Performer | None = None
        self._translator: Translator | None = None
        self._watch: Subscription | None = None
        self.post(world.kernel.random.random() * 0.1, self._campaign)

    @property
    def may_act(self) -> bool:
        """Say whether this process believes to lead, on a clock that tells the truth."""
        leadership = self._leadership
        if not self.alive or self.state is None or leadership is None or self.lagged:
            return False
        return self.clock() < leadership.expires_at

    # ------------------------------------------------------------------ leading

    def _campaign(self) -> None:
        if self.world.ended or self._leadership is not None:
            return
        self._close_watch()
        store, keys = self.world.store, self.world.keys
        if self.clock() < self.unreachable_until_s:
            self.post(0.2, self._campaign)
            return
        sent = self.clock()
        lease_id = store.grant(LEADER_TTL_S)
        try:
            revision = store.apply([Put(keys.leader, self.name.encode(), lease_id)], [Guard(keys.leader, 0)])
        except GuardFailed:
            store.end_lease(lease_id)
            self._watch = store.watch(self, keys.leader, self._look_for_vacancy)
            return
        guard = Guard(keys.leader, revision, of="create")
        self._leadership = SimulatedLeadership(self, guard, lease_id, sent + LEADER_TTL_S)
        self._lead(self._leadership)

    def _look_for_vacancy(self, _: Batch) -> None:
        if self.world.store.get(self.world.keys.leader) is None:
            self._close_watch()
            self.post(self.world.kernel.random.random() * 0.05, self._campaign)

    def _lead(self, leadership: SimulatedLeadership) -> None:
        world = self.world
        self._term += 1
        self._pending.clear()
        remains, snapshot, world_revision = find_remains(
            self._coordination, world.keys, frozenset(self.launcher.workers)
        )
        state = resume(remains, world.bounds, self.clock())
        if state.phase.is_terminal:
            world.ended = True
            return
        around = Surroundings(self._coordination, world.keys, self.launcher, _NoJournal(), self._inbox, self.clock)
        for record in remains.workers:
            if record.worker_id in self._ends:
                self._pending.append(self._ends[record.worker_id])
        self.state, self._busy = state, False
        world.leaders.append(self)
        self._performer = self.make_performer(around, leadership, world_revision)
        self._translator = Translator(world.keys, self.clock)
        self._translator.prime(snapshot)
        self._watch = world.store.watch(self, world.keys.root, self._hear)
        self.post(LEADER_TTL_S / 3, self._renew, self._term)
        self._pump()

    def make_performer(self, around: Surroundings, leadership: SimulatedLeadership, world_revision: int) -> Performer:
        """Return what carries out effects in this term."""
        return Performer(around, leadership, world_revision)

    def _renew(self, term: int) -> None:
        leadership = self._leadership
        if term != self._term or leadership is None:
            return
        sent = self.clock()
        if sent >= leadership.expires_at:
            self._stand_by()
        elif sent < self.unreachable_until_s:
            self.post(0.2, self._renew, term)
        elif not self.world.store.renew(leadership.lease_id, LEADER_TTL_S):
            self._stand_by()
        else:
            leadership.expires_at = sent + LEADER_TTL_S
            self.post(LEADER_TTL_S / 3, self._renew, term)

    def _stand_by(self) -> None:
        leadership, self._leadership = self._leadership, None
        self._term += 1
        self._leave_office()
        self.state = self._performer = self._translator = None
        self._effects.clear()
        self._busy = False
        self._close_watch()
        if leadership is not None:
            self.world.store.end_lease(leadership.lease_id)
        self.post(0.1, self._campaign)

    def _leave_office(self) -> None:
        if self in self.world.leaders:
            self.world.leaders.remove(self)

    def _close_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def kill(self) -> None:
        """End the process; the workers that it launched go on as orphans."""
        super().kill()
        self._leave_office()
        self.state = None
        self._close_watch()

    # ------------------------------------------------------------------ events

    def _hear(self, batch: Batch) -> None:
        if self._translator is not None:
            self._pending.extend(self._translator.translate(batch))
            self._pump()

    def on_exit(self, worker_id: WorkerId, exit_code: int | None) -> None:
        """Hear from the launcher that a worker's process has ended (None: never came up)."""
        if self.alive:
            self.post(0.002 + self.world.kernel.random.random() * 0.02, self._exited, worker_id, exit_code)

    def _exited(self, worker_id: WorkerId, exit_code: int | None) -> None:
        self.launcher.workers.discard(worker_id)
        now_s = self.clock()
        event: Event = WorkerLost(at_s=now_s, worker_id=worker_id, why=Loss.EXITED, exit_code=exit_code)
        if exit_code is None:
            event = LaunchFailed(at_s=now_s, worker_id=worker_id, detail="fork failed")
        self._ends[worker_id] = event
        self.take(event)

    def take(self, event: Event) -> None:
        """Put an event into the inbox."""
        if self.state is not None:
            self._pending.append(event)
            self._pump()

    def _pump(self) -> None:
        state = self.state
        if state is None or self._busy:
            return
        if self._pending:
            self._busy = True
            self.post(self.world.kernel.random.random() * 0.0005, self._handle, self._term)
            return
        at_s = wake_at(state, self.world.bounds)
        if at_s is not None:
            self._ticks += 1
            self.post(max(0.0, at_s - self.clock()), self._tick, self._ticks, at_s)

    def _tick(self, number: int, at_s: float) -> None:
        if number == self._ticks and not self._busy and self.state is not None:
            self._busy = True
            self._decide(Tick(at_s=max(at_s, self.clock())))

    def _handle(self, term: int) -> None:
        if term == self._term and self.state is not None:
            self._decide(self._pending.popleft())

    def decide(self, state: JobState, event: Event) -> Transition:
        """Ask the core."""
        return step(state, event, self.world.bounds)

    def _decide(self, event: Event) -> None:
        assert self.state is not None
        transition = self.decide(self.state, event)
        self._effects.extend(transition.effects)
        self._next = transition.state
        self._act(self._term)

    # ------------------------------------------------------------------ effects

    def _act(self, term: int) -> None:
        if term != self._term or self._performer is None:
            return
        while self._effects:
            if self.clock() < self.unreachable_until_s:
                self.post(0.1, self._act, term)
                return
            if not self._carry_out(self._performer, self._effects.popleft()):
                return
            if self._effects and self.world.kernel.random.random() < _SPLIT:
                self.post(self.world.kernel.random.random() * 0.003, self._act, term)
                return
        assert self._next is not None
        self.state, self._busy = self._next, False
        if self.state.phase.is_terminal:
            self.world.ended = True
        else:
            self._pump()

    def _carry_out(self, performer: Performer, effect: Effect) -> bool:
        """Perform one effect; say whether this process leads on."""
        store, fate = self.world.store, self.next_write
        if fate:
            store.after = self._after_write
        try:
            performer.perform(effect)
        except (GuardFailed, LeaseExpired, CoordinationUnavailable):
            self._stand_by()
            return False
        except CrashAfterWrite:
            self.kill()
            return False
        finally:
            store.after = None
        return True

    def _after_write(self, request: str) -> None:
        if request != "commit" or not self.next_write:
            return
        fate, self.next_write = self.next_write, ""
        if fate == "crash":
            raise CrashAfterWrite
        raise CoordinationUnavailable("the answer was lost")


class _DequeInbox(Inbox):
    """Where the performer puts what comes of its effects."""

    def __init__(self, owner: SimulatedController) -> None:
        super().__init__(owner.clock)
        self._owner = owner

    def put(self, event: Event) -> None:
        """Add an event."""
        self._owner.take(event)


class SimulatedLeadership(Leadership):
    """One term, renewed by its controller."""

    def __init__(self, owner: SimulatedController, guard: Guard, lease_id: int, expires_at: float) -> None:
        self.guard = guard
        self.lease_id = lease_id
        self.expires_at = expires_at
        self._owner = owner

    def check(self) -> None:
        """Make sure that this term may still act.

        Raises:
            LeaseExpired: Its lease ran out.
        """
        if self._owner.clock() >= self.expires_at:
            raise LeaseExpired("the controller's lease ran out")

    def wait(self, seconds: float) -> None:
        """Retry at once: a simulated outage ends before anything is tried."""

    def resign(self) -> None:
        """Leave the lease to its controller."""


class SimulatedLauncher:
    """Starts simulated workers; knows those that still run."""

    def __init__(self, owner: SimulatedController) -> None:
        self.workers: set[WorkerId] = set()
        self._owner = owner

    def start(self, sink: LauncherSink) -> None:
        """Need nothing: exits are told to the controller directly."""

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        """Start workers."""
        world = self._owner.world
        for worker_id in worker_ids:
            if world.launch_fails:
                world.launch_fails -= 1
                self._owner.on_exit(worker_id, None)
                continue
            self.workers.add(worker_id)
            world.spawn(worker_id, self._owner)

    def kill(self, worker_id: WorkerId) -> None:
        """End a worker, if it is ours."""
        if worker_id in self.workers:
            self._owner.world.workers[worker_id].kill()

    def capacity(self) -> int | None:
        """Return that it is not known."""
        return None

    def close(self) -> None:
        """Leave the workers alone."""


class _NoJournal:
    def record(self, kind: str, /, **fields: Any) -> None:
        """Forget it."""
