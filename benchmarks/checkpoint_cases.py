"""Ways to save and load one state, ours and the peers': the seconds until training goes on and until it is safe."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as _dcp

from checkpointing import Checkpointer, KeepLast, Settings
from storage import open_store

_BLOCK = 8 << 20

dcp: Any = _dcp  # what it offers it does not declare


@dataclass(frozen=True)
class Saved:
    """One save.

    Attributes:
        stall_s: Until the state may change again.
        durable_s: Until it is on the medium for certain.
    """

    stall_s: float
    durable_s: float


@dataclass(frozen=True)
class Case:
    """Something to measure; `prepare` is not timed."""

    name: str
    run: Callable[[], Saved]
    prepare: Callable[[], object] = lambda: None


def make_state(mib: int, tensors: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return a state of mixed tensors: a few large, many small, of several dtypes, together about `mib` MiB."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(tensors, generator=generator) ** 3 + 0.02
    sizes = (weights / weights.sum() * mib * 2**20).long()
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float32, torch.int64)
    state: dict[str, Any] = {}
    for index, nbytes in enumerate(sizes.tolist()):
        dtype = dtypes[index % len(dtypes)]
        columns = 256 if nbytes > 1 << 20 else 16
        rows = max(1, nbytes // dtype.itemsize // columns)
        values = torch.empty(rows, columns, dtype=dtype)
        values.view(torch.int16).random_(generator=generator)
        state[f"layer{index}.weight"] = values
    return {"model": state, "step": 0}


def tensors_of(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state's tensors by name."""
    found: dict[str, torch.Tensor] = state["model"]
    return found


def nbytes_of(state: dict[str, Any]) -> int:
    """Return the state's size."""
    return sum(tensor.nbytes for tensor in tensors_of(state).values())


def touch(state: dict[str, Any], fraction: float) -> None:
    """Change a fraction of the state's bytes, as neighbouring rows of some tensors; 1.0 changes every chunk of it."""
    tensors = list(tensors_of(state).values())
    if fraction >= 1:
        for tensor in tensors:
            tensor.view(torch.int16).reshape(-1)[::4096].add_(1)
        return
    left = int(nbytes_of(state) * fraction)
    for tensor in sorted(tensors, key=lambda tensor: -tensor.nbytes):
        rows = min(len(tensor), max(1, left // (tensor.nbytes // len(tensor))))
        tensor[:rows].view(torch.int16).add_(1)
        left -= rows * tensor.nbytes // len(tensor)
        if left <= 0:
            return


def timed(work: Callable[[], object]) -> Saved:
    """Measure work that holds training up until it is durable."""
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return Saved(seconds, seconds)


# Floors


class Memory:
    """A warm buffer as large as the state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state
        self._memory = mmap.mmap(-1, nbytes_of(state) + mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._memory)
        np.frombuffer(self._memory, np.uint8)[:: mmap.PAGESIZE] = 0

    def copy(self, threads: int) -> None:
        """Copy the state into the buffer, without doing anything else."""
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        shares: list[list[tuple[int, int, int]]] = [[] for _ in range(threads)]
        total, offset = nbytes_of(self._state), 0
        for tensor in tensors_of(self._state).values():
            shares[min(threads - 1, offset * threads // total)].append(
                (base + offset, tensor.data_ptr(), tensor.nbytes)
            )
            offset += tensor.nbytes

        def work(share: list[tuple[int, int, int]]) -> None:
            for target, source, nbytes in share:
                ctypes.memmove(target, source, nbytes)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, shares))


def raw_write(path: Path, view: memoryview, *, direct: bool = True) -> None:
    """Write and sync a file as fast as the medium takes it."""
    whole = len(view) // mmap.PAGESIZE * mmap.PAGESIZE
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | (os.O_DIRECT if direct else 0), 0o600)
    try:
        for start in range(0, whole, _BLOCK):
            os.write(descriptor, view[start : min(start + _BLOCK, whole)])
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def raw_read(path: Path, view: memoryview) -> None:
    """Read a file into a warm buffer."""
    with path.open("rb", buffering=0) as file:
        start = 0
        while count := file.readinto(view[start : start + _BLOCK]):
            start += count


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


# Ours


class Ours:
    """A checkpointer on one store."""

    def __init__(self, url: str, state: dict[str, Any], **options: Any) -> None:
        self._store = open_store(url, **options)
        self._state = state
        self._step = 0
        self.checkpointer = Checkpointer(self._store, job="bench", retention=KeepLast(1), settings=Settings())
        self.last: Any = None

    def save(self) -> Saved:
        """Save and wait until it is committed."""
        self._step += 1
        began = time.perf_counter()
        self.last = self.checkpointer.save(self._step, self._state, fence=1)
        stall_s = time.perf_counter() - began
        self.last.wait()
        durable_s = time.perf_counter() - began
        self.checkpointer.wait()  # raises if it failed; and removes the one before, which is nobody's waiting time
        return Saved(stall_s, durable_s)

    def begin_save(self) -> Callable[[], bool]:
        """Begin a save, and return how to ask whether it is durable."""
        self._step += 1
        ticket = self.checkpointer.save(self._step, self._state, fence=1)
        return lambda: ticket.is_done

    def load(self) -> None:
        """Fill the state's own tensors."""
        self.checkpointer.load(into=self._state)

    def close(self) -> None:
        """Stop."""
        self.checkpointer.close()
        self._store.close()


# Peers


class Peers:
    """The same state, saved by others into one folder."""

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder = folder
        self._state = state
        folder.mkdir(parents=True, exist_ok=True)

    def torch_save(self) -> Saved:
        """Save by torch.save, and sync."""
        return timed(self._torch_save)

    def _torch_save(self) -> None:
        with (self.folder / "torch.pt").open("wb") as file:
            torch.save(self._state, file)
            file.flush()
            os.fsync(file.fileno())

    def torch_load(self) -> None:
        """Load by torch.load, and copy into the state's tensors."""
        self._copy_in(torch.load(self.folder / "torch.pt", weights_only=True)["model"])

    def safetensors_save(self) -> Saved:
        """Save by safetensors, and sync."""
        return timed(self._safetensors_save)

    def _safetensors_save(self) -> None:
        from safetensors.torch import save_file

        path = self.folder / "peer.safetensors"
        save_file(tensors_of(self._state), path)
        with path.open("rb") as file:
            os.fsync(file.fileno())

    def safetensors_load(self) -> None:
        """Load by safetensors, and copy into the state's tensors."""
        from safetensors.torch import load_file

        self._copy_in(load_file(self.folder / "peer.safetensors"))

    def _copy_in(self, loaded: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors_of(self._state).items():
            tensor.copy_(loaded[name])

    def dcp_save(self) -> Saved:
        """Save by torch.distributed.checkpoint."""
        return timed(lambda: dcp.save(self._state, checkpoint_id=self._fresh("dcp"), no_dist=True))

    def dcp_async_save(self) -> Saved:
        """Save by torch.distributed.checkpoint, asynchronously."""
        began = time.perf_counter()
        future: Any = dcp.async_save(self._state, checkpoint_id=self._fresh("dcp-async"))
        stall_s = time.perf_counter() - began
        future.result()
        return Saved(stall_s, time.perf_counter() - began)

    def begin_dcp_async_save(self) -> Callable[[], bool]:
        """Begin an asynchronous save, and return how to ask whether it is durable."""
        future: Any = dcp.async_save(self._state, checkpoint_id=self._fresh("dcp-async"))
        return lambda: bool(future.done())

    def dcp_load(self) -> None:
        """Load by torch.distributed.checkpoint into the state's tensors."""
        dcp.load(self._state, checkpoint_id=self.folder / "dcp", no_dist=True)

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name


@contextlib.contextmanager
def one_process_group() -> Iterator[None]:
    """Give DCP's asynchronous save the process group that it asks for."""
    import torch.distributed as dist

    warnings.simplefilter("ignore")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Training:
    """Training steps that keep a core busy as a small model does, to see what saving does to them."""

    def __init__(self) -> None:
        self._model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 512))
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._inputs = torch.randn(64, 512)

    def step(self) -> float:
        """Do one step and return its seconds."""
        began = time.perf_counter()
        self._optimizer.zero_grad()
        self._model(self._inputs).square().mean().backward()
        self._optimizer.step()
        return time.perf_counter() - began

    def steps_until(self, is_done: Callable[[], bool]) -> list[float]:
        """Return the seconds of the steps done until something in the background is done."""
        seconds = []
        while not is_done():
            seconds.append(self.step())
        return seconds

    def steps_for(self, duration_s: float) -> list[float]:
        """Return the seconds of the steps done in so much time."""
        until = time.perf_counter() + duration_s
        seconds = []
        while time.perf_counter() < until:
            seconds.append(self.step())
        return seconds
