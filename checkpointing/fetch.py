"""Carry out a read plan: fetch, verify, and put every byte in its place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from checkpointing.codecs.base import Bytes
from checkpointing.core.digest import digest
from checkpointing.core.manifest import Manifest
from checkpointing.core.reshard import ChunkRead, Read, ReadPlan
from checkpointing.errors import ChecksumMismatch, MissingObject, Truncated
from storage.errors import NotFound, RangeNotSatisfiable
from storage.store import ObjectStore

T = TypeVar("T")


def for_each(work: Callable[[T], None], items: Iterable[T], threads: int) -> None:
    """Call `work` on every item from a few threads; the first error ends it and is raised."""
    queue = list(items)
    if len(queue) <= 1 or threads <= 1:
        for item in queue:
            work(item)
        return
    with ThreadPoolExecutor(min(threads, len(queue)), thread_name_prefix="checkpoint-io") as pool:
        futures = [pool.submit(work, item) for item in queue]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
    for future in done:
        future.result()


class Fetcher:
    """Fetch the chunks of one checkpoint.

    Args:
        store: Where the files are.
        manifest: What is in them.
        threads: How many reads may be under way.
    """

    def __init__(self, store: ObjectStore, manifest: Manifest, threads: int) -> None:
        self._store = store
        self._manifest = manifest
        self._threads = threads

    def fill(self, plan: ReadPlan, targets: Mapping[int, Bytes]) -> None:
        """Fill the targets, flat bytes by tensor number.

        Raises:
            Damaged: A file is missing, cut or changed; the targets are then filled in part.
            StorageError: The store could not be read.
        """
        gathering = _Gathering(plan, targets)
        # Largest files first does not matter; the order of the plan is that of the files, which disks like.
        for_each(lambda read: self._fetch(read, targets, gathering), plan.reads, self._threads)

    def verify(self, plan: ReadPlan) -> None:
        """Read everything and throw it away.

        Raises:
            Damaged: A file is missing, cut or changed.
        """
        for_each(self._verify, plan.reads, self._threads)

    def _fetch(self, read: Read, targets: Mapping[int, Bytes], gathering: _Gathering) -> None:
        if read.is_direct:
            first = read.chunks[0]
            home = gathering.home(first, targets)
            data = self._verified(read, home[first.start : first.start + read.nbytes])
        else:
            data = self._verified(read, None)
            for chunk in read.chunks:
                offset = chunk.offset - read.offset
                home = gathering.home(chunk, targets)
                home[chunk.start : chunk.start + chunk.nbytes] = data[offset : offset + chunk.nbytes]
        gathering.arrived(read.chunks)

    def _verify(self, read: Read) -> None:
        self._verified(read, None)

    def _verified(self, read: Read, out: Bytes | None) -> Bytes:
        data = self._read(read, out)
        try:
            self._check(read, data)
        except ChecksumMismatch:
            # The bytes may have been changed on their way here; what is stored wrongly is wrong again.
            data = self._read(read, out)
            self._check(read, data)
        return data

    def _read(self, read: Read, out: Bytes | None) -> Bytes:
        key = self._manifest.files[read.file].key
        data: Bytes = np.empty(read.nbytes, dtype=np.uint8) if out is None else out
        path = self._manifest.tensors[read.chunks[0].tensor].path
        try:
            self._store.get_range_into(key, read.offset, data.data)
        except RangeNotSatisfiable as error:
            raise Truncated(key, f"it ends before byte {read.offset + read.nbytes}", path=path) from error
        except NotFound as error:
            if type(error) is not NotFound:
                raise
            raise MissingObject(key, path=path) from error
        return data

    def _check(self, read: Read, data: Bytes) -> None:
        view = data.data
        for chunk in read.chunks:
            offset = chunk.offset - read.offset
            if digest(view[offset : offset + chunk.nbytes]) != chunk.digest:
                raise ChecksumMismatch(
                    self._manifest.files[read.file].key,
                    f"bytes {chunk.offset} to {chunk.offset + chunk.nbytes}",
                    path=self._manifest.tensors[chunk.tensor].path,
                )


class _Gathering:
    """The scratch buffers of the gathers, each there from its first chunk to its last."""

    def __init__(self, plan: ReadPlan, targets: Mapping[int, Bytes]) -> None:
        self._gathers = plan.gathers
        self._targets = targets
        self._waiting = [0] * len(plan.gathers)
        for read in plan.reads:
            for chunk in read.chunks:
                if chunk.gather is not None:
                    self._waiting[chunk.gather] += 1
        self._scratch: dict[int, Bytes] = {}
        self._lock = threading.Lock()

    def home(self, chunk: ChunkRead, targets: Mapping[int, Bytes]) -> Bytes:
        """Return the array that `chunk.start` counts in."""
        if chunk.gather is None:
            return targets[chunk.tensor]
        with self._lock:
            if chunk.gather not in self._scratch:
                self._scratch[chunk.gather] = np.empty(self._gathers[chunk.gather].nbytes, dtype=np.uint8)
            return self._scratch[chunk.gather]

    def arrived(self, chunks: Sequence[ChunkRead]) -> None:
        """Count verified chunks, and copy out of the buffers that are full."""
        full: list[tuple[int, Bytes]] = []
        with self._lock:
            for chunk in chunks:
                if chunk.gather is None:
                    continue
                self._waiting[chunk.gather] -= 1
                if not self._waiting[chunk.gather]:
                    full.append((chunk.gather, self._scratch.pop(chunk.gather)))
        for number, scratch in full:
            gather = self._gathers[number]
            gather.copy(scratch, self._targets[gather.tensor])
