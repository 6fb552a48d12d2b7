"""What can be tuned, and what a save tells about itself."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from checkpointing.core.division import DEFAULT_SEGMENT_NBYTES
from checkpointing.core.layout import DEFAULT_CHUNK_NBYTES
from checkpointing.core.manifest import Manifest
from checkpointing.core.records import CheckpointRef
from checkpointing.errors import CheckpointError

OnBusy = Literal["queue", "skip", "wait"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Tune a :class:`checkpointing.Checkpointer`.

    Attributes:
        on_busy: What `save` does while an earlier save is being written: `queue` it (one at most, in a second buffer; a
            newer one takes its place), `skip` it, or `wait`.
        incremental: Whether chunks that are stored already are left out.
        rewrite_after: After how many checkpoints a file is no longer referred to, but its chunks written anew.
        allow_pickle: Whether values that are neither tensors nor plain are pickled, and pickles are read.
        chunk_nbytes: What is compared, verified and left out as one; a multiple of 4096.
        file_nbytes: About how large a shard file gets before another is begun; a larger tensor is cut.
        stage_threads: How many threads copy, the caller's among them.
        io_threads: How many requests are under way at once, most of all while loading.
        gather_timeout_s: How long rank 0 waits for the other writers.
        retry_for_s: How long a failed save is tried again, unless a newer one waits.
        first_retry_s: The first pause; each further one is twice as long, up to `last_retry_s`.
        last_retry_s: The longest pause.
        on_event: Is told what happens (:class:`Event`), from the background thread; must return soon.
        clock: The monotonic clock.
    """

    on_busy: OnBusy = "queue"
    incremental: bool = True
    rewrite_after: int = 100
    allow_pickle: bool = False
    chunk_nbytes: int = DEFAULT_CHUNK_NBYTES
    file_nbytes: int = DEFAULT_SEGMENT_NBYTES
    stage_threads: int = 2
    io_threads: int = 4
    gather_timeout_s: float = 60.0
    retry_for_s: float = 600.0
    first_retry_s: float = 0.5
    last_retry_s: float = 30.0
    on_event: Callable[[Event], None] | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if self.chunk_nbytes < 4096 or self.chunk_nbytes % 4096:
            raise ValueError(f"chunk_nbytes is {self.chunk_nbytes}; use a multiple of 4096")
        if self.file_nbytes < self.chunk_nbytes:
            raise ValueError(f"file_nbytes is {self.file_nbytes}; use chunk_nbytes ({self.chunk_nbytes}) or more")


class EventKind(enum.Enum):
    """What happened."""

    STAGED = "staged"
    COMMITTED = "committed"
    RETRYING = "retrying"
    FAILED = "failed"
    ABANDONED = "abandoned"
    DROPPED = "dropped"
    NOT_COLLECTED = "not collected"
    UNUSABLE = "unusable"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the user may want to see or count.

    Attributes:
        kind: What happened.
        step: To the checkpoint of which step, or None.
        tier: Where: the name of a tier.
        error: What went wrong, or None.
        stats: The save's numbers so far, or None.
    """

    kind: EventKind
    step: int | None = None
    tier: str = ""
    error: BaseException | None = None
    stats: Stats | None = None


@dataclass(slots=True)
class Stats:
    """The numbers of one save.

    Attributes:
        stall_s: How long `save` held the caller.
        staged_nbytes: How much was copied to the buffer.
        uploaded_nbytes: How much was written.
        reused_nbytes: How much was stored already.
        hash_s: How long hashing took.
        write_s: How long writing took.
        commit_s: How long the manifest and pointer took, with the wait for other writers.
        attempts: How often writing was tried.
    """

    stall_s: float = 0.0
    staged_nbytes: int = 0
    uploaded_nbytes: int = 0
    reused_nbytes: int = 0
    hash_s: float = 0.0
    write_s: float = 0.0
    commit_s: float = 0.0
    attempts: int = 0

    @property
    def write_gb_per_s(self) -> float:
        """Return the speed of writing, in 1e9 bytes a second; 0 if nothing was written."""
        return self.uploaded_nbytes / self.write_s / 1e9 if self.write_s else 0.0


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A committed checkpoint.

    Attributes:
        ref: Its entry in the pointer.
        tier: Where it is: the name of a tier.
        manifest: All there is to know about it.
        problems: Why newer ones were passed over, newest first.
    """

    ref: CheckpointRef
    tier: str
    manifest: Manifest
    problems: tuple[CheckpointError, ...] = ()

    @property
    def step(self) -> int:
        """Return the step it was taken after."""
        return self.ref.step

    @property
    def fence(self) -> int:
        """Return the fence it was written under."""
        return self.ref.fence

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Return what was given to `save`."""
        return self.manifest.metadata

    @property
    def nbytes(self) -> int:
        """Return the size of the state's tensors."""
        return self.manifest.nbytes

    @property
    def created_unix_s(self) -> float:
        """Return when it was written, by the writer's clock."""
        return self.manifest.created_unix_s

    @property
    def world_size(self) -> int:
        """Return how many writers wrote it."""
        return self.manifest.world_size


class Phase(enum.Enum):
    """How far a save is."""

    STAGED = "staged"
    WRITING = "writing"
    WRITTEN = "written"
    COMMITTED = "committed"
    SKIPPED = "skipped"
    SUPERSEDED = "superseded"
    FAILED = "failed"


ENDED = frozenset({Phase.WRITTEN, Phase.COMMITTED, Phase.SKIPPED, Phase.SUPERSEDED, Phase.FAILED})


@dataclass(slots=True)
class Ticket:
    """Follow one save.

    Attributes:
        step: Of which step.
        fence: Under which fence.
        phase: How far it is. A writer of another rank than 0 ends at `WRITTEN`.
        stats: Its numbers.
        info: The checkpoint, once committed.
        error: Why there is none.
    """

    step: int
    fence: int
    phase: Phase = Phase.STAGED
    stats: Stats = field(default_factory=Stats)
    info: CheckpointInfo | None = None
    error: BaseException | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_done(self) -> bool:
        """Tell whether the save has ended, one way or another."""
        return self._ended.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the save has ended; return whether it has."""
        return self._ended.wait(timeout_s)

    def end(self, phase: Phase, *, info: CheckpointInfo | None = None, error: BaseException | None = None) -> None:
        """Record how the save ended."""
        self.phase, self.info, self.error = phase, info, error
        self._ended.set()
