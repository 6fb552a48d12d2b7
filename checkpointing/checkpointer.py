"""Save and load checkpoints: what users hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from checkpointing.background import Background, Destination, Job
from checkpointing.catalog import Pointer
from checkpointing.codecs.base import Source
from checkpointing.core.division import plan_pieces
from checkpointing.core.keep import KeepLast, RetentionPolicy
from checkpointing.errors import Damaged, NoCheckpoint, UnsupportedVersion
from checkpointing.reader import Search
from checkpointing.repository import Repository
from checkpointing.settings import CheckpointInfo, Event, EventKind, Phase, Settings, Ticket
from checkpointing.staging import Arena, Stager
from checkpointing.writer import Staged
from storage.store import ObjectStore

if TYPE_CHECKING:
    from typing import Self

PRIMARY = "store"
"""The name of the store that every checkpoint goes to."""


class Checkpointer:
    """Save and load the state of one job.

    Saving copies the state and returns; a thread of its own writes it. All methods are for one thread, that of the
    train loop.

    Args:
        store: Where checkpoints go.
        job: The job's name; what is stored lies under it.
        rank: This writer.
        world_size: How many writers share the work. With more than one, every writer of one incarnation of the world
            must give the same `fence`, and no other incarnation may ever have used it.
        pointer: Says which checkpoints are committed; None keeps it in the store.
        retention: What is kept after each commit.
        settings: Everything else.
    """

    def __init__(  # noqa: PLR0913  # two of them are what the world is, the others what the user may replace
        self,
        store: ObjectStore,
        *,
        job: str,
        rank: int = 0,
        world_size: int = 1,
        pointer: Pointer | None = None,
        retention: RetentionPolicy | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._repository = Repository(PRIMARY, store, job, pointer, self._settings)
        self._retention = retention or KeepLast(3)
        self._rank, self._world_size = _checked(rank, world_size)
        self._own_fence: int | None = None
        self._plan = functools.lru_cache(maxsize=4)(plan_pieces)
        self._arenas = (Arena(), Arena())
        self._stager = Stager(self._settings.stage_threads)
        self._background = Background(self._settings, self._arenas)
        self._is_closed = False

    @property
    def pointer(self) -> Pointer:
        """Return what says which checkpoints are committed."""
        return self._repository.catalog.pointer

    # Saving

    @property
    def is_busy(self) -> bool:
        """Tell whether a save is under way."""
        return not self._background.is_idle

    @property
    def last_committed(self) -> CheckpointInfo | None:
        """Return the newest checkpoint that this object has committed."""
        return self._background.last_committed

    def save(
        self, step: int, tree: Any, *, fence: int | None = None, metadata: Mapping[str, Any] | None = None
    ) -> Ticket:
        """Copy a state and have it written in the background.

        Args:
            step: The step it was taken after; not negative.
            tree: Nested dicts, lists and tuples of tensors and plain values.
            fence: The number of this writer's world; an older one than the store has seen is refused. None, with one
                writer only, takes the number after the newest in the store.
            metadata: Anything that JSON can hold, shown by `latest()`; numbers in it can be what retention judges by.

        Raises:
            UnsupportedLeaf: A value cannot be stored; says which.
            ValueError: `step` is negative, `fence` is missing, JSON cannot hold `metadata`, or this is closed.
        """
        if self._is_closed:
            raise ValueError("this Checkpointer is closed")
        if step < 0:
            raise ValueError(f"step is {step}; steps are not negative")
        described = _as_json(metadata or {})
        began = self._settings.clock()
        ticket = Ticket(step, self._checked_fence(fence))
        if self.is_busy and self._settings.on_busy == "skip":
            ticket.end(Phase.SKIPPED)
            return ticket
        if self.is_busy and self._settings.on_busy == "wait":
            self._background.wait_idle(None)
        job = self._stage(ticket, tree, described)
        ticket.stats.stall_s = self._settings.clock() - began
        self._tell(Event(EventKind.STAGED, step, PRIMARY, stats=ticket.stats))
        self._background.submit(job)
        return ticket

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until no save is under way; return whether that is so.

        Raises:
            SaveError: A save failed since the last call; the newest such error.
            StaleFence: A save was refused because a newer world has taken over.
        """
        idle = self._background.wait_idle(timeout_s)
        error = self._background.take_error()
        if error is not None:
            raise error
        return idle

    def reconfigure(self, rank: int, world_size: int) -> None:
        """Take another place in another world; a save that is under way is given up, unless it has been committed."""
        self._rank, self._world_size = _checked(rank, world_size)
        self._background.cancel()

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is under way, for so long at most, and end the threads; calling it again does nothing.

        Errors of saves are not raised; `wait()` first to see them.
        """
        if not self._is_closed:
            self._is_closed = True
            self._background.close(timeout_s)
            self._stager.close()
            for arena in self._arenas:
                arena.release()

    # Loading

    def latest(self) -> CheckpointInfo | None:
        """Return the newest committed checkpoint whose manifest is good and whose files are there, or None.

        Raises:
            StorageError: The store cannot be read.
        """
        search = self._search()
        found = self._repository.reader.first_whole(search)
        if found is None:
            return None
        return CheckpointInfo(found.ref, PRIMARY, found.manifest, tuple(search.problems))

    def load(self, info: CheckpointInfo | None = None, into: Any = None, *, strict: bool = True) -> Any:
        """Return the state of a checkpoint, every byte verified.

        Args:
            info: Which one; None takes the newest that is good to the last byte.
            into: A tree of existing tensors to fill in place; None makes new ones, in host memory.
            strict: Whether `into` must have just the checkpoint's tensors; otherwise what fits is filled.

        Raises:
            NoCheckpoint: `info` is None and there is nothing good; says what is wrong with what there is.
            Damaged: `info` is given and not good. `into` may be filled in part.
            StructureMismatch: The tensors of `into` are others; nothing was changed.
            PickleNotAllowed: It holds pickled values.
            StorageError: The store cannot be read.
        """
        if info is not None:
            return self._repository.reader.load(info.manifest, into, strict=strict)
        search = self._search()
        for ref in search:
            try:
                return self._repository.reader.load(self._repository.reader.open(ref).manifest, into, strict=strict)
            except (Damaged, UnsupportedVersion) as problem:
                search.reject(problem)
        raise NoCheckpoint(f"{self._repository.store.url}, job {self._repository.keys.job}", search.problems)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _search(self) -> Search:
        return Search(
            self._repository.catalog, lambda problem: self._tell(Event(EventKind.UNUSABLE, None, PRIMARY, problem))
        )

    def _tell(self, event: Event) -> None:
        if self._settings.on_event is not None:
            self._settings.on_event(event)

    def _checked_fence(self, fence: int | None) -> int:
        if fence is not None:
            if fence < 0:
                raise ValueError(f"fence is {fence}; fences are not negative")
            return fence
        if self._world_size > 1:
            raise ValueError("with several writers, give the fence that they share")
        if self._own_fence is None:
            self._own_fence = self._repository.newest_fence() + 1
        return self._own_fence

    def _stage(self, ticket: Ticket, tree: Any, metadata: dict[str, Any]) -> Job:
        codecs = self._repository.codecs
        flat = codecs.sources(tree)
        sources: list[Source] = flat.tensors
        leaves = tuple(source.spec for source in sources)
        pieces = self._plan(leaves, self._rank, self._world_size, self._settings.chunk_nbytes)
        nbytes = sum(piece.nbytes for piece in pieces)
        arena = self._background.claim_arena()
        try:
            body = arena.reserve(nbytes)
            self._stager.copy(sources, pieces, body)
            codecs.synchronize()
        except BaseException:
            self._background.return_arena(arena)
            raise
        ticket.stats.staged_nbytes = nbytes
        staged = Staged(
            step=ticket.step,
            fence=ticket.fence,
            leaves=leaves,
            pieces=pieces,
            body=body,
            skeleton=flat.skeleton,
            metadata=metadata,
            pickled=tuple(leaf.path for leaf in leaves if leaf.kind == "pickle"),
            rank=self._rank,
            world_size=self._world_size,
        )
        return Job(ticket, arena, (Destination(self._repository, self._retention, staged),))


def _checked(rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of a world of {world_size}")
    return rank, world_size


def _as_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the metadata as it will be read back."""
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(metadata)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"JSON cannot hold the metadata: {error}") from error
    return copied
