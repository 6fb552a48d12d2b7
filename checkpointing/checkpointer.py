"""Save and load checkpoints: what users hold."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from checkpointing.background import Background, Job
from checkpointing.catalog import Pointer
from checkpointing.codecs.base import Source
from checkpointing.codecs.registry import CodecRegistry
from checkpointing.core.division import locate_pieces, plan_pieces, staged_nbytes
from checkpointing.core.keep import KeepLast, RetentionPolicy
from checkpointing.core.policies import SavePolicy
from checkpointing.core.urgency import Loss, choose_for_deadline
from checkpointing.restore import Restorer
from checkpointing.settings import CheckpointInfo, Event, EventKind, Phase, Settings, Ticket
from checkpointing.staging import Arena, Stager
from checkpointing.tiers import Place, Tier
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
        every: When a save goes to the store, where tiers in front of it are saved to more often; None means always.
        tiers: Faster places in front of the store, the fastest first.
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
        every: SavePolicy | None = None,
        tiers: Sequence[Tier] = (),
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        primary = Tier(PRIMARY, store, every, retention or KeepLast(3), True, Loss.CLUSTER, pointer)
        self._places = [
            *(Place(tier, job, self._settings) for tier in tiers),
            Place(primary, job, self._settings, is_primary=True),
        ]
        if len({place.tier.name for place in self._places}) != len(self._places):
            raise ValueError(f"two tiers have one name, or one is called {PRIMARY!r}, which is the store itself")
        self._codecs = CodecRegistry(allow_pickle=self._settings.allow_pickle)
        self._rank, self._world_size = _checked(rank, world_size)
        self._own_fence: int | None = None
        self._plan = functools.lru_cache(maxsize=4)(plan_pieces)
        self._arenas = (Arena(), Arena())
        self._stager = Stager(self._settings.chunk_nbytes, self._settings.stage_threads)
        self._background = Background(self._settings, self._arenas)
        self._is_closed = False

    @property
    def pointer(self) -> Pointer:
        """Return what says which checkpoints are committed."""
        return self._primary.repository.catalog.pointer

    # Saving

    @property
    def is_busy(self) -> bool:
        """Tell whether a save is under way."""
        return not self._background.is_idle

    @property
    def last_committed(self) -> CheckpointInfo | None:
        """Return the newest checkpoint that this object has committed."""
        return self._background.last_committed

    def why_due(self, step: int, *, preempted: bool = False) -> str:
        """Return why a save of this step is due at one place or another, or "".

        What depends on a clock is only the same for all writers if one of them asks and tells the others.
        """
        return next((why for place in self._places if (why := place.why_due(step, preempted=preempted))), "")

    def note_start(self, step: int) -> None:
        """Count intervals from this step and from now; for policies, when training begins or goes on."""
        for place in self._places:
            place.note_start(step)

    def save(
        self,
        step: int,
        tree: Any,
        *,
        fence: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        everywhere: bool = False,
    ) -> Ticket:
        """Copy a state and have it written in the background, to each place where that is due.

        Args:
            step: The step it was taken after; not negative.
            tree: Nested dicts, lists and tuples of tensors and plain values.
            fence: The number of this writer's world; an older one than the store has seen is refused. None, with one
                writer only, takes the number after the newest in the store.
            metadata: Anything that JSON can hold, shown by `latest()`; numbers in it can be what retention judges by.
            everywhere: Whether it goes to every place, due or not.

        Raises:
            UnsupportedLeaf: A value cannot be stored; says which.
            ValueError: `step` is negative, `fence` is missing, JSON cannot hold `metadata`, or this is closed.
        """
        began = self._settings.clock()
        described = _as_json(metadata or {})
        ticket = self._new_ticket(step, fence)
        places = [place for place in self._places if everywhere or place.why_due(step, preempted=False)]
        if not places or (self.is_busy and self._settings.on_busy == "skip"):
            ticket.end(Phase.SKIPPED)
            return ticket
        if self.is_busy and self._settings.on_busy == "wait":
            self._background.wait_idle(None)
        job = self._stage(ticket, tree, described, places)
        ticket.stats.stall_s = self._settings.clock() - began
        self._tell(Event(EventKind.STAGED, step, stats=ticket.stats))
        self._background.submit(job)
        return ticket

    def save_urgently(
        self,
        step: int,
        tree: Any,
        *,
        within_s: float,
        losing: Loss = Loss.NODE,
        fence: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """Save what the time allows before a worker or node is taken, and return when that is over.

        The places that survive the loss are written to one after the other, the fastest first; a save that is under way
        goes on beside it, and one that waits gives way. `ticket.info` is set as soon as one place has committed.

        Args:
            step: As of `save`.
            tree: As of `save`.
            within_s: How much time is left.
            losing: What will be lost.
            fence: As of `save`.
            metadata: As of `save`.

        Raises:
            UnsupportedLeaf: A value cannot be stored; says which.
            ValueError: As of `save`; or no place survives such a loss.
        """
        deadline_s = self._settings.clock() + within_s
        described = _as_json(metadata or {})
        ticket = self._new_ticket(step, fence)
        nbytes = self._background.last_staged_nbytes
        options = [place.option for place in self._places]
        chosen = choose_for_deadline(options, losing, nbytes, within_s)
        by_name = {place.tier.name: place for place in self._places}
        job = self._stage(ticket, tree, described, [by_name[name] for name in chosen])
        self._background.run_aside(job)
        ticket.wait(max(0.0, deadline_s - self._settings.clock()))
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

    def is_committed(self, step: int, fence: int) -> bool:
        """Tell, on any rank and from the pointer alone, whether this save or a newer one is committed.

        Raises:
            Damaged: The pointer is not readable.
            StorageError: The store cannot be read.
        """
        committed = self._primary.repository.catalog.committed()
        return any((ref.fence, ref.step) >= (fence, step) for ref in committed)

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
            StorageError: The store cannot be read, and no tier has a checkpoint.
        """
        return self._restorer().newest()

    def load(self, info: CheckpointInfo | None = None, into: Any = None, *, strict: bool = True) -> Any:
        """Return the state of a checkpoint, every byte verified.

        Args:
            info: Which one; None takes the newest that is good to the last byte, wherever it is.
            into: A tree of existing tensors to fill in place; None makes new ones, in host memory.
            strict: Whether `into` must have just the checkpoint's tensors; otherwise what fits is filled.

        Raises:
            NoCheckpoint: `info` is None and there is nothing good; says what is wrong with what there is.
            Damaged: `info` is given and not good. `into` may be filled in part.
            StructureMismatch: The tensors of `into` are others; nothing was changed.
            PickleNotAllowed: It holds pickled values.
            StorageError: The store cannot be read, and no tier has a checkpoint.
        """
        if info is None:
            return self._restorer().load(into, strict=strict)
        place = next(place for place in self._places if place.tier.name == info.tier)
        return place.repository.reader.load(info.manifest, into, strict=strict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    @property
    def _primary(self) -> Place:
        return self._places[-1]

    def _restorer(self) -> Restorer:
        return Restorer(
            [place.repository for place in self._places],
            lambda name, problem: self._tell(Event(EventKind.UNUSABLE, None, name, problem)),
        )

    def _tell(self, event: Event) -> None:
        if self._settings.on_event is not None:
            self._settings.on_event(event)

    def _new_ticket(self, step: int, fence: int | None) -> Ticket:
        if self._is_closed:
            raise ValueError("this Checkpointer is closed")
        if step < 0 or (fence is not None and fence < 0):
            raise ValueError(f"step {step}, fence {fence}: neither may be negative")
        if fence is not None:
            return Ticket(step, fence)
        if self._world_size > 1:
            raise ValueError("with several writers, give the fence that they share")
        if self._own_fence is None:
            self._own_fence = self._primary.repository.newest_fence() + 1
        return Ticket(step, self._own_fence)

    def _stage(self, ticket: Ticket, tree: Any, metadata: dict[str, Any], places: Sequence[Place]) -> Job:
        if not places:
            raise ValueError("no place survives such a loss")
        flat = self._codecs.sources(tree)
        sources: list[Source] = flat.tensors
        leaves = tuple(source.spec for source in sources)
        # Where one place wants the whole state and another this writer's part, the whole is staged, and the part is in
        # it.
        shared = all(place.tier.shared for place in places)
        rank, world_size = (self._rank, self._world_size) if shared else (0, 1)
        pieces = self._plan(leaves, rank, world_size, self._settings.chunk_nbytes, self._settings.file_nbytes)
        nbytes = staged_nbytes(pieces)
        # What one place has stored need not be copied; another may not have it.
        reuse = places[0].repository.reuse if len(places) == 1 else None
        arena = self._background.claim_arena(nbytes)
        try:
            body = arena.reserve(nbytes)
            copied = self._stager.copy(sources, pieces, body, reuse)
            self._codecs.synchronize()
        except BaseException:
            self._background.return_arena(arena)
            raise
        ticket.stats.staged_nbytes = sum(piece.nbytes for piece in pieces)
        staged = Staged(
            step=ticket.step,
            fence=ticket.fence,
            leaves=leaves,
            pieces=pieces,
            body=body,
            skeleton=flat.skeleton,
            metadata=metadata,
            pickled=tuple(leaf.path for leaf in leaves if leaf.kind == "pickle"),
            rank=rank,
            world_size=world_size,
            digests=copied.digests,
            absent=copied.absent,
        )
        for place in places:
            place.note_start(ticket.step)
        return Job(ticket, arena, tuple((place, self._part_for(place, staged)) for place in places))

    def _part_for(self, place: Place, staged: Staged) -> Staged:
        """Return what this writer writes to a place, of what was staged."""
        if not place.tier.shared or (staged.rank, staged.world_size) == (self._rank, self._world_size):
            return staged
        sizes = self._settings.chunk_nbytes, self._settings.file_nbytes
        mine = self._plan(staged.leaves, self._rank, self._world_size, *sizes)
        pieces = locate_pieces(mine, staged.pieces)
        return replace(staged, pieces=pieces, rank=self._rank, world_size=self._world_size, digests=())


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
