"""What is committed: the pointer, and the manifests it leads to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Protocol

from checkpointing.core.digest import hex_digest
from checkpointing.core.manifest import Manifest, decode_manifest, encode_manifest
from checkpointing.core.naming import Keys, ManifestName
from checkpointing.core.records import CheckpointRef, PointerRecord
from checkpointing.errors import ChecksumMismatch, Damaged, ForeignObject, MissingObject, PointerMoved, StaleFence
from storage.errors import AlreadyExists, NotFound, PreconditionFailed
from storage.store import ObjectStore

CONDEMNED_FORMAT = "elastic-checkpoint-condemned"

DAMAGED = "damaged-"
"""How notices begin that say a file is damaged; those of collections do not."""


class Pointer(Protocol):
    """The one thing that changes: which checkpoints are committed.

    Whatever keeps it must make `commit` atomic: of two commits that replace the same record one is refused. The suite
    `tests/conformance/checkpointing` holds every implementation to this.
    """

    def read(self) -> PointerRecord | None:
        """Return the newest record, or None if nothing was committed yet."""

    def commit(self, record: PointerRecord, fence: int) -> None:
        """Replace the record.

        Raises:
            StaleFence: The record in place has a newer fence.
            PointerMoved: The record in place is not the one that `record.replaces` names.
        """


def check_commit(current: PointerRecord | None, record: PointerRecord, fence: int) -> None:
    """Refuse a commit that must not replace `current`; the part that all pointers share.

    Raises:
        StaleFence: `current` has a newer fence.
        PointerMoved: `current` is not what the record was made from.
    """
    if current is not None and current.fence > fence:
        raise StaleFence(fence, current.fence)
    if record.replaces != (current.digest if current is not None else ""):
        raise PointerMoved(f"the pointer of job {record.job!r} was replaced meanwhile; read it again")


class StorePointer:
    """Keep the pointer as an object beside the checkpoints.

    Where the store has put-if-match, commits are atomic. Where it has not (`is_atomic` is False), the record is read,
    compared and overwritten: two writers within the same few milliseconds may both believe to have committed, and the
    last one stands. Use one writer, or a pointer in a coordination service, on such a store.
    """

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._key = Keys(job).pointer

    @property
    def is_atomic(self) -> bool:
        """Tell whether concurrent writers are told apart for certain."""
        return self._store.capabilities.put_if_match and self._store.capabilities.put_if_absent

    def read(self) -> PointerRecord | None:
        """Return the newest record.

        Raises:
            Damaged: The object is not a pointer.
        """
        data = get_or_none(self._store, self._key)
        return None if data is None else PointerRecord.from_bytes(data, self._key)

    def commit(self, record: PointerRecord, fence: int) -> None:
        """Replace the record.

        Raises:
            StaleFence: A newer fence has committed.
            PointerMoved: The record in place is another than `record.replaces`.
        """
        # The tag is taken before the content: if the object changes in between, the put is refused.
        etag = self._etag()
        try:
            current = self.read()
        except Damaged:
            current = None  # unreadable bytes protect nothing; whoever replaces them has rebuilt the record from LIST
        if current is not None and current == record:
            return  # an earlier try of this very commit was applied, but its answer was lost
        check_commit(current, record, fence)
        if not self.is_atomic:
            self._store.put(self._key, record.to_bytes())
            return
        try:
            if etag is None:
                self._store.put(self._key, record.to_bytes(), if_absent=True)
            else:
                self._store.put(self._key, record.to_bytes(), if_match=etag)
        except (AlreadyExists, PreconditionFailed) as error:
            raise PointerMoved(f"{self._key} was replaced meanwhile; read it again") from error

    def _etag(self) -> str | None:
        try:
            return self._store.head(self._key).etag
        except NotFound as error:
            if type(error) is not NotFound:
                raise
            return None


def get_or_none(store: ObjectStore, key: str) -> bytes | None:
    """Return an object, or None if there is none; a missing bucket stays an error."""
    try:
        return store.get(key)
    except NotFound as error:
        if type(error) is not NotFound:
            raise
        return None


class Catalog:
    """Find and record the checkpoints of one job in one store.

    Args:
        store: Where the manifests are.
        keys: The job's keys.
        pointer: What says which of them are committed.
    """

    def __init__(self, store: ObjectStore, keys: Keys, pointer: Pointer) -> None:
        self.store = store
        self.keys = keys
        self.pointer = pointer
        self._cached: dict[str, Manifest] = {}
        self._files: dict[str, frozenset[str]] = {}

    def committed(self) -> tuple[CheckpointRef, ...]:
        """Return what the pointer lists, newest first.

        Raises:
            Damaged: The pointer is not readable.
        """
        record = self.pointer.read()
        if record is None:
            return ()
        if record.job != self.keys.job:
            raise ForeignObject(self.keys.pointer, f"it is of job {record.job!r}")
        return tuple(reversed(record.checkpoints))

    def listed(self) -> tuple[CheckpointRef, ...]:
        """Return every manifest that LIST finds, newest first; some may never have been committed."""
        names: list[ManifestName] = []
        for info in self.store.list(self.keys.manifests):
            try:
                names.append(self.keys.parse_manifest(info.key))
            except ForeignObject:
                continue
        names.sort(key=lambda name: (name.fence, name.step, name.digest), reverse=True)
        return tuple(CheckpointRef(name.step, name.fence, name.digest) for name in names)

    def key_of(self, ref: CheckpointRef) -> str:
        """Return the key of a checkpoint's manifest."""
        return self.keys.manifest(ManifestName(ref.step, ref.fence, ref.digest))

    def read_manifest(self, ref: CheckpointRef) -> Manifest:
        """Return a verified manifest.

        Raises:
            Damaged: It is missing, changed, of another job, or makes no sense.
            UnsupportedVersion: It is of a newer version.
        """
        if ref.digest in self._cached:
            return self._cached[ref.digest]
        key = self.key_of(ref)
        data = get_or_none(self.store, key)
        if data is None:
            raise MissingObject(key)
        if hex_digest(data) != ref.digest:
            raise ChecksumMismatch(key, f"{len(data)} bytes")
        manifest = decode_manifest(data, key)
        if (manifest.job, manifest.step, manifest.fence) != (self.keys.job, ref.step, ref.fence):
            raise ForeignObject(key, f"it is of job {manifest.job!r}, step {manifest.step}, fence {manifest.fence}")
        self._remember(ref.digest, manifest)
        return manifest

    def put_manifest(self, manifest: Manifest) -> CheckpointRef:
        """Write a manifest and return what to enter in the pointer."""
        data = encode_manifest(manifest)
        ref = CheckpointRef(manifest.step, manifest.fence, hex_digest(data))
        try:
            self.store.put(self.key_of(ref), data, if_absent=self.store.capabilities.put_if_absent)
        except AlreadyExists:
            # Named by its content, so it is the same, unless bytes of it were changed.
            if self.store.get(self.key_of(ref)) != data:
                self.store.put(self.key_of(ref), data)
        self._remember(ref.digest, manifest)
        return ref

    def condemned(self) -> set[str]:
        """Return the keys that no new checkpoint may refer to: being collected, or found damaged."""
        condemned: set[str] = set()
        for info in self.store.list(self.keys.collections):
            data = get_or_none(self.store, info.key)
            if data is not None:
                condemned.update(json.loads(data)["keys"])
        return condemned

    def condemn(self, notice: str, keys: Iterable[str]) -> str:
        """Tell all writers not to refer to some keys any more, and return the key of the notice."""
        key = self.keys.condemned(notice)
        document = {"format": CONDEMNED_FORMAT, "version": 1, "keys": list(keys)}
        self.store.put(key, json.dumps(document, separators=(",", ":")).encode())
        return key

    def files_of(self, ref: CheckpointRef) -> frozenset[str]:
        """Return the keys of the files that a checkpoint refers to.

        Raises:
            Damaged: Its manifest is not readable.
            UnsupportedVersion: It is of a newer version.
        """
        if ref.digest not in self._files:
            self.read_manifest(ref)
        return self._files[ref.digest]

    def _remember(self, digest: str, manifest: Manifest) -> None:
        self._files[digest] = frozenset(file.key for file in manifest.files)
        self._cached.pop(digest, None)
        self._cached[digest] = manifest
        while len(self._cached) > 2:
            del self._cached[next(iter(self._cached))]
