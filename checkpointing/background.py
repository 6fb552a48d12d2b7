"""The thread that writes what was staged: one save at a time, one more waiting."""

from __future__ import annotations

import atexit
import threading
from dataclasses import dataclass, field

from checkpointing.core.keep import RetentionPolicy
from checkpointing.errors import CheckpointError, SaveAbandoned, SaveFailed, StaleFence
from checkpointing.repository import Effort, Repository, retrying
from checkpointing.settings import CheckpointInfo, Event, EventKind, Phase, Settings, Ticket
from checkpointing.staging import Arena
from checkpointing.writer import Staged
from storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Destination:
    """One store that a save goes to.

    Attributes:
        repository: The store.
        retention: What is kept there.
        staged: What is written there.
        is_primary: Whether the save fails when this fails.
    """

    repository: Repository
    retention: RetentionPolicy
    staged: Staged
    is_primary: bool = True


@dataclass(slots=True)
class Job:
    """One save to be written.

    Attributes:
        ticket: Whom to tell.
        arena: The memory it lies in, given back at its end.
        destinations: Where it goes, in this order.
    """

    ticket: Ticket
    arena: Arena
    destinations: tuple[Destination, ...]
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let it wait for nothing any more."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Tell whether it was cancelled."""
        return self._cancelled.is_set()

    def pause(self, seconds: float) -> bool:
        """Wait; return True at once when the save is cancelled."""
        return self._cancelled.wait(seconds)


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
        self.last_committed: CheckpointInfo | None = None

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing runs or waits."""
        with self._changed:
            return self._running is None and self._waiting is None

    def claim_arena(self) -> Arena:
        """Return a buffer to stage the next save in; a save that only waits gives way to it."""
        with self._changed:
            superseded, self._waiting = self._waiting, None
            arena = superseded.arena if superseded is not None else self._free.pop(0)
        if superseded is not None:
            self._abandon(superseded, Phase.SUPERSEDED, "a newer save has taken its place")
        return arena

    def return_arena(self, arena: Arena) -> None:
        """Take back a buffer in which nothing was staged after all."""
        with self._changed:
            self._free.insert(0, arena)

    def submit(self, job: Job) -> None:
        """Have a save written after the one that runs."""
        with self._changed:
            self._waiting = job
            if self._thread is None:
                # A daemon, so that a program which never closes us still ends; the exit hook waits for what is under
                # way.
                self._thread = threading.Thread(target=self._run, name="checkpoint-save", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify_all()

    def cancel(self) -> None:
        """Drop the waiting save, and let the running one wait for nothing any more."""
        with self._changed:
            waiting, self._waiting = self._waiting, None
            if self._running is not None:
                self._running.cancel()
            if waiting is not None:
                self._free.append(waiting.arena)
            self._changed.notify_all()
        if waiting is not None:
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
        if self._thread is not None:
            self._thread.join(timeout_s)
            atexit.unregister(self.close)

    # The thread

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._write(job)
            except BaseException as error:  # noqa: BLE001  # a thread has nobody above it: told to whoever waits
                self._fail(job, error)
            finally:
                with self._changed:
                    self._running = None
                    self._free.insert(0, job.arena)
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closed)
            self._running, self._waiting = self._waiting, None
            return self._running

    def _write(self, job: Job) -> None:
        job.ticket.phase = Phase.WRITING
        info: CheckpointInfo | None = None
        for destination in job.destinations:
            try:
                found = self._write_to(job, destination)
            except (CheckpointError, StorageError) as error:
                if destination.is_primary:
                    raise
                self._tell(EventKind.FAILED, job, destination, error)
            else:
                info = found or info
        job.ticket.end(Phase.WRITTEN if info is None else Phase.COMMITTED, info=info)

    def _write_to(self, job: Job, destination: Destination) -> CheckpointInfo | None:
        repository, staged = destination.repository, destination.staged
        effort = Effort(job.ticket.stats, job.pause)
        digests = repository.hash(staged, effort)
        try:
            done = retrying(
                lambda: repository.save(staged, digests, destination.retention, effort),
                staged,
                effort,
                self._settings,
                lambda error: self._tell(EventKind.RETRYING, job, destination, error),
            )
        except StorageError as error:
            raise SaveFailed(f"{type(error).__name__}: {error}", step=staged.step, fence=staged.fence) from error
        if done is None:
            return None
        info = CheckpointInfo(done[0], repository.name, done[1])
        self.last_committed = info
        self._tell(EventKind.COMMITTED, job, destination)
        self._collect(job, destination)
        return info

    def _collect(self, job: Job, destination: Destination) -> None:
        try:
            dropped = destination.repository.collector.apply(destination.retention, destination.staged.fence)
        except (CheckpointError, StorageError) as error:
            # The checkpoint is committed; what is not removed now is removed after the next.
            self._tell(EventKind.NOT_COLLECTED, job, destination, error)
            return
        for ref in dropped:
            self._emit(Event(EventKind.DROPPED, ref.step, destination.repository.name))

    # Telling

    def _fail(self, job: Job, error: BaseException) -> None:
        if isinstance(error, SaveAbandoned) or (isinstance(error, StaleFence) and job.is_cancelled):
            self._abandon(job, Phase.SUPERSEDED, str(error), error)
            return
        with self._changed:
            self._error = error
        for destination in job.destinations:
            self._refuse(destination, f"{type(error).__name__}")
        job.ticket.end(Phase.FAILED, error=error)
        self._tell(EventKind.FAILED, job, job.destinations[-1], error)

    def _abandon(self, job: Job, phase: Phase, why: str, error: BaseException | None = None) -> None:
        ticket = job.ticket
        for destination in job.destinations:
            self._refuse(destination, why)
        ticket.end(phase, error=error or SaveAbandoned(why, step=ticket.step, fence=ticket.fence))
        self._tell(EventKind.ABANDONED, job, job.destinations[-1], ticket.error)

    def _refuse(self, destination: Destination, why: str) -> None:
        try:
            destination.repository.refuse(destination.staged, why)
        except StorageError:
            return  # rank 0 will find out by its deadline

    def _tell(self, kind: EventKind, job: Job, destination: Destination, error: BaseException | None = None) -> None:
        self._emit(Event(kind, job.ticket.step, destination.repository.name, error, job.ticket.stats))

    def _emit(self, event: Event) -> None:
        if self._settings.on_event is not None:
            self._settings.on_event(event)
