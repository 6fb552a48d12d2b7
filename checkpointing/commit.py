"""Make the parts of a save one checkpoint: gather the records, write the manifest, move the pointer, look again.

The last look is what makes a commit safe against a garbage collection that runs at the same time, without clocks:

- a commit moves the pointer, *then* looks for what collections have condemned and whether its files are there;
- a collection writes what it condemns, *then* reads the pointer, and spares what the pointer now leads to.

Whichever comes second sees the other. A commit that finds one of its files condemned or gone is done again under other
names before it is reported (:class:`FilesTaken`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from checkpointing.catalog import Catalog, get_or_none
from checkpointing.core.increment import find_retired
from checkpointing.core.layout import Box
from checkpointing.core.manifest import Extent, Manifest, StoredBox, StoredFile, StoredTensor, find_fault
from checkpointing.core.records import CheckpointRef, PointerRecord, ShardRecord
from checkpointing.errors import (
    Damaged,
    PointerMoved,
    SaveAbandoned,
    StaleFence,
    WriterMissing,
    WritersDisagree,
)
from checkpointing.fetch import for_each
from checkpointing.settings import Settings
from checkpointing.writer import Staged
from storage.errors import NotFound

_FIRST_POLL_S = 0.005
_LAST_POLL_S = 0.5
_POINTER_TRIES = 8


class FilesTaken(Exception):  # not an error: the save goes on under other names
    """Say which files a garbage collection took from under a commit."""

    def __init__(self, ref: CheckpointRef, keys: frozenset[str]) -> None:
        super().__init__(f"{len(keys)} files of step {ref.step} are condemned or gone")
        self.ref = ref
        self.keys = keys


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for the other writers.

    Attributes:
        deadline_s: On the monotonic clock.
        pause: Waits up to so many seconds; returns True when the save was cancelled.
        clock: The monotonic clock.
    """

    deadline_s: float
    pause: Callable[[float], bool]
    clock: Callable[[], float] = time.monotonic


class Committer:
    """Commit checkpoints to one catalog; used by the writer with rank 0."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def gather(self, staged: Staged, own: ShardRecord, patience: Patience) -> list[ShardRecord]:
        """Return the records of all writers, by rank, waiting for them to appear.

        Raises:
            WriterMissing: The deadline passed.
            WritersDisagree: A writer has other tensors.
            SaveAbandoned: The save was cancelled.
            StaleFence: A newer world has committed meanwhile.
        """
        records = {own.rank: own}
        began = patience.clock()
        poll_s = _FIRST_POLL_S
        while True:
            for rank in range(staged.world_size):
                if rank not in records:
                    found = self._find_record(staged, rank)
                    if found is not None:
                        records[rank] = found
            missing = [rank for rank in range(staged.world_size) if rank not in records]
            if not missing:
                return [records[rank] for rank in range(staged.world_size)]
            now = patience.clock()
            if now >= patience.deadline_s:
                raise WriterMissing(missing, now - began, step=staged.step, fence=staged.fence)
            if patience.pause(min(poll_s, patience.deadline_s - now)):
                raise SaveAbandoned("it was cancelled while others were writing", step=staged.step, fence=staged.fence)
            if poll_s >= _LAST_POLL_S:
                self.check_fence(staged.fence)
            poll_s = min(poll_s * 1.5, _LAST_POLL_S)

    def check_fence(self, fence: int) -> None:
        """Refuse to go on when a newer world has committed.

        Raises:
            StaleFence: It has.
        """
        try:
            current = self._catalog.pointer.read()
        except Damaged:
            return  # told by whoever loads; a commit will rebuild it
        if current is not None and current.fence > fence:
            raise StaleFence(fence, current.fence)

    def commit(
        self, manifest: Manifest, metrics: Mapping[str, float], forget: frozenset[str] = frozenset()
    ) -> CheckpointRef:
        """Write the manifest, make it the newest, and make sure that it is whole.

        Args:
            manifest: What was written.
            metrics: What retention judges it by.
            forget: Digests of manifests that were not confirmed, to be left out.

        Raises:
            StaleFence: A newer world has committed.
            PointerMoved: Another writer with this fence keeps committing.
            FilesTaken: It is not whole, because a garbage collection was faster.
        """
        ref = replace(self._catalog.put_manifest(manifest), metrics=dict(metrics))
        self._move_pointer(ref, manifest.fence, forget)
        self._confirm(ref, manifest)
        return ref

    def drop_records(self, staged: Staged) -> None:
        """Remove the writers' records of a committed save."""
        if staged.world_size > 1:
            ranks = range(staged.world_size)
            keys = self._catalog.keys
            self._catalog.store.delete_many(
                [keys.record(staged.fence, staged.step, rank, staged.world_size) for rank in ranks]
            )

    def _find_record(self, staged: Staged, rank: int) -> ShardRecord | None:
        key = self._catalog.keys.record(staged.fence, staged.step, rank, staged.world_size)
        data = get_or_none(self._catalog.store, key)
        if data is None:
            return None
        record = ShardRecord.from_bytes(data, key)
        if record.refusal:
            raise SaveAbandoned(f"rank {rank} takes no part: {record.refusal}", step=staged.step, fence=staged.fence)
        if record.structure != staged.structure:
            raise WritersDisagree(
                f"rank {rank} has other tensors than rank {staged.rank} (paths, dtypes or shapes)",
                step=staged.step,
                fence=staged.fence,
            )
        return record

    def _move_pointer(self, ref: CheckpointRef, fence: int, forget: frozenset[str]) -> None:
        for left in reversed(range(_POINTER_TRIES)):
            current, known = self._current()
            if current is not None and current.fence > fence:
                raise StaleFence(fence, current.fence)
            newer = max((other.fence for other in known), default=fence)
            if newer > fence:
                raise StaleFence(fence, newer)
            kept = tuple(other for other in known if other.digest != ref.digest and other.digest not in forget)
            record = PointerRecord(
                job=self._catalog.keys.job,
                fence=fence,
                checkpoints=(*kept, ref),
                replaces="" if current is None else current.digest,
            )
            try:
                self._catalog.pointer.commit(record, fence)
            except PointerMoved:
                if not left:
                    raise
            else:
                return

    def _current(self) -> tuple[PointerRecord | None, tuple[CheckpointRef, ...]]:
        """Return the pointer and what it lists, oldest first; where it is unreadable, what LIST finds."""
        try:
            current = self._catalog.pointer.read()
        except Damaged:
            return None, tuple(reversed(self._catalog.listed()))
        return current, () if current is None else current.checkpoints

    def _confirm(self, ref: CheckpointRef, manifest: Manifest) -> None:
        """Look again, in this order: first what is condemned, then what is there (see the module)."""
        store = self._catalog.store
        used = {self._catalog.key_of(ref), *(file.key for file in manifest.files)}
        taken = used & self._catalog.condemned()
        gone: list[str] = []

        def look(key: str) -> None:
            try:
                store.head(key)
            except NotFound as error:
                if type(error) is not NotFound:
                    raise
                gone.append(key)

        for_each(look, sorted(used - taken), threads=4)
        if taken or gone:
            raise FilesTaken(ref, frozenset(taken) | frozenset(gone))


def assemble(
    job: str, staged: Staged, records: Sequence[ShardRecord], settings: Settings, created_unix_s: float
) -> Manifest:
    """Return the manifest of a save from what its writers answer for.

    Raises:
        WritersDisagree: Some byte was written by nobody, or by two.
    """
    files: dict[str, StoredFile] = {}
    for record in records:
        files.update((file.key, replace(file, saves=file.saves + 1)) for file in record.files)
    numbers = {key: number for number, key in enumerate(files)}
    boxes: list[dict[Box, list[Extent]]] = [{} for _ in staged.leaves]
    for record in records:
        for leaf, parts in record.renumbered(numbers).items():
            for stored in parts:
                boxes[leaf].setdefault(stored.box, []).extend(stored.extents)
    manifest = Manifest(
        job=job,
        step=staged.step,
        fence=staged.fence,
        created_unix_s=created_unix_s,
        world_size=staged.world_size,
        chunk_nbytes=settings.chunk_nbytes,
        metadata=staged.metadata,
        skeleton=staged.skeleton,
        tensors=tuple(
            StoredTensor(
                leaf.path,
                leaf.kind,
                leaf.dtype,
                leaf.shape,
                tuple(
                    StoredBox(box, tuple(sorted(extents, key=lambda extent: extent.start)))
                    for box, extents in sorted(found.items(), key=lambda item: item[0].offsets)
                ),
            )
            for leaf, found in zip(staged.leaves, boxes, strict=True)
        ),
        files=tuple(files.values()),
        pickled=staged.pickled,
    )
    fault = find_fault(manifest)
    if fault:
        raise WritersDisagree(fault, step=staged.step, fence=staged.fence)
    return replace(manifest, retired=find_retired(manifest, settings.rewrite_after))
