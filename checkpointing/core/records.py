"""The small documents beside the manifests: the pointer, and what each writer wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from checkpointing.core.digest import hex_digest
from checkpointing.core.manifest import (
    MalformedManifest,
    StoredBox,
    StoredFile,
    decode_boxes,
    encode_boxes,
    encode_files,
    parse_document,
)

POINTER_FORMAT = "elastic-checkpoint-pointer"
RECORD_FORMAT = "elastic-checkpoint-shard"
VERSION = 1


@dataclass(frozen=True, slots=True)
class CheckpointRef:
    """A committed checkpoint, as the pointer lists it.

    Attributes:
        step: The step it was taken after.
        fence: The fence it was written under.
        digest: The checksum of its manifest, which names the manifest.
        metrics: The numbers that retention judges it by.
    """

    step: int
    fence: int
    digest: str
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class PointerRecord:
    """What is committed: every checkpoint that is kept, oldest first.

    Attributes:
        job: Whose it is.
        fence: Of the last commit; older ones are refused from now on.
        checkpoints: Oldest first; the last is the newest.
        replaces: The digest of the record that this one was made from; "" if there was none. Whoever stores it must
            refuse it when another record is in place, or one writer undoes the commit of another.
    """

    job: str
    fence: int
    checkpoints: tuple[CheckpointRef, ...]
    replaces: str = ""

    @property
    def newest(self) -> CheckpointRef | None:
        """Return the newest checkpoint."""
        return self.checkpoints[-1] if self.checkpoints else None

    def to_bytes(self) -> bytes:
        """Encode as JSON; equal records have equal bytes."""
        document = {
            "format": POINTER_FORMAT,
            "version": VERSION,
            "job": self.job,
            "fence": self.fence,
            "replaces": self.replaces,
            "checkpoints": [(ref.step, ref.fence, ref.digest, dict(ref.metrics)) for ref in self.checkpoints],
        }
        return _sealed(document)

    @classmethod
    def from_bytes(cls, data: bytes, key: str = "pointer") -> PointerRecord:
        """Decode what `to_bytes` made.

        Raises:
            ForeignObject: Not a pointer.
            UnsupportedVersion: Of a newer version.
            MalformedManifest: Its checksum is wrong, or parts are missing.
        """
        document = _unsealed(data, key, POINTER_FORMAT)
        try:
            return cls(
                job=str(document["job"]),
                fence=int(document["fence"]),
                checkpoints=tuple(
                    CheckpointRef(int(step), int(fence), str(digest), {str(k): float(v) for k, v in metrics.items()})
                    for step, fence, digest, metrics in document["checkpoints"]
                ),
                replaces=str(document["replaces"]),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise MalformedManifest(key, f"{type(error).__name__}: {error}") from error

    @property
    def digest(self) -> str:
        """Return the checksum of the record."""
        return hex_digest(self.to_bytes())


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What one writer wrote of one save.

    Attributes:
        step: The step.
        fence: The fence.
        rank: The writer.
        world_size: Of how many.
        structure: The digest of the tensors' paths, dtypes and shapes, which must be the same for all writers.
        files: Those that its extents refer to, also of earlier saves.
        parts: For each tensor's number, the boxes (with the extents) that this writer answers for.
        refusal: Why this writer takes no part in this save; "" if it does.
    """

    step: int
    fence: int
    rank: int
    world_size: int
    structure: str
    files: tuple[StoredFile, ...]
    parts: Mapping[int, tuple[StoredBox, ...]]
    refusal: str = ""

    def to_bytes(self) -> bytes:
        """Encode as JSON with a checksum."""
        document = {
            "format": RECORD_FORMAT,
            "version": VERSION,
            "step": self.step,
            "fence": self.fence,
            "rank": self.rank,
            "world_size": self.world_size,
            "structure": self.structure,
            "refusal": self.refusal,
            "files": encode_files(self.files),
            "parts": [(number, encode_boxes(boxes)) for number, boxes in self.parts.items()],
        }
        return _sealed(document)

    @classmethod
    def from_bytes(cls, data: bytes, key: str) -> ShardRecord:
        """Decode what `to_bytes` made.

        Raises:
            ForeignObject: Not a shard record.
            UnsupportedVersion: Of a newer version.
            MalformedManifest: Its checksum or its parts are wrong.
        """
        document = _unsealed(data, key, RECORD_FORMAT)
        try:
            return cls(
                step=int(document["step"]),
                fence=int(document["fence"]),
                rank=int(document["rank"]),
                world_size=int(document["world_size"]),
                structure=str(document["structure"]),
                refusal=str(document["refusal"]),
                files=tuple(StoredFile(*row) for row in document["files"]),
                parts={int(number): decode_boxes(boxes) for number, boxes in document["parts"]},
            )
        except (KeyError, ValueError, TypeError) as error:
            raise MalformedManifest(key, f"{type(error).__name__}: {error}") from error

    def renumbered(self, numbers: Mapping[str, int]) -> dict[int, tuple[StoredBox, ...]]:
        """Return the parts with each file's number replaced by what `numbers` gives for its key."""
        table = [numbers[file.key] for file in self.files]
        if table == list(range(len(table))):
            return dict(self.parts)
        return {
            number: tuple(
                replace(stored, extents=tuple(replace(x, file=table[x.file]) for x in stored.extents))
                for stored in boxes
            )
            for number, boxes in self.parts.items()
        }


def structure_digest(rows: list[tuple[str, str, tuple[int, ...]]]) -> str:
    """Return the digest of the tensors' paths, dtypes and shapes."""
    return hex_digest(json.dumps(rows, separators=(",", ":")).encode())


def _sealed(document: dict[str, Any]) -> bytes:
    """Return a document as JSON that ends with its own checksum."""
    body = json.dumps(document, separators=(",", ":"))
    return f'{body[:-1]},"digest":"{hex_digest(body.encode())}"}}'.encode()


def _unsealed(data: bytes, key: str, expected: str) -> dict[str, Any]:
    document = parse_document(data, key, expected, VERSION)
    stated = document.pop("digest", "")
    if stated != hex_digest(json.dumps(document, separators=(",", ":")).encode()):
        raise MalformedManifest(key, "its checksum is wrong")
    return document
