"""The control loop: what happens goes in, what is decided is journaled and done."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from elastic_train.controller.election import Candidate, Leadership
from elastic_train.controller.inbox import Inbox
from elastic_train.controller.observer import Observer, launcher_event
from elastic_train.controller.performer import Journal, Performer, Surroundings
from elastic_train.controller.remains import find_remains
from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import Effect, FinishJob, MembershipChange
from elastic_train.core.events import Event, Tick
from elastic_train.core.membership import Transition, step, wake_at
from elastic_train.core.records import Keys, WorkerId
from elastic_train.core.recovery import outcome, resume, unheard
from elastic_train.core.world import JobState, Phase
from elastic_train.errors import CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Coordination, Launcher, WorkerExited, WorkerStarted

_log = logging.getLogger(__name__)

_RETRY_S = 0.5


class Controller:
    """Leads a job to its end, or stands by until the leader is gone.

    `run` blocks; everything else may be called from any thread. Whoever composes this starts the launcher with
    `on_launcher_news` as its sink, and closes it after `run`.

    Args:
        coordination: Where the job's keys are.
        keys: The job's keys.
        launcher: Starts and ends workers; for a job whose workers others start, one that does neither.
        journal: Gets every event, decision and membership epoch.
        bounds: What the decisions are made by.
        name: Of this candidate, for people.
        lease_ttl_s: How long leadership outlives this process.
        outage_s: How long the coordination service may be away, once this controller has led.
        clock: Monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - keyword-only parts of one composition
        self,
        *,
        coordination: Coordination,
        keys: Keys,
        launcher: Launcher,
        journal: Journal,
        bounds: Bounds,
        name: str,
        lease_ttl_s: float = 10.0,
        outage_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds = bounds
        self._clock = clock
        self._outage_s = outage_s
        self._journal = journal
        self._inbox = Inbox(clock)
        self._around = Surroundings(coordination, keys, launcher, journal, self._inbox, clock)
        self._candidate = Candidate(coordination, keys, name, lease_ttl_s, clock)
        self._processes = _Processes()
        self.state: JobState = JobState.initial(bounds, clock())
        """The newest state; replaced whole, so that any thread may read it."""
        self.history: tuple[MembershipChange, ...] = ()
        """Every membership epoch that this controller sealed."""

    # ------------------------------------------------------------------ from any thread

    def submit(self, event: Event) -> None:
        """Tell the controller of something that neither keys nor launcher would tell it."""
        self._inbox.put(event)

    def on_launcher_news(self, news: WorkerStarted | WorkerExited) -> None:
        """Take what the launcher has to say: the launcher's sink."""
        event = launcher_event(news, self._clock())
        self._processes.note(news.worker_id, event)
        if isinstance(news, WorkerExited):
            self._journal.record(
                "worker_exited", worker_id=news.worker_id, exit_code=news.exit_code, detail=news.detail
            )
        if event is not None:
            self._inbox.put(event)

    def abandon(self) -> None:
        """Let `run` return None without ending the job: another candidate takes over."""
        self._candidate.withdraw()
        self._inbox.fail(_Abandoned())

    # ------------------------------------------------------------------ the loop

    def run(self) -> FinishJob | None:
        """Lead the job until it ends, and return how it ended; None if it was abandoned.

        A term that is lost (its lease ran out, somebody else leads) is followed by another campaign.

        Raises:
            CoordinationUnavailable: The service did not answer at first, or was away for longer than `outage_s`.
            CoordinationDenied: The service refuses this controller.
        """
        leadership = self._candidate.campaign(on_lost=self._inbox.fail)
        while leadership is not None:
            try:
                return self._serve(leadership)
            except (GuardFailed, LeaseExpired, CoordinationUnavailable) as error:
                _log.warning("leadership lost, standing by: %s", error)
                self._journal.record("leadership_lost", reason=str(error))
            except _Abandoned:
                return None
            finally:
                leadership.resign()
            leadership = self._campaign_again()
        return None

    def _campaign_again(self) -> Leadership | None:
        """Campaign after a lost term, for as long as the coordination service may be away."""
        give_up_s = self._clock() + self._outage_s
        while True:
            try:
                return self._candidate.campaign(on_lost=self._inbox.fail)
            except CoordinationUnavailable:
                if self._clock() >= give_up_s:
                    raise
                self._candidate.wait(_RETRY_S)

    def _serve(self, leadership: Leadership) -> FinishJob:
        """Serve one term."""
        self._inbox.clear()  # what a term before this one left unread
        if self._candidate.is_withdrawn:
            raise _Abandoned
        alive = self._processes.alive()
        remains, snapshot, world_revision = find_remains(self._around.coordination, self._around.keys, alive)
        self.state = state = resume(remains, self._bounds, self._clock())
        if state.phase.is_terminal:
            return outcome(remains)
        self._journal.record("leadership_won", phase=state.phase, membership_epoch=state.membership_epoch)
        for exited in self._processes.exits(record.worker_id for record in remains.workers):
            self._inbox.put(exited)  # the record outlives its process by a lease
        for failed in unheard(remains, self._clock()):
            self._inbox.put(failed)
        performer = Performer(self._around, leadership, world_revision)
        observer = Observer(self._around.coordination, self._around.keys, snapshot, self._inbox, self._clock)
        try:
            return self._loop(state, performer)
        finally:
            observer.close()

    def _loop(self, state: JobState, performer: Performer) -> FinishJob:
        while not state.phase.is_terminal:
            event = self._inbox.next(wake_at(state, self._bounds))  # a Tick if nothing came by then
            transition = step(state, event, self._bounds)  # pure: core/membership.py
            self._record(state, event, transition)  # durable before acting
            for effect in transition.effects:
                performer.perform(effect)  # results come back as events
            self.state = state = transition.state
            self.history = tuple(performer.history)
        assert performer.outcome is not None
        return performer.outcome

    def _record(self, before: JobState, event: Event, transition: Transition) -> None:
        after, reason = transition.state, transition.reason
        if isinstance(event, Tick) and not transition.effects and after.phase is before.phase:
            return
        self._journal.record(
            "transition",
            event=_described(event),
            phase=after.phase,
            reason=reason,
            effects=[_described(effect) for effect in transition.effects],
        )
        if after.phase is not before.phase:
            if after.phase is Phase.PAUSED:
                self._journal.record("job_paused", reason=reason)
            elif after.phase is Phase.RUNNING and before.short_s is not None and before.world is not None:
                self._journal.record("job_resumed", reason=reason)


class _Processes:
    """What the launcher said of its processes, over all terms."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[WorkerId, Event | None] = {}  # None: runs

    def note(self, worker_id: WorkerId, end: Event | None) -> None:
        """Note that a process runs, or how it ended."""
        with self._lock:
            self._ends[worker_id] = end

    def alive(self) -> frozenset[WorkerId]:
        """Return whose processes run."""
        with self._lock:
            return frozenset(worker_id for worker_id, end in self._ends.items() if end is None)

    def exits(self, worker_ids: Iterable[WorkerId]) -> list[Event]:
        """Return how those of these workers ended that did."""
        with self._lock:
            ends = [self._ends.get(worker_id) for worker_id in worker_ids]
        return [end for end in ends if end is not None]


class _Abandoned(BaseException):
    """This controller was asked to leave without ending the job."""


def _described(item: Event | Effect) -> dict[str, Any]:
    return {"type": type(item).__name__, **asdict(item)}
