"""What every pointer must do, wherever it is kept. Add a way to open yours to `POINTERS`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from checkpointing import CheckpointRef, Pointer, PointerRecord, StaleFence, StorePointer
from checkpointing.errors import PointerMoved
from storage import open_store
from storage.testing import MotoServer

Open = Callable[[], Pointer]
_numbers = itertools.count()


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        server.make_bucket("pointers")
        yield server


@pytest.fixture(params=["memory", "file", pytest.param("s3", marks=pytest.mark.s3)])
def open_pointer(request: pytest.FixtureRequest, tmp_path: Path, moto: MotoServer) -> Iterator[Open]:
    """Open the same pointer as often as asked."""
    name = f"pointer-{next(_numbers)}"
    urls = {"memory": f"memory://{name}", "file": f"file://{tmp_path}", "s3": f"s3://pointers/{name}"}
    options = moto.options if request.param == "s3" else {}
    stores = []

    def open_one() -> Pointer:
        store = open_store(urls[request.param], **options)
        stores.append(store)
        pointer = StorePointer(store, "job")
        assert pointer.is_atomic
        return pointer

    yield open_one
    for store in stores:
        store.close()


def record(fence: int, *steps: int, after: PointerRecord | None = None) -> PointerRecord:
    refs = tuple(CheckpointRef(step, fence, f"{step:032x}", {"loss": step / 2}) for step in steps)
    return PointerRecord("job", fence, refs, replaces="" if after is None else after.digest)


def test_nothing_is_there_at_first(open_pointer: Open) -> None:
    assert open_pointer().read() is None


def test_a_committed_record_is_read_by_all(open_pointer: Open) -> None:
    first = record(3, 1, 2)
    open_pointer().commit(first, 3)
    assert open_pointer().read() == first


def test_a_record_takes_the_place_of_the_one_it_was_made_from(open_pointer: Open) -> None:
    pointer = open_pointer()
    first = record(3, 1)
    pointer.commit(first, 3)
    second = record(4, 1, 2, after=first)
    pointer.commit(second, 4)
    assert pointer.read() == second


def test_an_older_fence_is_refused(open_pointer: Open) -> None:
    pointer = open_pointer()
    first = record(3, 1)
    pointer.commit(first, 3)
    with pytest.raises(StaleFence) as caught:
        open_pointer().commit(record(2, 9, after=first), 2)
    assert (caught.value.fence, caught.value.newest) == (2, 3)
    assert pointer.read() == first


@pytest.mark.parametrize("fence", [3, 4])
def test_a_record_made_from_another_is_refused(open_pointer: Open, fence: int) -> None:
    pointer = open_pointer()
    first = record(3, 1)
    pointer.commit(first, 3)
    for wrong in (record(fence, 9), record(fence, 9, after=record(3, 7))):
        with pytest.raises(PointerMoved):
            open_pointer().commit(wrong, fence)
    assert pointer.read() == first


def test_a_first_record_that_was_made_from_another_is_refused(open_pointer: Open) -> None:
    with pytest.raises(PointerMoved):
        open_pointer().commit(record(3, 1, after=record(2, 1)), 3)


def test_committing_the_same_record_again_does_nothing(open_pointer: Open) -> None:
    """As a writer does whose answer was lost."""
    pointer = open_pointer()
    first = record(3, 1)
    pointer.commit(first, 3)
    second = record(3, 1, 2, after=first)
    pointer.commit(second, 3)
    pointer.commit(second, 3)
    assert pointer.read() == second


@pytest.mark.parametrize("begin_with", [None, record(0, 0)], ids=["first", "later"])
def test_of_many_commits_at_once_exactly_one_stands(open_pointer: Open, begin_with: PointerRecord | None) -> None:
    if begin_with is not None:
        open_pointer().commit(begin_with, 0)
    won: list[int] = []
    ready = threading.Barrier(6)

    def compete(number: int, pointer: Pointer) -> None:
        mine = replace(record(1, number, after=begin_with))
        ready.wait(30)
        try:
            pointer.commit(mine, 1)
        except PointerMoved:
            return
        won.append(number)

    threads = [threading.Thread(target=compete, args=(number, open_pointer())) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    found = open_pointer().read()
    assert found is not None
    assert [ref.step for ref in found.checkpoints] == won


def test_many_writers_that_try_again_lose_nothing(open_pointer: Open) -> None:
    """Each adds its own checkpoint to what it read, and reads again when it came too late."""

    def add(number: int, pointer: Pointer) -> None:
        while True:
            current = pointer.read()
            refs = () if current is None else current.checkpoints
            mine = CheckpointRef(number, 1, f"{number:032x}")
            replaces = "" if current is None else current.digest
            try:
                pointer.commit(PointerRecord("job", 1, (*refs, mine), replaces), 1)
            except PointerMoved:
                continue
            return

    threads = [threading.Thread(target=add, args=(number, open_pointer())) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = open_pointer().read()
    assert found is not None
    assert sorted(ref.step for ref in found.checkpoints) == [0, 1, 2, 3]
