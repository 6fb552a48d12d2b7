"""Remove checkpoints that are no longer wanted, and what crashes left behind, without ever touching what is in use.

How this is safe while others commit is told in :mod:`checkpointing.commit`. What a crash leaves half removed is
no longer reachable from the pointer, and the next collection removes the rest.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from checkpointing.catalog import DAMAGED, Catalog, get_or_none
from checkpointing.core.keep import RetentionPolicy, split
from checkpointing.core.records import CheckpointRef, PointerRecord
from checkpointing.errors import CheckpointError, Damaged, NoCheckpoint, StaleFence
from storage.base import ObjectInfo

DEFAULT_MIN_AGE_S = 3600.0
"""Younger objects are not collected: they belong to saves under way. Safety does not depend on it; a save that loses
its files to a collection is done again."""

_COLLECTION_TIME_S = 900.0
_FORGOTTEN_AFTER_S = 86400.0
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed, or would remove.

    Attributes:
        objects: Their keys and sizes.
    """

    objects: tuple[ObjectInfo, ...]

    @property
    def nbytes(self) -> int:
        """Return the size of it all."""
        return sum(info.nbytes for info in self.objects)


class Collector:
    """Remove what nothing refers to.

    Args:
        catalog: Whose.
        clock: The monotonic clock, by which a collection ends itself.
        wall_clock: Seconds since 1970, by which ages are judged.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._wall_clock = wall_clock

    def apply(self, policy: RetentionPolicy, fence: int) -> tuple[CheckpointRef, ...]:
        """Drop what a policy does not keep, and return it.

        Raises:
            StaleFence: A newer world has committed; nothing is dropped.
            PointerMoved: Another writer with this fence has committed; nothing is dropped.
        """
        record = self._catalog.pointer.read()
        if record is None:
            return ()
        if record.fence > fence:
            raise StaleFence(fence, record.fence)
        kept, dropped = split(policy, record.checkpoints)
        if dropped:
            self._replace(record, kept, fence)
            self._remove(dropped)
        return dropped

    def forget(self, refs: Iterable[CheckpointRef]) -> None:
        """Remove checkpoints by name, also uncommitted ones.

        Raises:
            PointerMoved: A writer has committed meanwhile; nothing is removed: try again.
        """
        unwanted = tuple(refs)
        digests = {ref.digest for ref in unwanted}
        record = self._catalog.pointer.read()
        if record is not None and any(ref.digest in digests for ref in record.checkpoints):
            kept = tuple(ref for ref in record.checkpoints if ref.digest not in digests)
            self._replace(record, kept, record.fence)
        self._remove(unwanted)

    def sweep(self, *, min_age_s: float = DEFAULT_MIN_AGE_S, dry_run: bool = False) -> Collected:
        """Remove every object of the job that no committed checkpoint refers to.

        Args:
            min_age_s: Younger objects stay.
            dry_run: Only say what would be removed.

        Raises:
            NoCheckpoint: There are manifests but no pointer; what is committed cannot be told.
            Damaged: A committed manifest is not readable; what it refers to cannot be told.
        """
        keys = self._catalog.keys
        now = self._wall_clock()
        record = self._catalog.pointer.read()
        found = [
            info
            for prefix in (keys.manifests, keys.shards, keys.records, keys.collections)
            for info in self._catalog.store.list(prefix)
            if info.modified_at is None
            or now - info.modified_at >= (_FORGOTTEN_AFTER_S if prefix == keys.collections else min_age_s)
        ]
        if record is None and any(info.key.startswith(keys.manifests) for info in found):
            raise NoCheckpoint(f"{keys.job}: there are manifests but no pointer, so nothing is removed")
        used = self._used()
        unused = [info for info in found if info.key not in used and not self._still_warns(info.key, used)]
        if not dry_run and unused:
            removed = set(self._condemn([info.key for info in unused]))
            unused = [info for info in unused if info.key in removed]
        return Collected(tuple(unused))

    def _still_warns(self, key: str, used: set[str]) -> bool:
        """Tell whether an object is the notice of a damaged file that a checkpoint refers to."""
        if not key.startswith(self._catalog.keys.condemned(DAMAGED).removesuffix(".json")):
            return False
        data = get_or_none(self._catalog.store, key)
        return data is not None and not used.isdisjoint(json.loads(data)["keys"])

    def _replace(self, record: PointerRecord, kept: tuple[CheckpointRef, ...], fence: int) -> None:
        self._catalog.pointer.commit(PointerRecord(record.job, fence, kept, replaces=record.digest), fence)

    def _remove(self, refs: Iterable[CheckpointRef]) -> None:
        unwanted: list[str] = []
        files: set[str] = set()
        for ref in refs:
            unwanted.append(self._catalog.key_of(ref))
            try:
                files |= self._catalog.files_of(ref)
            except CheckpointError:
                continue  # not readable: its files are left to a sweep, which does not need it
        self._condemn([*unwanted, *sorted(files - self._used())])

    def _used(self) -> set[str]:
        """Return every key that a committed checkpoint refers to."""
        while True:
            record = self._catalog.pointer.read()
            try:
                return self._used_by(record)
            except Damaged:
                # Retention may have removed one of them since the pointer was read.
                if self._catalog.pointer.read() == record:
                    raise

    def _used_by(self, record: PointerRecord | None) -> set[str]:
        used: set[str] = set()
        for ref in () if record is None else record.checkpoints:
            used.add(self._catalog.key_of(ref))
            used |= self._catalog.files_of(ref)
        return used

    def _condemn(self, keys: list[str]) -> list[str]:
        """Say what is about to go, look whether it is still unused, and remove it; return what was removed."""
        if not keys:
            return []
        store = self._catalog.store
        began = self._clock()
        notice = self._catalog.condemn(uuid.uuid4().hex, keys)
        used = self._used()
        # Manifests first: a checkpoint half removed must not look whole.
        doomed = sorted(
            (key for key in keys if key not in used), key=lambda key: not key.startswith(self._catalog.keys.manifests)
        )
        removed: list[str] = []
        while len(removed) < len(doomed) and self._clock() - began < _COLLECTION_TIME_S:
            batch = doomed[len(removed) : len(removed) + _BATCH]
            store.delete_many(batch)
            removed += batch
        store.delete(notice)
        return removed
