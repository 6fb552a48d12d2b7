"""The thread that writes what was staged: one save at a time, one more waiting."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass, field

from checkpointing.errors import CheckpointError, SaveAbandoned, SaveFailed, StaleFence
from checkpointing.repository import Effort, retrying
from checkpointing.settings import CheckpointInfo, Event, EventKind, Phase, Settings, Ticket
from checkpointing.staging import Arena
from checkpointing.tiers import Place
from checkpointing.writer import Hashing, Staged
from storage.errors import StorageError

Destination = tuple[Place, Staged]


@dataclass(slots=True)
class Job:
    """One save to be written.

    Attributes:
        ticket: Whom to tell.
        arena: The memory it lies in, given back at its end.
        is_released: Whether the memory was given back.
        destinations: The places it goes to, in this order, and what is written to each.
    """

    ticket: Ticket
    arena: Arena
    destinations: tuple[Destination, ...]
    is_released: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _may_not_retry: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let it wait for nothing any more."""
        self._cancelled.set()
        self._may_not_retry.set()

    def give_way(self) -> None:
        """Let it not be tried again, because a newer save waits."""
        self._may_not_retry.set()

    @property
    def is_cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self._cancelled.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait for other writers; return True at once when the save is cancelled."""
        return self._cancelled.wait(seconds)

    def pause_before_retry(self, seconds: float) -> bool:
        """Wait for the store; return True at once when the save is cancelled or a newer one waits."""
        return self._may_not_retry.wait(seconds)


class Background:
    """Write saves in a thread of their own, which begins with the first.

    Args:
        settings: See there.
        arenas: The buffers that saves are staged in: two, one for the running save and one for the waiting.
    """

    def __init__(self, settings: Settings, arenas: tuple[Arena, ...]) -> None:
        self._settings = settings
        self._free = list(arenas)
        self._changed = threading.Condition()
        self._running: Job | None = None
        self._waiting: Job | None = None
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._aside: list[threading.Thread] = []
        self.last_committed: CheckpointInfo | None = None
        self.last_staged_nbytes = 0

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing runs or waits."""
        with self._changed:
            return self._running is None and self._waiting is None

    def claim_arena(self, nbytes: int) -> Arena:
        """Return a buffer to stage the next save in; a save that only waits gives way to it."""
        with self._changed:
            self.last_staged_nbytes = nbytes
            superseded, self._waiting = self._waiting, None
            if superseded is not None:
                superseded.is_released = True
                self._free.insert(0, superseded.arena)
            arena = self._free.pop(0) if self._free else Arena()
        if superseded is not None:
            self._abandon(superseded, Phase.SUPERSEDED, "a newer save has taken its place")
        return arena

    def return_arena(self, arena: Arena) -> None:
        """Take back a buffer that is no longer in use."""
        with self._changed:
            self._free.insert(0, arena)

    def submit(self, job: Job) -> None:
        """Have a save written after the one that runs."""
        with self._changed:
            self._waiting = job
            if self._running is not None:
                self._running.give_way()
            if self._thread is None:
                # A daemon, so that a program which never closes us still ends; the exit hook waits for what is under
                # way.
                self._thread = threading.Thread(target=self._run, name="checkpoint-save", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def run_aside(self, job: Job) -> None:
        """Write a save at once, in a thread of its own, beside the one that runs."""
        thread = threading.Thread(target=self._write_and_tell, args=(job,), name="checkpoint-urgent", daemon=True)
        self._aside.append(thread)
        thread.start()

    def cancel(self) -> None:
        """Drop the waiting save, and let the running one wait for nothing any more."""
        with self._changed:
            waiting, self._waiting = self._waiting, None
            if self._running is not None:
                self._running.cancel()
            self._changed.notify_all()
        if waiting is not None:
            self._release(waiting)
            self._abandon(waiting, Phase.SUPERSEDED, "the world has changed")

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing runs or waits; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None and self._waiting is None, timeout_s)

    def take_error(self) -> BaseException | None:
        """Return the newest failure since the last call."""
        with self._changed:
            error, self._error = self._error, None
            return error

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what runs and waits, for so long at most, then end the thread."""
        if not self.wait_idle(timeout_s):
            self.cancel()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in [*self._aside, self._thread]:
            if thread is not None:
                thread.join(timeout_s)
        atexit.unregister(self.close)

    # The thread

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._write_and_tell(job)
            with self._changed:
                self._running = None
                self._changed.notify_all()

    def _write_and_tell(self, job: Job) -> None:
        try:
            self._write(job)
        except BaseException as error:  # noqa: BLE001  # a thread has nobody above it: told to whoever waits
            self._fail(job, error)
        finally:
            self._release(job)

    def _release(self, job: Job) -> None:
        """Take back the buffer of a save, the first time."""
        with self._changed:
            if not job.is_released:
                job.is_released = True
                self._free.insert(0, job.arena)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
            self._running, self._waiting = self._waiting, None
            return self._running

    def _write(self, job: Job) -> None:
        ticket = job.ticket
        ticket.phase = Phase.WRITING
        failures: list[CheckpointError] = []
        committed: list[Place] = []
        for place, staged in job.destinations:
            hashing = Hashing(staged, self._settings.chunk_nbytes)
            try:
                info = self._write_to(job, place, staged, hashing)
                if info is not None:
                    ticket.info = info
                    committed.append(place)
            except CheckpointError as error:
                failures.append(error)
                if place.is_primary or len(failures) == len(job.destinations):
                    raise
                self._tell(EventKind.FAILED, job, place, error)
            finally:
                hashing.close()
                ticket.stats.hash_s += hashing.seconds
        ticket.end(Phase.WRITTEN if ticket.info is None else Phase.COMMITTED, info=ticket.info)
        # What is left to do needs neither the staged bytes nor anybody who waits for the save.
        self._release(job)
        for place in committed:
            self._collect(job, place)

    def _write_to(self, job: Job, place: Place, staged: Staged, hashing: Hashing) -> CheckpointInfo | None:
        began = self._settings.clock()
        repository, policy = place.repository, place.tier.retention
        effort = Effort(job.ticket.stats, job.pause, job.pause_before_retry)
        try:
            done = retrying(
                lambda: repository.save(staged, hashing, policy, effort),
                staged,
                effort,
                self._settings,
                lambda error: self._tell(EventKind.RETRYING, job, place, error),
            )
        except StorageError as error:
            raise SaveFailed(f"{type(error).__name__}: {error}", step=staged.step, fence=staged.fence) from error
        place.note_saved(job.ticket.stats.staged_nbytes, job.ticket.stats.stall_s, self._settings.clock() - began)
        if done is None:
            return None
        info = CheckpointInfo(done[0], repository.name, done[1])
        if place.is_primary:
            self.last_committed = info
        self._tell(EventKind.COMMITTED, job, place)
        return info

    def _collect(self, job: Job, place: Place) -> None:
        try:
            dropped = place.repository.collector.apply(place.tier.retention, job.ticket.fence)
        except (CheckpointError, StorageError) as error:
            # The checkpoint is committed; what is not removed now is removed after the next.
            self._tell(EventKind.NOT_COLLECTED, job, place, error)
            return
        for ref in dropped:
            self._emit(Event(EventKind.DROPPED, ref.step, place.tier.name))

    # Telling

    def _fail(self, job: Job, error: BaseException) -> None:
        if isinstance(error, SaveAbandoned) or (isinstance(error, StaleFence) and job.is_cancelled):
            self._abandon(job, Phase.SUPERSEDED, str(error), error)
            return
        with self._changed:
            self._error = error
        self._refuse(job, type(error).__name__)
        job.ticket.end(Phase.FAILED, info=job.ticket.info, error=error)
        self._tell(EventKind.FAILED, job, job.destinations[-1][0], error)

    def _abandon(self, job: Job, phase: Phase, why: str, error: BaseException | None = None) -> None:
        ticket = job.ticket
        self._refuse(job, why)
        ticket.end(phase, error=error or SaveAbandoned(why, step=ticket.step, fence=ticket.fence))
        self._tell(EventKind.ABANDONED, job, job.destinations[-1][0], ticket.error)

    def _refuse(self, job: Job, why: str) -> None:
        """Tell rank 0, as another rank, that this part will not come."""
        for place, staged in job.destinations:
            try:
                place.repository.refuse(staged, why)
            except StorageError as error:
                # Rank 0 will find out by its deadline.
                self._tell(EventKind.RETRYING, job, place, error)

    def _tell(self, kind: EventKind, job: Job, place: Place, error: BaseException | None = None) -> None:
        self._emit(Event(kind, job.ticket.step, place.tier.name, error, job.ticket.stats))

    def _emit(self, event: Event) -> None:
        if self._settings.on_event is not None:
            self._settings.on_event(event)
