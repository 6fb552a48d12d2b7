"""Reading ahead serves each step its pieces whatever changes between steps, and reads again only what it must."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.data import BatchPlan, split
from elastic_train.ports import Piece
from elastic_train.worker.prefetch import Prefetcher

SHARDS = 4
PLAN = BatchPlan(dataset_size=70, global_batch_size=8, logical_shards=SHARDS, data_epochs=2)


class DeepLoader:
    """Draws pieces `depth` ahead, as a DataLoader does, and "reads" them in order."""

    def __init__(self, feed: Iterator[Piece], depth: int) -> None:
        self.read: list[tuple[int, int, int]] = []
        self.closed = False
        self._feed = feed
        self._depth = depth
        self._under_way: deque[Piece] = deque()

    def start(self) -> None:
        assert not self._under_way, "a DataLoader cannot begin anew with pieces under way"
        for _ in range(self._depth):
            self._draw()

    def next(self) -> tuple[int, int, int]:
        piece = self._under_way.popleft()
        self.read.append(piece.name)
        self._draw()
        return piece.name

    def close(self) -> None:
        self.closed = True

    def _draw(self) -> None:
        piece = next(self._feed, None)
        if piece is not None:
            self._under_way.append(piece)


def cut(shards: tuple[int, int], step: int) -> list[Piece]:
    """Return a piece for each logical shard."""
    shares = [PLAN.share_of_shards(step, (shard, shard + 1)) for shard in range(*shards)]
    return [Piece((step, share.start, share.stop), ()) for share in shares if share.samples]


def open_prefetcher(depth: int) -> tuple[Prefetcher, DeepLoader]:
    loaders: list[DeepLoader] = []

    def open_loader(feed: Iterator[Piece]) -> DeepLoader:
        loaders.append(DeepLoader(feed, depth))
        return loaders[0]

    return Prefetcher(PLAN.total_steps, open_loader), loaders[0]


def serve(prefetcher: Prefetcher, step: int, shards: tuple[int, int], pieces: int | None = None) -> None:
    """Serve a step, or the first pieces of it."""
    prefetcher.begin(step, shards, partial(cut, shards))
    for piece in cut(shards, step)[:pieces]:
        assert prefetcher.get(piece) == piece.name


def test_an_undisturbed_worker_reads_each_piece_once() -> None:
    prefetcher, loader = open_prefetcher(depth=3)
    for step in range(PLAN.total_steps):
        serve(prefetcher, step, (1, 3))
    assert loader.read == [piece.name for step in range(PLAN.total_steps) for piece in cut((1, 3), step)]


def test_pieces_of_shards_that_stay_are_kept_and_the_others_are_dropped() -> None:
    prefetcher, loader = open_prefetcher(depth=6)
    serve(prefetcher, 0, (0, 2))  # shards 0 and 1 of steps 1, 2 and 3 are under way now
    serve(prefetcher, 1, (1, 4))  # shard 1 stays, 2 and 3 come
    for step in range(2, 5):
        serve(prefetcher, step, (1, 4))
    of_shard_1 = [cut((1, 2), step)[0].name for step in range(5)]
    assert all(loader.read.count(name) == 1 for name in of_shard_1)
    assert len(loader.read) == len(set(loader.read))


def test_an_aborted_step_is_served_again_and_only_what_was_served_is_read_again() -> None:
    prefetcher, loader = open_prefetcher(depth=4)
    serve(prefetcher, 0, (0, 4))
    serve(prefetcher, 1, (0, 4), pieces=2)
    for step in range(1, 4):
        serve(prefetcher, step, (0, 4))
    again = {name for name in loader.read if loader.read.count(name) > 1}
    assert again == {piece.name for piece in cut((0, 4), 1)[:2]}


def test_a_step_that_is_gone_through_again_is_served_again() -> None:
    prefetcher, loader = open_prefetcher(depth=5)
    serve(prefetcher, 0, (0, 4))
    serve(prefetcher, 1, (0, 4))
    for piece in cut((0, 4), 1):
        assert prefetcher.get(piece) == piece.name
    for step in range(2, 5):
        serve(prefetcher, step, (0, 4))
    assert {name for name in loader.read if loader.read.count(name) > 1} == {piece.name for piece in cut((0, 4), 1)}


def test_closing_ends_the_loader() -> None:
    prefetcher, loader = open_prefetcher(depth=2)
    prefetcher.close()
    prefetcher.close()
    assert loader.closed


@given(
    depth=st.integers(1, 9),
    walk=st.lists(
        st.tuples(
            st.integers(1, SHARDS),  # world size
            st.integers(0, SHARDS - 1),  # rank, where there is such a one
            st.integers(0, SHARDS),  # pieces served before the step is aborted
            st.sampled_from(["commit", "commit", "commit", "abort", "commit elsewhere"]),
        ),
        max_size=40,
    ),
)
def test_any_sequence_of_changes_and_aborts_is_served_what_it_asks_for(
    depth: int, walk: list[tuple[int, int, int, str]]
) -> None:
    prefetcher, loader = open_prefetcher(depth)
    step = aborted = 0
    changes = 0
    before = (0, 0)
    for world_size, rank, pieces, outcome in walk:
        if step >= PLAN.total_steps:
            break
        shards = split(SHARDS, world_size, rank % world_size)
        changes += shards != before
        before = shards
        serve(prefetcher, step, shards, pieces=None if outcome == "commit" else pieces)
        aborted += outcome != "commit"
        step += outcome != "abort"
    served_at_most = SHARDS * (step + aborted)
    assert len(loader.read) <= served_at_most + depth * (changes + aborted + 1) + SHARDS * aborted
