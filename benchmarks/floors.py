"""Floors: what the same thing costs with nothing around it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import PrefixStore, TCPStore

_ELEMENTS = 1_000_978  # of the benchmarks' perceptron
_REDUCTIONS = 10_000_000


def _join(store: Any, name: str, rank: int, world_size: int) -> None:
    dist.init_process_group(
        "gloo",
        store=PrefixStore(name, store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )


def reform_floor(world_size: int, repeats: int) -> list[float]:
    """Return the least that losing one of `world_size` costs over gloo, in seconds.

    gloo tells only the victim's neighbours of its death (the others wait out their time-out), so noticing is measured
    in a world of two, re-making in one of `world_size` - 1, and the floor is the sum.
    """
    return [_notice() + _remake(world_size - 1) for _ in range(repeats)]


def _notice() -> float:
    """Return seconds from SIGKILL of one of two until the other's all-reduce fails."""
    with _Ranks(_wait_for_death, 2) as ranks:
        ranks.collect()
        at = time.monotonic()
        os.kill(ranks.pids[1], signal.SIGKILL)
        return float(ranks.pipes[0].recv()) - at


def _remake(world_size: int) -> float:
    """Return seconds for leaving a group, joining another and reducing once, in the same processes."""
    with _Ranks(_leave_and_join, world_size) as ranks:
        return max(ranks.collect())


def _wait_for_death(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    _join(store, "before", rank, world_size)
    tensor = torch.ones(_ELEMENTS)
    dist.all_reduce(tensor)
    pipe.send(0.0)
    try:
        for _ in range(_REDUCTIONS):
            dist.all_reduce(tensor)
    except RuntimeError:
        pipe.send(time.monotonic())


def _leave_and_join(rank: int, world_size: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    _join(store, "before", rank, world_size)
    tensor = torch.ones(_ELEMENTS)
    dist.all_reduce(tensor)
    dist.barrier()
    started_at = time.monotonic()
    dist.destroy_process_group()
    _join(store, "after", rank, world_size)
    dist.all_reduce(tensor)
    pipe.send(time.monotonic() - started_at)
    dist.barrier()
    dist.destroy_process_group()


class _Ranks:
    """Processes of one floor measurement; all end with the block."""

    def __init__(self, target: Callable[[int, int, int, Connection], None], world_size: int) -> None:
        context = mp.get_context("spawn")
        port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port  # free a moment ago
        self.pipes: list[Any] = []
        self._processes: list[Any] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self._processes.append(context.Process(target=target, args=(rank, world_size, port, theirs)))

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def collect(self) -> list[float]:
        return [float(pipe.recv()) for pipe in self.pipes]


def broadcast_floor(nbytes: int, repeats: int) -> list[float]:
    """Return seconds of gloo broadcasts of so many bytes between two processes, the buffers warm."""
    with _Ranks(partial(_broadcast, nbytes=nbytes, repeats=repeats), 2) as ranks:
        return [max(pairs) for pairs in zip(*(pipe.recv() for pipe in ranks.pipes), strict=True)]


def _broadcast(rank: int, world_size: int, port: int, pipe: Connection, *, nbytes: int, repeats: int) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    _join(store, "all", rank, world_size)
    tensor = torch.ones(nbytes, dtype=torch.uint8)
    times = []
    for _ in range(repeats + 1):  # the first touches fresh memory
        dist.barrier()
        started_at = time.monotonic()
        dist.broadcast(tensor, src=0)
        times.append(time.monotonic() - started_at)
    pipe.send(times[1:])
    dist.barrier()
    dist.destroy_process_group()
