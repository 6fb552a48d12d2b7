"""What did not change is not copied; whatever happens meanwhile, what is loaded is what was saved."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from checkpointing import Checkpointer, KeepLast, staging
from checkpointing.errors import SaveError, StateMoved
from checkpointing.repository import Repository
from checkpointing.settings import Phase
from storage import StorageError, StoreFull
from tests.unit.checkpointing.harness import FAST, WatchedStore, memory_store, same


@pytest.fixture(autouse=True)
def two_threads_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_MIN_SHARE_NBYTES", 4096)


SMALL_FILES = replace(FAST, file_nbytes=65536, retry_for_s=0.0)


def some_state(rng: np.random.Generator) -> dict[str, Any]:
    sizes = [1, 100, 4096, 5000, 50_000, 200_000]
    return {f"t{index}": rng.integers(0, 255, size, np.uint8) for index, size in enumerate(sizes)}


def copy_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value.copy() for name, value in state.items()}


def test_what_did_not_change_lately_is_hashed_where_it_lies_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = [0]
    real = np.copyto

    def counting(target: Any, source: Any, **options: Any) -> None:
        copied[0] += target.nbytes
        real(target, source, **options)

    state = some_state(np.random.default_rng(1))
    total = sum(value.nbytes for value in state.values())
    amounts = []
    with Checkpointer(memory_store(), job="job", settings=SMALL_FILES) as checkpointer:
        for step in range(4):
            state["t5"][100_000] ^= 1
            copied[0] = 0
            monkeypatch.setattr(np, "copyto", counting)
            checkpointer.save(step, state, fence=1)
            monkeypatch.undo()
            amounts.append(copied[0])
            checkpointer.wait()
            assert same(checkpointer.load(), state)
    assert amounts[:2] == [total, total]
    assert amounts[2:] == [4096, 4096]


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_changes_and_misfortunes_is_loaded_as_it_was_saved(seed: int) -> None:
    random_ = random.Random(seed)
    rng = np.random.default_rng(seed)
    store = WatchedStore(memory_store())
    state = some_state(rng)
    versions: list[dict[str, Any]] = []
    committed = -1
    with Checkpointer(
        store, job="job", retention=KeepLast(random_.choice([1, 3])), settings=SMALL_FILES
    ) as checkpointer:
        for step in range(25):
            mutate(random_, rng, state, versions)
            befall(random_, store)
            ticket = checkpointer.save(step, state, fence=1)
            saved = copy_of(state)
            state["t5"] ^= 1  # the train loop goes on
            try:
                checkpointer.wait()
            except (SaveError, StorageError):
                assert ticket.phase is Phase.FAILED
            store.before = lambda *_: None
            if ticket.phase is Phase.COMMITTED:
                committed = step
            versions.append(saved)
            found = checkpointer.latest()
            if found is not None:
                # A save that failed may still be whole in the store; what was committed is never older than reported.
                assert found.step >= committed
                assert same(checkpointer.load(found), versions[found.step])
            state = copy_of(saved)
    assert committed >= 0


def mutate(random_: random.Random, rng: np.random.Generator, state: dict[str, Any], versions: list[Any]) -> None:
    for _ in range(random_.choice([0, 0, 1, 3])):
        name = random_.choice(list(state))
        if random_.random() < 0.2:
            state[name][:] = random_.choice([state, *versions])[name]  # as it was once
        elif random_.random() < 0.2:
            state[name][:] = rng.integers(0, 255, len(state[name]), np.uint8)
        else:
            state[name][random_.randrange(len(state[name]))] ^= 1


def befall(random_: random.Random, store: WatchedStore) -> None:
    """Let something go wrong now and then: a save that fails, a file that is condemned, a collection."""
    event = random_.random()
    if event < 0.15:
        unlucky = random_.randrange(3)
        puts = [0]

        def fail(_number: int, operation: str, _key: str) -> None:
            if operation == "put":
                puts[0] += 1
                if puts[0] > unlucky:
                    raise StoreFull("no space left")

        store.before = fail
    elif event < 0.3:
        shards = [info.key for info in store.list("job/shards/")]
        if shards:
            store.put(f"job/gc/n{random_.random()}.json", json.dumps({"keys": [random_.choice(shards)]}).encode())
    elif event < 0.4:
        Repository("store", store, "job").collector.sweep(min_age_s=-1)


def test_a_save_whose_uncopied_part_vanishes_fails_and_the_next_one_copies_all() -> None:
    store = memory_store()
    state = some_state(np.random.default_rng(1))
    with Checkpointer(store, job="job", settings=SMALL_FILES) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state, fence=1)
            checkpointer.wait()
        for info in list(store.list("job/shards/")):
            store.delete(info.key)
        checkpointer.save(3, state, fence=1)
        with pytest.raises(StateMoved, match="the next save copies all"):
            checkpointer.wait()
        checkpointer.save(4, state, fence=1)
        checkpointer.wait()
        assert same(checkpointer.load(), state)


def test_a_large_state_is_written_as_several_files_and_only_what_exceeds_one_is_cut() -> None:
    store = memory_store()
    state = some_state(np.random.default_rng(1))
    with Checkpointer(store, job="job", settings=SMALL_FILES) as checkpointer:
        ticket = checkpointer.save(0, state, fence=1)
        checkpointer.wait()
        assert ticket.info is not None
        tensors = {tensor.path: tensor for tensor in ticket.info.manifest.tensors}
        assert len(ticket.info.manifest.files) == 5
        assert len(tensors["t5"].boxes[0].extents) == 4
        assert len(tensors["t4"].boxes[0].extents) == 1
        assert same(checkpointer.load(), state)
