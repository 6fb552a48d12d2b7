"""A manifest that does not describe every byte exactly once is refused, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from checkpointing.core.layout import Box
from checkpointing.core.manifest import (
    Extent,
    MalformedManifest,
    Manifest,
    StoredBox,
    StoredFile,
    StoredTensor,
    decode_manifest,
    encode_manifest,
)

GOOD = Manifest(
    job="job", step=1, fence=2, created_unix_s=3.5, world_size=2, chunk_nbytes=16, metadata={"a": 1}, skeleton=[None],
    tensors=(
        StoredTensor(
            "t", "numpy", "F32", (2, 6),
            (
                StoredBox(Box((0, 0), (2, 3)), (Extent(0, 8, 0, 16, b"a" * 16), Extent(1, 8, 16, 24, b"b" * 16))),
                StoredBox(Box((0, 3), (2, 3)), (Extent(1, 16, 0, 24, b"c" * 32),)),
            ),
        ),
    ),
    files=(StoredFile("x", 24, 8, "d"), StoredFile("y", 40, 8, "e")),
    retired=(0,),
    pickled=("t",),
)  # fmt: skip

TENSOR = GOOD.tensors[0]
FIRST, SECOND = TENSOR.boxes


def with_boxes(*boxes: StoredBox) -> Manifest:
    return replace(GOOD, tensors=(replace(TENSOR, boxes=boxes),))


def with_extents(*extents: Extent) -> Manifest:
    return with_boxes(replace(FIRST, extents=extents), SECOND)


def test_a_manifest_comes_back_as_it_was() -> None:
    assert decode_manifest(encode_manifest(GOOD), "key") == GOOD


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: with_boxes(FIRST), "do not cover it exactly once"),
        (lambda: with_boxes(FIRST, FIRST), "do not cover it exactly once"),
        (lambda: with_boxes(FIRST, replace(SECOND, box=Box((0, 4), (2, 3)))), "do not cover it exactly once"),
        (lambda: with_extents(FIRST.extents[0]), "16 of 24 bytes"),
        (lambda: with_extents(FIRST.extents[1]), "not followed"),
        (lambda: with_extents(*FIRST.extents, FIRST.extents[1]), "not followed"),
        (lambda: with_extents(replace(FIRST.extents[0], digests=b""), FIRST.extents[1]), "number of checksums"),
        (lambda: with_extents(replace(FIRST.extents[0], file=2), FIRST.extents[1]), "file number 2 of 2"),
        (lambda: with_extents(replace(FIRST.extents[0], file=-1), FIRST.extents[1]), "file number -1"),
        (lambda: with_extents(replace(FIRST.extents[0], file_offset=9), FIRST.extents[1]), "outside of x"),
        (lambda: with_extents(replace(FIRST.extents[0], file_offset=7), FIRST.extents[1]), "outside of x"),
        (lambda: replace(GOOD, chunk_nbytes=0), "chunks of 0 bytes"),
        (lambda: replace(GOOD, tensors=(replace(TENSOR, dtype="F5"),)), "unknown dtype F5"),
    ],
)
def test_a_manifest_that_makes_no_sense_says_why(spoil: Callable[[], Manifest], message: str) -> None:
    with pytest.raises(MalformedManifest, match=message):
        decode_manifest(encode_manifest(spoil()), "key")


@pytest.mark.parametrize("name", ["job", "step", "tensors", "files", "tree", "metadata", "chunk_nbytes"])
def test_a_manifest_without_one_of_its_parts_is_refused(name: str) -> None:
    with pytest.raises(MalformedManifest, match=name):
        decode_manifest(encode_manifest(GOOD).replace(f'"{name}":'.encode(), b'"other":', 1), "key")
