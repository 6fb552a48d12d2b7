from __future__ import annotations

import doctest
import subprocess
import sys
import threading

import numpy as np
import pytest

import checkpointing
from checkpointing import Checkpointer, KeepBest, KeepLast, NoCheckpoint, Settings, StructureMismatch
from checkpointing.errors import InvalidName, PickleNotAllowed, UnsupportedLeaf
from checkpointing.settings import Event, EventKind, Phase
from tests.unit.checkpointing.harness import FAST, WatchedStore, hold_until, load, memory_store, same, save, state_of


def test_importing_it_loads_no_array_library_but_numpy() -> None:
    code = "import sys, checkpointing; print({'torch', 'tensorflow', 'jax', 'elastic_train'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_example_in_the_package_runs() -> None:
    failed, tried = doctest.testmod(checkpointing)
    assert tried
    assert not failed


def test_a_state_comes_back_as_it_was() -> None:
    store = memory_store()
    save(store, 7)
    assert same(load(store), (7, state_of(7)))


def test_nothing_saved_is_nothing_found() -> None:
    with Checkpointer(memory_store(), job="job") as checkpointer:
        assert checkpointer.latest() is None
        with pytest.raises(NoCheckpoint, match="job job"):
            checkpointer.load()


def test_save_returns_before_anything_is_written() -> None:
    store = WatchedStore(memory_store())
    may_write = threading.Event()
    store.before = hold_until(may_write)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        state = state_of(1)
        ticket = checkpointer.save(1, state, fence=1)
        assert not ticket.is_done
        state["model"]["head"] += 1  # training goes on
        state["rng"][1].append(4)
        may_write.set()
        checkpointer.wait()
        assert ticket.phase is Phase.COMMITTED
        assert same(checkpointer.load(), state_of(1))


def test_existing_tensors_are_filled_in_place() -> None:
    store = memory_store()
    save(store, 3)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        into = state_of(0)
        head = into["model"]["head"]
        loaded = checkpointer.load(into=into)
        assert loaded["model"]["head"] is head
        assert same(loaded, state_of(3))


def test_a_structure_that_does_not_match_is_told_by_path() -> None:
    store = memory_store()
    save(store, 3)
    into = {"model": {"head": np.zeros((500, 10), "f4"), "new": np.zeros(3), "frozen": np.zeros(7, "f4")}}
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        with pytest.raises(StructureMismatch) as caught:
            checkpointer.load(into=into)
        assert caught.value.missing == ("model/new",)
        assert caught.value.unexpected == ("optimizer/state/0/m",)
        assert caught.value.different == ("model/frozen is F32[20000] in the checkpoint, not F32[7]",)
        assert not into["model"]["head"].any(), "a refused load changes nothing"
        loaded = checkpointer.load(into={**into, "position": 0, "mine": "kept"}, strict=False)
        assert same(loaded["model"]["head"], state_of(3)["model"]["head"])
        assert loaded["position"] == state_of(3)["position"]
        assert loaded["mine"] == "kept"
        assert set(loaded) == {"model", "position", "mine"}


def test_unchanged_chunks_are_not_written_again() -> None:
    with Checkpointer(memory_store(), job="job", settings=FAST) as checkpointer:
        state = state_of(0, size=100_000)
        first = checkpointer.save(0, state, fence=1)
        checkpointer.wait()
        state["model"]["frozen"][5] = 7
        second = checkpointer.save(1, state, fence=1)
        checkpointer.wait()
        assert first.stats.uploaded_nbytes == first.stats.staged_nbytes
        assert second.stats.uploaded_nbytes == FAST.chunk_nbytes
        assert second.stats.reused_nbytes == second.stats.staged_nbytes - FAST.chunk_nbytes
        assert same(checkpointer.load(), state)


def test_files_of_which_little_is_left_are_written_anew_and_then_removed() -> None:
    store = memory_store()
    with Checkpointer(store, job="job", retention=KeepLast(1), settings=FAST) as checkpointer:
        state = {f"t{i}": np.full(4096, i, "f4") for i in range(10)}
        for step in range(40):
            state[f"t{step % 10}"] += 1
            checkpointer.save(step, state, fence=1)
            checkpointer.wait()
        assert same(checkpointer.load(), state)
        info = checkpointer.latest()
    assert info is not None
    assert len(info.manifest.files) <= 17
    stored = sum(found.nbytes for found in store.list("job/shards/"))
    assert stored <= 3 * info.nbytes, "a kept file is at least half in use, save for the newest"


def test_a_save_that_waits_gives_way_to_a_newer_one() -> None:
    store = WatchedStore(memory_store())
    may_write = threading.Event()
    store.before = hold_until(may_write)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        tickets = []
        for step in range(4):
            tickets.append(checkpointer.save(step, state_of(step), fence=1))
            while step == 0 and tickets[0].phase is Phase.STAGED:
                pass  # until the thread has taken it
        may_write.set()
        checkpointer.wait()
        phases = [ticket.phase for ticket in tickets]
        assert phases == [Phase.COMMITTED, Phase.SUPERSEDED, Phase.SUPERSEDED, Phase.COMMITTED]
        assert same(checkpointer.load(), state_of(3))


def test_a_busy_checkpointer_can_skip() -> None:
    store = WatchedStore(memory_store())
    may_write = threading.Event()
    store.before = hold_until(may_write)
    with Checkpointer(store, job="job", settings=Settings(on_busy="skip")) as checkpointer:
        checkpointer.save(0, state_of(0), fence=1)
        assert checkpointer.save(1, state_of(1), fence=1).phase is Phase.SKIPPED
        may_write.set()


def test_values_that_cannot_be_stored_are_named() -> None:
    with Checkpointer(memory_store(), job="job") as checkpointer:
        with pytest.raises(UnsupportedLeaf, match=r"'a/1/b~1c'.*builtins\.object"):
            checkpointer.save(0, {"a": [0, {"b/c": object()}]}, fence=1)
        assert not checkpointer.is_busy


def test_pickles_are_written_and_read_only_if_asked_for() -> None:
    store = memory_store()
    value = {"when": np.datetime64("2026-01-01").astype(object)}
    allowing = Settings(allow_pickle=True)
    with Checkpointer(store, job="job", settings=allowing) as checkpointer:
        checkpointer.save(0, value, fence=1)
        checkpointer.wait()
        info = checkpointer.latest()
        assert info is not None
        assert info.manifest.pickled == ("when",)
        assert checkpointer.load() == value
        assert checkpointer.load(into={"when": None}) == value
    with Checkpointer(store, job="job") as checkpointer:
        with pytest.raises(PickleNotAllowed, match="when"):
            checkpointer.load()
        assert checkpointer.load(into={"when": 1}, strict=False) == {"when": 1}


@pytest.mark.parametrize("job", ["", "..", "a/b", "/", ".hidden", "a b", "ü", "x" * 200])
def test_odd_job_names_are_refused(job: str) -> None:
    with pytest.raises(InvalidName):
        Checkpointer(memory_store(), job=job)


def test_metadata_is_shown_and_judged_by() -> None:
    store = memory_store()
    with Checkpointer(store, job="job", retention=KeepBest("loss") | KeepLast(1), settings=FAST) as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 2.0, 4.0]):
            checkpointer.save(step, state_of(step), fence=1, metadata={"loss": loss, "note": "x"})
            checkpointer.wait()
        record = checkpointer.pointer.read()
        assert record is not None
        assert [ref.step for ref in record.checkpoints] == [1, 3]
        info = checkpointer.latest()
        assert info is not None
        assert info.metadata == {"loss": 4.0, "note": "x"}


def test_metadata_that_json_cannot_hold_is_refused_at_once() -> None:
    with Checkpointer(memory_store(), job="job") as checkpointer, pytest.raises(ValueError, match="metadata"):
        checkpointer.save(0, {}, fence=1, metadata={"x": object()})


def test_events_tell_what_happens() -> None:
    events: list[Event] = []
    settings = Settings(on_event=events.append)
    with Checkpointer(memory_store(), job="job", retention=KeepLast(1), settings=settings) as checkpointer:
        for step in range(2):
            checkpointer.save(step, state_of(step), fence=1)
            checkpointer.wait()
    kinds = [(event.kind, event.step) for event in events]
    assert kinds == [
        (EventKind.STAGED, 0),
        (EventKind.COMMITTED, 0),
        (EventKind.STAGED, 1),
        (EventKind.COMMITTED, 1),
        (EventKind.DROPPED, 0),
    ]


def test_a_closed_checkpointer_saves_no_more() -> None:
    checkpointer = Checkpointer(memory_store(), job="job")
    checkpointer.close()
    checkpointer.close()
    with pytest.raises(ValueError, match="closed"):
        checkpointer.save(0, {}, fence=1)


def test_one_writer_may_leave_the_fence_to_the_checkpointer() -> None:
    store = memory_store()
    for expected in (1, 2):
        with Checkpointer(store, job="job", settings=FAST) as checkpointer:
            assert checkpointer.save(expected, state_of(expected)).fence == expected
            checkpointer.wait()
    with Checkpointer(store, job="job", world_size=2) as several, pytest.raises(ValueError, match="fence"):
        several.save(3, {})


def test_an_error_of_the_background_thread_is_raised_by_wait_and_only_once() -> None:
    store = memory_store()
    save(store, 0, fence=9)
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        checkpointer.save(1, state_of(1), fence=5)
        with pytest.raises(Exception, match="stale"):
            checkpointer.wait()
        assert checkpointer.wait()
