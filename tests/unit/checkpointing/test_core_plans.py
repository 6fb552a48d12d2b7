"""The pure planners: division among writers, resharding, increments, retention, trees."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpointing.core.digest import DIGEST_NBYTES, digest
from checkpointing.core.division import LeafSpec, Piece, divide_line, locate_pieces, plan_pieces, staged_nbytes
from checkpointing.core.increment import ChunkIndex, Place, plan_runs
from checkpointing.core.keep import KeepAny, KeepBest, KeepEvery, KeepLast, RetentionPolicy, split
from checkpointing.core.layout import Box, chunk_bounds, covers_exactly
from checkpointing.core.manifest import Extent, Manifest, StoredBox, StoredFile, StoredTensor, find_fault
from checkpointing.core.records import CheckpointRef
from checkpointing.core.reshard import READ_NBYTES, plan_reads
from checkpointing.core.tree import Flattener, graft, unflatten
from checkpointing.errors import UnsupportedLeaf
from checkpointing.staging import split_pieces

CHUNK = 64

shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
dtypes = st.sampled_from(["F64", "F32", "BF16", "U8"])


@st.composite
def leaves(draw: st.DrawFn) -> list[LeafSpec]:
    found = draw(st.lists(st.tuples(shapes, dtypes), max_size=12))
    return [LeafSpec(f"t{i}", "numpy", dtype, shape, Box.whole(shape)) for i, (shape, dtype) in enumerate(found)]


@given(leaves(), st.integers(1, 9))
def test_every_byte_is_written_by_exactly_one_writer(specs: list[LeafSpec], world_size: int) -> None:
    written: dict[int, list[tuple[int, int]]] = {}
    loads = []
    for rank in range(world_size):
        pieces = plan_pieces(specs, rank, world_size, CHUNK)
        loads.append(sum(piece.nbytes for piece in pieces))
        for piece in pieces:
            assert piece.start % CHUNK == 0
            written.setdefault(piece.leaf, []).append((piece.start, piece.stop))
    for number, spec in enumerate(specs):
        end = 0
        for start, stop in sorted(written.get(number, [])):
            assert start == end
            end = stop
        assert end == spec.nbytes
    average = sum(loads) / world_size
    assert all(abs(load - average) <= 2 * CHUNK for load in loads), "the work is divided by bytes"


@given(leaves(), st.integers(1, 5), st.sampled_from([1, 64, 100, 256, 1 << 20]))
def test_pieces_follow_each_other_in_their_segments_and_are_aligned_to_their_elements(
    specs: list[LeafSpec], world_size: int, segment_nbytes: int
) -> None:
    for rank in range(world_size):
        pieces = plan_pieces(specs, rank, world_size, CHUNK, segment_nbytes)
        end, segments = 0, set()
        for piece in pieces:
            if piece.segment not in segments:
                segments.add(piece.segment)
                assert piece.body_offset % 4096 == 0, "a segment begins at a page"
                assert piece.body_offset - end < 4096
            else:
                assert piece.body_offset == end
            assert piece.body_offset % specs[piece.leaf].item_nbytes == 0
            end = piece.body_offset + piece.nbytes
        assert staged_nbytes(pieces) == end
        for segment in segments:
            inside = [piece for piece in pieces if piece.segment == segment]
            assert sum(piece.nbytes for piece in inside) <= max(segment_nbytes, CHUNK)
            assert len({piece.leaf for piece in inside}) == len(inside)


@given(leaves(), st.integers(1, 5), st.sampled_from([64, 100, 256]), st.sampled_from([64, 128]))
def test_pieces_are_found_within_others_that_hold_them(
    specs: list[LeafSpec], world_size: int, segment_nbytes: int, other_segment_nbytes: int
) -> None:
    whole = plan_pieces(specs, 0, 1, CHUNK, segment_nbytes)
    staged = {(p.leaf, b): p.body_offset + b - p.start for p in whole for b in range(p.start, p.stop)}
    for rank in range(world_size):
        wanted = plan_pieces(specs, rank, world_size, CHUNK, other_segment_nbytes)
        located = locate_pieces(wanted, whole)
        assert [(p.leaf, b) for p in located for b in range(p.start, p.stop)] == [
            (p.leaf, b) for p in wanted for b in range(p.start, p.stop)
        ]
        for piece in located:
            assert piece.start % CHUNK == 0
            assert all(
                staged[piece.leaf, b] == piece.body_offset + b - piece.start for b in range(piece.start, piece.stop)
            )


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 40))
def test_copies_of_a_shard_are_divided_among_those_who_hold_them(copies: int, shards: int, rows: int) -> None:
    written = []
    for shard in range(shards):
        for copy in range(copies):
            box = Box((shard * rows, 0), (rows, 16))
            spec = LeafSpec("t", "torch", "F32", (shards * rows, 16), box, copies, copy)
            written += [(shard, p.start, p.stop) for p in plan_pieces([spec], 0, 1, CHUNK)]
    for shard in range(shards):
        end = 0
        for _, start, stop in sorted(part for part in written if part[0] == shard):
            assert start == end
            end = stop
        assert end == rows * 16 * 4


@given(st.lists(st.integers(0, 100), max_size=50), st.integers(1, 12))
def test_a_line_is_cut_into_runs_of_about_equal_size(sizes: list[int], parts: int) -> None:
    cuts = divide_line(sizes, parts)
    assert cuts[0] == 0
    assert cuts[-1] == len(sizes)
    assert cuts == sorted(cuts)
    largest = max(sizes, default=0)
    for first, last in itertools.pairwise(cuts):
        assert sum(sizes[first:last]) <= sum(sizes) / parts + largest + 1


@given(leaves(), st.integers(1, 4))
def test_copying_threads_divide_the_pieces_without_gap_or_overlap(specs: list[LeafSpec], shares: int) -> None:
    pieces = plan_pieces(specs, 0, 1, CHUNK)
    divided = [piece for share in split_pieces(pieces, shares, CHUNK) for piece in share]
    assert [(p.leaf, b) for p in divided for b in range(p.start, p.stop)] == [
        (p.leaf, b) for p in pieces for b in range(p.start, p.stop)
    ]


# Resharding


@st.composite
def cut_boxes(draw: st.DrawFn, shape: tuple[int, ...]) -> list[Box]:
    """Cut a tensor into a grid of boxes."""
    edges = []
    for size in shape:
        inner = draw(st.lists(st.integers(1, size - 1), max_size=2, unique=True)) if size > 1 else []
        edges.append([0, *sorted(inner), size])
    boxes = [Box((), ())]
    for axis in edges:
        boxes = [
            Box((*box.offsets, low), (*box.sizes, high - low))
            for box in boxes
            for low, high in itertools.pairwise(axis)
        ]
    return boxes


@st.composite
def resharding(draw: st.DrawFn) -> tuple[np.ndarray, list[Box], Box, int]:
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=3)))
    dtype = draw(st.sampled_from(["f8", "f4", "f2", "u1"]))
    array = np.arange(math.prod(shape), dtype="i8").astype(dtype).reshape(shape)
    lows = [draw(st.integers(0, size - 1)) for size in shape]
    sizes = [draw(st.integers(1, size - low)) for size, low in zip(shape, lows, strict=True)]
    chunk = draw(st.sampled_from([16, 32, 64, 4096]))
    return array, draw(cut_boxes(shape)), Box(tuple(lows), tuple(sizes)), chunk


def store_boxes(array: np.ndarray, boxes: list[Box], chunk_nbytes: int) -> tuple[Manifest, bytes]:
    """Lay boxes out in one file, each in two extents where it has several chunks."""
    names = {"f8": "F64", "f4": "F32", "f2": "F16", "u1": "U8"}
    body = b"HEAD"
    stored = []
    for box in boxes:
        data = np.ascontiguousarray(array[box.within(Box.whole(array.shape))]).tobytes()
        extents = []
        half = len(data) // chunk_nbytes // 2 * chunk_nbytes
        for start, stop in sorted({(0, half), (half, len(data))}):
            if start < stop:
                joined = b"".join(digest(data[a:b]) for a, b in chunk_bounds(start, stop, chunk_nbytes))
                extents.append(Extent(0, len(body), start, stop, joined))
                body += data[start:stop] + b"?"
        stored.append(StoredBox(box, tuple(extents)))
    tensor = StoredTensor("t", "numpy", names[array.dtype.str[1:]], array.shape, tuple(stored))
    file = StoredFile("file", len(body), 4, "")
    manifest = Manifest("job", 0, 0, 0.0, 1, chunk_nbytes, {}, None, (tensor,), (file,))
    assert find_fault(manifest) == ""
    return manifest, body


@given(resharding())
def test_any_box_can_be_read_from_any_layout(case: tuple[np.ndarray, list[Box], Box, int]) -> None:
    array, boxes, wanted, chunk_nbytes = case
    manifest, body = store_boxes(array, boxes, chunk_nbytes)
    plan = plan_reads(manifest, {0: wanted})
    target = np.full(wanted.count * array.itemsize, 0xEE, np.uint8)
    scratch = [np.zeros(gather.nbytes, np.uint8) for gather in plan.gathers]
    for read in plan.reads:
        assert read.nbytes == sum(chunk.nbytes for chunk in read.chunks)
        assert read.nbytes <= READ_NBYTES
        for chunk in read.chunks:
            data = body[chunk.offset : chunk.offset + chunk.nbytes]
            assert digest(data) == chunk.digest
            home = target if chunk.gather is None else scratch[chunk.gather]
            home[chunk.start : chunk.start + chunk.nbytes] = np.frombuffer(data, np.uint8)
    for gather, buffer in zip(plan.gathers, scratch, strict=True):
        gather.copy(buffer, target)
    expected = array[wanted.within(Box.whole(array.shape))]
    assert target.tobytes() == np.ascontiguousarray(expected).tobytes()


def test_only_the_needed_byte_ranges_are_read() -> None:
    array = np.arange(1 << 20, dtype="f4").reshape(1024, 1024)
    manifest, _ = store_boxes(array, [Box.whole(array.shape)], 4096)
    rows = plan_reads(manifest, {0: Box((256, 0), (256, 1024))})
    assert rows.nbytes == array.nbytes // 4
    assert all(read.is_direct for read in rows.reads)
    wide = array.reshape(64, 16384)
    manifest, _ = store_boxes(wide, [Box.whole(wide.shape)], 4096)
    columns = plan_reads(manifest, {0: Box((0, 0), (64, 4096))})
    assert columns.nbytes == array.nbytes // 4


def test_thousands_of_small_tensors_are_a_handful_of_reads() -> None:
    tensors = []
    for number in range(5000):
        extent = Extent(0, 4 + number * 64, 0, 64, bytes(DIGEST_NBYTES))
        tensors.append(StoredTensor(f"t{number}", "numpy", "U8", (64,), (StoredBox(Box((0,), (64,)), (extent,)),)))
    manifest = Manifest("j", 0, 0, 0.0, 1, 1 << 20, {}, None, tuple(tensors), (StoredFile("f", 400_000, 4, ""),))
    assert len(plan_reads(manifest, {number: Box((0,), (64,)) for number in range(5000)}).reads) == 1


@given(shapes.flatmap(lambda shape: st.tuples(st.just(shape), cut_boxes(shape) if 0 not in shape else st.just([]))))
def test_a_grid_of_boxes_covers_its_tensor_and_no_other_set_does(case: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = case
    assert covers_exactly(boxes, shape)
    if boxes and 0 not in shape:
        assert not covers_exactly(boxes[1:], shape)
        assert not covers_exactly([*boxes, boxes[0]], shape)
        if len(boxes) > 1:
            assert not covers_exactly([boxes[0], *boxes[:-1]], shape)


# Increments


@given(st.lists(st.integers(0, 6), max_size=30), st.sets(st.integers(0, 6)), st.integers(0, CHUNK - 1))
def test_runs_cover_a_piece_and_take_from_the_index_just_what_it_has(
    contents: list[int], known: set[int], tail: int
) -> None:
    chunks = [bytes([content]) * CHUNK for content in contents]
    if chunks and tail:
        chunks[-1] = chunks[-1][:tail]
    data = b"".join(chunks)
    file = StoredFile("old", 10_000, 0, "")
    places = {(digest(bytes([c]) * CHUNK), CHUNK): Place(file, c * CHUNK) for c in known}
    joined = b"".join(map(digest, chunks))
    runs = plan_runs([Piece(0, 0, len(data), 0)], [joined], ChunkIndex(places), CHUNK)
    end = 0
    old = b"".join(bytes([c]) * CHUNK for c in range(7))
    for run in runs:
        assert run.start == end
        end = run.stop
        part = data[run.start : run.stop]
        assert run.digests == b"".join(digest(part[a:b]) for a, b in chunk_bounds(0, len(part), CHUNK))
        if run.place is not None:
            assert old[run.place.offset : run.place.offset + run.nbytes] == part
        else:
            assert all(part[a] not in known or b - a < CHUNK for a, b in chunk_bounds(0, len(part), CHUNK))
    assert end == len(data)


# Retention

policies = st.recursive(
    st.one_of(
        st.builds(KeepLast, st.integers(1, 5)),
        st.builds(KeepBest, st.just("loss"), st.integers(1, 3), st.sampled_from(["min", "max"])),
        st.builds(KeepEvery, st.integers(1, 50)),
    ),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda found: KeepAny(*found)),
    max_leaves=4,
)
refs = st.builds(
    CheckpointRef,
    st.integers(0, 200),
    st.integers(0, 9),
    st.uuids().map(lambda value: value.hex),
    st.one_of(st.just({}), st.floats(width=16).map(lambda loss: {"loss": loss})),
)


@given(policies, st.lists(refs, min_size=1, max_size=20))
def test_retention_never_drops_the_newest(policy: RetentionPolicy, checkpoints: list[CheckpointRef]) -> None:
    kept, dropped = split(policy, checkpoints)
    assert kept[-1] == checkpoints[-1]
    assert sorted([*kept, *dropped], key=checkpoints.index) == checkpoints
    again, none = split(policy, kept)
    assert isinstance(policy, KeepBest | KeepAny) or (again == kept and not none), "keeping what is kept drops nothing"


def test_the_best_are_those_with_the_best_metric() -> None:
    checkpoints = [CheckpointRef(i, 1, str(i), {"loss": x}) for i, x in enumerate([3.0, 1.0, math.nan, 2.0, 1.0, 9.0])]
    assert KeepBest("loss", 2).choose(checkpoints) == {1, 4}
    assert KeepBest("loss", 1).choose(checkpoints) == {4}, "of equals the newer"
    assert KeepBest("loss", 1, "max").choose(checkpoints) == {5}
    assert KeepBest("accuracy").choose(checkpoints) == set()


@pytest.mark.parametrize("make", [lambda: KeepLast(0), lambda: KeepBest("x", 0), lambda: KeepEvery(0), KeepAny])
def test_a_policy_that_would_keep_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"1 or more|nothing"):
        make()


# Trees

plain = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20), st.complex_numbers()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.dictionaries(st.integers(), inner, max_size=4),
        st.frozensets(st.integers() | st.text(), max_size=3),
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back_from_json_as_they_were(tree: Any) -> None:
    flat = Flattener(lambda *_: None, lambda *_: None).flatten(tree)
    back = unflatten(json.loads(json.dumps(flat.skeleton)), [], lambda encoded: encoded)
    assert told_apart(back) == told_apart(tree)


def told_apart(value: Any) -> Any:
    """Return what differs exactly where two plain values differ: also for nan, -0.0, 1 and True, and sets."""
    if isinstance(value, list | tuple):
        return type(value)(map(told_apart, value))
    if isinstance(value, dict):
        return [(repr(key), told_apart(item)) for key, item in value.items()]
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def test_a_container_that_holds_itself_is_refused() -> None:
    tree: dict[str, Any] = {"a": []}
    tree["a"].append(tree)
    with pytest.raises(UnsupportedLeaf, match="holds itself"):
        Flattener(lambda *_: None, lambda *_: None).flatten(tree)


def test_two_tensors_with_one_path_are_refused() -> None:
    with pytest.raises(UnsupportedLeaf, match="two values have this path"):
        Flattener(lambda value, _: value, lambda *_: None).flatten({1: object(), "1": object()})


def test_grafting_takes_plain_values_where_both_trees_have_them() -> None:
    into = {"a": 1, "b": [1, 2], "c": {"d": 5, "e": 6}, "f": (1,)}
    tree = {"a": 10, "b": [10, 20], "c": {"d": 50}, "f": [1], "g": 7}
    assert graft(into, tree) == {"a": 10, "b": [10, 20], "c": {"d": 50, "e": 6}, "f": (1,)}
