"""One job's checkpoints in one store: saving what is staged, with every retry and redo that takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from checkpointing.catalog import Catalog, Pointer, StorePointer
from checkpointing.codecs.registry import CodecRegistry
from checkpointing.commit import Committer, FilesTaken, Patience, assemble
from checkpointing.core.increment import ChunkIndex
from checkpointing.core.keep import RetentionPolicy, metrics_of
from checkpointing.core.manifest import Manifest
from checkpointing.core.naming import Keys, validate_job
from checkpointing.core.records import CheckpointRef
from checkpointing.errors import Damaged, SaveAbandoned, StateMoved, UnsupportedVersion
from checkpointing.reader import Reader
from checkpointing.retention import Collector
from checkpointing.settings import Settings, Stats
from checkpointing.staging import Reuse
from checkpointing.writer import Hashing, Staged, Writer, Written
from storage.errors import StorageError
from storage.store import ObjectStore

_MAX_REDOS = 4


@dataclass(frozen=True, slots=True)
class Effort:
    """How a save is to be made.

    Attributes:
        stats: Where its numbers go.
        pause: Waits up to so many seconds; returns True when the save was cancelled.
        pause_before_retry: Likewise; also returns True when a newer save waits.
    """

    stats: Stats
    pause: Callable[[float], bool]
    pause_before_retry: Callable[[float], bool]


class Repository:
    """The checkpoints of one job in one store.

    Args:
        name: For messages: the tier's name.
        store: The store.
        job: The job.
        pointer: What says which checkpoints are committed; None keeps it in the store.
        settings: See there.
    """

    def __init__(
        self, name: str, store: ObjectStore, job: str, pointer: Pointer | None = None, settings: Settings | None = None
    ) -> None:
        self.name = name
        self.settings = settings or Settings()
        self.keys = Keys(validate_job(job))
        self.catalog = Catalog(store, self.keys, pointer or StorePointer(store, job))
        self.codecs = CodecRegistry(allow_pickle=self.settings.allow_pickle)
        self.reader = Reader(self.catalog, self.codecs, self.settings.io_threads)
        self.collector = Collector(self.catalog)
        self._committer = Committer(self.catalog)
        self._writer = Writer(store, self.keys, self.settings.chunk_nbytes, self.settings.file_nbytes)
        self._indexed: tuple[str, ChunkIndex] | None = None
        self.reuse: Reuse | None = None

    @property
    def store(self) -> ObjectStore:
        """Return the store."""
        return self.catalog.store

    def save(
        self, staged: Staged, hashing: Hashing, policy: RetentionPolicy, effort: Effort
    ) -> tuple[CheckpointRef, Manifest] | None:
        """Write this writer's part; as rank 0 also gather the others' and commit.

        Returns:
            The checkpoint, or None where another rank commits it.

        Raises:
            SaveError: It did not become a checkpoint.
            StaleFence: A newer world has committed.
            PointerMoved: Another writer uses this fence.
            StorageError: The store refused.
        """
        self.reuse = None
        self._committer.check_fence(staged.fence)
        unconfirmed: frozenset[str] = frozenset()
        taken: set[str] = set()
        for attempt in range(_MAX_REDOS):
            effort.stats.attempts += 1
            index = self._index()
            usable = index.with_also(staged.absent).without(taken)
            written = self._write(staged, hashing, usable, attempt, effort)
            if staged.rank:
                self._writer.put_record(written.record)
                self.reuse = self._what_to_reuse(index, written)
                return None
            with self._timed(effort, "commit_s"):
                manifest = self._gather(staged, written, effort)
                try:
                    ref = self._committer.commit(manifest, metrics_of(policy, staged.metadata), unconfirmed)
                except FilesTaken as moved:
                    unconfirmed |= {moved.ref.digest}
                    taken |= moved.keys
                else:
                    self._committer.drop_records(staged)
                    self.reuse = self._what_to_reuse(self._index_of(ref, manifest), written)
                    return ref, manifest
        raise StateMoved(
            f"garbage collections took its files {_MAX_REDOS} times; is their minimum age too short?",
            step=staged.step,
            fence=staged.fence,
        )

    def refuse(self, staged: Staged, why: str) -> None:
        """Tell rank 0, as another rank, that this part will not come."""
        if staged.rank:
            self._writer.refuse(staged, why)

    def newest_fence(self) -> int:
        """Return the fence of the newest commit; 0 if there is none."""
        record = self.catalog.pointer.read()
        return 0 if record is None else record.fence

    def _what_to_reuse(self, index: ChunkIndex, written: Written) -> Reuse | None:
        return Reuse(index, written.stable) if written.stable and self.settings.incremental else None

    def _write(self, staged: Staged, hashing: Hashing, index: ChunkIndex, attempt: int, effort: Effort) -> Written:
        with self._timed(effort, "write_s"):
            written = self._writer.write(staged, hashing, index, attempt)
        effort.stats.uploaded_nbytes += written.nbytes
        effort.stats.reused_nbytes += written.reused_nbytes
        return written

    def _gather(self, staged: Staged, written: Written, effort: Effort) -> Manifest:
        records = [written.record]
        if staged.world_size > 1:
            clock = self.settings.clock
            patience = Patience(clock() + self.settings.gather_timeout_s, effort.pause, clock)
            records = self._committer.gather(staged, written.record, patience)
        return assemble(self.keys.job, staged, records, self.settings, created_unix_s=round(time.time(), 3))

    def _index(self) -> ChunkIndex:
        """Return what the newest committed checkpoint has; nothing if that cannot be read."""
        if not self.settings.incremental:
            return ChunkIndex()
        try:
            committed = self.catalog.committed()
            if not committed:
                return ChunkIndex()
            manifest = self.catalog.read_manifest(committed[0])
        except (Damaged, UnsupportedVersion):
            return ChunkIndex()  # write everything; whoever loads will tell what is wrong
        if manifest.chunk_nbytes != self.settings.chunk_nbytes:
            return ChunkIndex()
        return self._index_of(committed[0], manifest).without(self.catalog.condemned())

    def _index_of(self, ref: CheckpointRef, manifest: Manifest) -> ChunkIndex:
        if self._indexed is None or self._indexed[0] != ref.digest:
            self._indexed = (ref.digest, ChunkIndex.of(manifest))
        return self._indexed[1]

    @contextlib.contextmanager
    def _timed(self, effort: Effort, name: str) -> Iterator[None]:
        began = self.settings.clock()
        try:
            yield
        finally:
            setattr(effort.stats, name, getattr(effort.stats, name) + self.settings.clock() - began)


def retrying(
    save: Callable[[], tuple[CheckpointRef, Manifest] | None],
    staged: Staged,
    effort: Effort,
    settings: Settings,
    on_retry: Callable[[Exception], None],
) -> tuple[CheckpointRef, Manifest] | None:
    """Call `save` until it succeeds; a store that is full, forbidden or down may be well again later.

    Raises:
        SaveAbandoned: It was cancelled.
        CheckpointError: It failed for another reason than the store.
        StorageError: The time for retries is over.
    """
    deadline_s = settings.clock() + settings.retry_for_s
    pause_s = settings.first_retry_s
    while True:
        try:
            return save()
        except StorageError as error:
            if settings.clock() + pause_s > deadline_s:
                raise
            on_retry(error)
            if effort.pause_before_retry(pause_s):
                raise SaveAbandoned(
                    "it was cancelled, or a newer save waits, after the store failed",
                    step=staged.step,
                    fence=staged.fence,
                ) from error
            pause_s = min(2 * pause_s, settings.last_retry_s)
