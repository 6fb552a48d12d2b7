"""Several processes that save one replicated state together, or each read all of it, beside raw writes and reads."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from benchmarks.checkpoint_cases import Memory, forget, make_state, nbytes_of, raw_read, raw_write, touch
from benchmarks.common import median
from checkpointing import Checkpointer, KeepLast
from storage import open_store

_SPAWN = multiprocessing.get_context("spawn")
_PATIENCE_S = 300.0

Measured = dict[str, list[float]]


def measure_writers(folder: Path, mib: int, count: int, repeats: int) -> dict[str, float]:
    """Return the seconds until a save divided among `count` writers is committed, and until as many raw files are."""
    found = _in_processes(_write, folder, mib, count, repeats)
    # All begin together; a save is done when the last is, and the stall is the longest.
    return {
        "ours_s": _of_the_slowest(found, "ours"),
        "stall_s": _of_the_slowest(found, "stall"),
        "floor_s": _of_the_slowest(found, "floor"),
        "memcpy_s": _of_the_slowest(found, "memcpy"),
    }


def measure_readers(folder: Path, mib: int, count: int, repeats: int) -> dict[str, float]:
    """Return the seconds until `count` readers have each filled a whole state, and read as many raw bytes.

    The checkpoint was written by another number of writers: by one, or, for one reader, by two.
    """
    writers = 2 if count == 1 else 1
    _in_processes(_write, folder, mib, writers, 1)
    found = _in_processes(_read, folder, mib, count, repeats)
    return {"ours_s": _of_the_slowest(found, "ours"), "floor_s": _of_the_slowest(found, "floor")}


def _of_the_slowest(found: list[Measured], name: str) -> float:
    return median(max(samples) for samples in zip(*(one[name] for one in found), strict=True))


def _in_processes(work: Callable[..., Measured], folder: Path, mib: int, count: int, repeats: int) -> list[Measured]:
    folder.mkdir(parents=True, exist_ok=True)
    barrier = _SPAWN.Barrier(count, timeout=_PATIENCE_S)
    pipes = [_SPAWN.Pipe(duplex=False) for _ in range(count)]
    processes = [
        _SPAWN.Process(target=_run, args=(work, folder, mib, (rank, count), repeats, barrier, pipes[rank][1]))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        for _, sending in pipes:
            sending.close()  # so that a process which dies is an end of file here, not an endless wait
        return [receiving.recv() for receiving, _ in pipes]
    finally:
        for process in processes:
            process.join(_PATIENCE_S)
            process.kill()


def _run(work: Callable[..., Measured], *arguments: Any) -> None:
    *others, pipe = arguments
    pipe.send(work(*others))
    pipe.close()


def _write(folder: Path, mib: int, place: tuple[int, int], repeats: int, barrier: Barrier) -> Measured:
    rank, count = place
    state = make_state(mib)
    memory = Memory(state)
    part = memory.view[: nbytes_of(state) // count]
    samples: Measured = {"ours": [], "stall": [], "floor": [], "memcpy": []}
    with (
        open_store(f"file://{folder}/ours") as store,
        Checkpointer(store, job="bench", rank=rank, world_size=count, retention=KeepLast(1)) as checkpointer,
    ):
        for turn in range(repeats + 1):
            touch(state, 1.0)
            barrier.wait()
            began = time.perf_counter()
            raw_write(folder / f"raw{rank}", part)
            floor_s = time.perf_counter() - began
            barrier.wait()
            began = time.perf_counter()
            checkpointer.save(turn, state, fence=1)
            stall_s = time.perf_counter() - began
            checkpointer.wait()
            ours_s = time.perf_counter() - began
            barrier.wait()
            began = time.perf_counter()
            memory.copy(1)
            if turn:
                samples["memcpy"].append((time.perf_counter() - began) / count)
                samples["ours"].append(ours_s)
                samples["stall"].append(stall_s)
                samples["floor"].append(floor_s)
    return samples


def _read(folder: Path, mib: int, place: tuple[int, int], repeats: int, barrier: Barrier) -> Measured:
    rank, _ = place
    state = make_state(mib)
    memory = Memory(state)
    raw = folder / f"whole{rank}"
    raw_write(raw, memory.view)
    samples: Measured = {"ours": [], "floor": []}
    with open_store(f"file://{folder}/ours") as store, Checkpointer(store, job="bench") as checkpointer:
        for turn in range(repeats + 1):
            for name, load, files in (
                ("floor", lambda: raw_read(raw, memory.view), raw),
                ("ours", lambda: checkpointer.load(into=state), folder / "ours"),
            ):
                forget(files)
                barrier.wait()
                began = time.perf_counter()
                load()
                if turn:
                    samples[name].append(time.perf_counter() - began)
                barrier.wait()
    return samples
