"""The manifest: which bytes of which files are a checkpoint.

It is one JSON document, written last and named by its own digest. `tensors` holds a row a tensor::

    [path, kind, dtype, shape, [[offsets, sizes, [[file, file_offset, start, stop, digests], ...]], ...]]

A tensor is made of boxes; a box of extents: the bytes `[start, stop)` of the box lie in one file from `file_offset` on,
and `digests` are the checksums (XXH3-128, hexadecimal, joined) of their chunks. Rows, not objects, because a state may
have many thousands of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from checkpointing.core.digest import DIGEST_NBYTES
from checkpointing.core.layout import ITEM_NBYTES, Box, chunk_bounds, chunk_count, covers_exactly
from checkpointing.errors import Damaged, ForeignObject, UnsupportedVersion

FORMAT = "elastic-checkpoint"
VERSION = 1


class MalformedManifest(Damaged):
    """Report a manifest that is JSON, but does not make sense; what wrote it has a fault."""

    what = "makes no sense"


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a run of chunks of a box lies.

    Attributes:
        file: The file's number in the manifest.
        file_offset: Of the first byte, counted from the beginning of the file.
        start: First byte within the box; a multiple of the chunk size.
        stop: One past the last.
        digests: The checksums of the chunks, joined.
    """

    file: int
    file_offset: int
    start: int
    stop: int
    digests: bytes

    def chunks(self, chunk_nbytes: int) -> list[tuple[int, int, bytes]]:
        """Return (start, stop, digest) of each chunk, within the box."""
        return [
            (begin, end, self.digests[i * DIGEST_NBYTES : (i + 1) * DIGEST_NBYTES])
            for i, (begin, end) in enumerate(chunk_bounds(self.start, self.stop, chunk_nbytes))
        ]


@dataclass(frozen=True, slots=True)
class StoredBox:
    """A box of a tensor and the extents that hold its bytes, by rising `start`."""

    box: Box
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the boxes that it is made of."""

    path: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    boxes: tuple[StoredBox, ...]

    @property
    def nbytes(self) -> int:
        """Return its size."""
        return Box.whole(self.shape).count * ITEM_NBYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A shard file.

    Attributes:
        key: Its name in the store.
        nbytes: Its size.
        header_nbytes: The size of its safetensors header, with the length field.
        header_digest: The header's checksum.
        saves: How many checkpoints have used it, this one included.
    """

    key: str
    nbytes: int
    header_nbytes: int
    header_digest: str
    saves: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """All there is to know about a checkpoint.

    Attributes:
        job: Whose it is.
        step: The step it was taken after.
        fence: The fence it was written under.
        created_unix_s: When, by the writer's clock; for people only.
        world_size: How many writers wrote it.
        chunk_nbytes: The chunk size.
        metadata: What the user gave, as JSON.
        skeleton: The tree's structure and plain values (:mod:`checkpointing.core.tree`).
        tensors: By the number that the skeleton calls them.
        files: Those that hold the chunks, also of earlier saves.
        retired: Numbers of files of which so little is still used that the next save should not refer to them.
        pickled: Paths of pickled values.
    """

    job: str
    step: int
    fence: int
    created_unix_s: float
    world_size: int
    chunk_nbytes: int
    metadata: Mapping[str, Any]
    skeleton: Any
    tensors: tuple[StoredTensor, ...]
    files: tuple[StoredFile, ...]
    retired: tuple[int, ...] = ()
    pickled: tuple[str, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Return the size of the state's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as compact JSON."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "job": manifest.job,
        "step": manifest.step,
        "fence": manifest.fence,
        "created_unix_s": manifest.created_unix_s,
        "world_size": manifest.world_size,
        "chunk_nbytes": manifest.chunk_nbytes,
        "metadata": dict(manifest.metadata),
        "pickled": manifest.pickled,
        "files": encode_files(manifest.files),
        "retired": manifest.retired,
        "tree": manifest.skeleton,
        "tensors": [
            (tensor.path, tensor.kind, tensor.dtype, tensor.shape, encode_boxes(tensor.boxes))
            for tensor in manifest.tensors
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def encode_files(files: tuple[StoredFile, ...]) -> list[Any]:
    """Return files as rows."""
    return [(file.key, file.nbytes, file.header_nbytes, file.header_digest, file.saves) for file in files]


def encode_boxes(boxes: tuple[StoredBox, ...]) -> list[Any]:
    """Return a tensor's boxes as rows."""
    return [
        (
            stored.box.offsets,
            stored.box.sizes,
            [(x.file, x.file_offset, x.start, x.stop, x.digests.hex()) for x in stored.extents],
        )
        for stored in boxes
    ]


def decode_boxes(rows: Any) -> tuple[StoredBox, ...]:
    """Return the boxes that rows describe.

    Raises:
        ValueError, TypeError: The rows are malformed.
    """
    return tuple(
        StoredBox(
            Box(tuple(offsets), tuple(sizes)),
            tuple(
                Extent(file, file_offset, start, stop, bytes.fromhex(digests))
                for file, file_offset, start, stop, digests in extents
            ),
        )
        for offsets, sizes, extents in rows
    )


def decode_manifest(data: bytes, key: str) -> Manifest:
    """Return the manifest that bytes hold, checked for sense.

    Args:
        data: The JSON document; its checksum was compared by the caller.
        key: Where it came from, for messages.

    Raises:
        ForeignObject: Not a manifest at all.
        UnsupportedVersion: Of a newer version.
        MalformedManifest: Parts are missing or contradict each other.
    """
    document = parse_document(data, key, FORMAT, VERSION)
    try:
        manifest = Manifest(
            job=str(document["job"]),
            step=int(document["step"]),
            fence=int(document["fence"]),
            created_unix_s=float(document["created_unix_s"]),
            world_size=int(document["world_size"]),
            chunk_nbytes=int(document["chunk_nbytes"]),
            metadata=dict(document["metadata"]),
            skeleton=document["tree"],
            tensors=tuple(
                StoredTensor(path, kind, dtype, tuple(shape), decode_boxes(boxes))
                for path, kind, dtype, shape, boxes in document["tensors"]
            ),
            files=tuple(StoredFile(*row) for row in document["files"]),
            retired=tuple(document["retired"]),
            pickled=tuple(document["pickled"]),
        )
        fault = find_fault(manifest)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise MalformedManifest(key, f"{type(error).__name__}: {error}") from error
    if fault:
        raise MalformedManifest(key, fault)
    return manifest


def parse_document(data: bytes, key: str, expected: str, version: int) -> dict[str, Any]:
    """Return a JSON object of this package.

    Raises:
        ForeignObject: Something else.
        UnsupportedVersion: Of a newer version.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ForeignObject(key, f"it is not JSON: {error}") from error
    if not isinstance(document, dict) or cast("dict[str, Any]", document).get("format") != expected:
        raise ForeignObject(key, f'it does not say "format": "{expected}"')
    found = cast("dict[str, Any]", document)
    if not isinstance(found.get("version"), int) or not 1 <= found["version"] <= version:
        raise UnsupportedVersion(key, found.get("version"), version)
    return found


def find_fault(manifest: Manifest) -> str:
    """Return what is wrong with a manifest, or "": every byte of every tensor must be there exactly once."""
    if manifest.chunk_nbytes < 1:
        return f"chunks of {manifest.chunk_nbytes} bytes"
    for tensor in manifest.tensors:
        if tensor.dtype not in ITEM_NBYTES:
            return f"tensor {tensor.path} has the unknown dtype {tensor.dtype}"
        if not covers_exactly([stored.box for stored in tensor.boxes], tensor.shape):
            return f"the boxes of tensor {tensor.path} do not cover it exactly once"
        for stored in tensor.boxes:
            fault = _find_box_fault(stored, stored.box.count * ITEM_NBYTES[tensor.dtype], manifest)
            if fault:
                return f"tensor {tensor.path}: {fault}"
    return ""


def _find_box_fault(stored: StoredBox, nbytes: int, manifest: Manifest) -> str:
    end = 0
    for extent in stored.extents:
        if extent.start != end or extent.stop <= end:
            return f"bytes from {end} on are not followed by those from {extent.start} to {extent.stop}"
        if extent.start % manifest.chunk_nbytes:
            return f"an extent begins at {extent.start}, within a chunk"
        end = extent.stop
        if len(extent.digests) != DIGEST_NBYTES * chunk_count(extent.stop - extent.start, manifest.chunk_nbytes):
            return f"the extent from {extent.start} has another number of checksums than of chunks"
        if not 0 <= extent.file < len(manifest.files):
            return f"file number {extent.file} of {len(manifest.files)}"
        file = manifest.files[extent.file]
        if extent.file_offset < file.header_nbytes or extent.file_offset + extent.stop - extent.start > file.nbytes:
            return f"the extent from {extent.start} lies outside of {file.key}"
    return "" if end == nbytes else f"{end} of {nbytes} bytes are there"
