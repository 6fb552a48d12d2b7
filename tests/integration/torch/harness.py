"""Real worker processes for the tests of the torch adapter: forked from this one, which has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from elastic_train.adapters.framework.torch.framework import TorchFramework
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.core.records import Stage, WorkerId, WorldRecord
from elastic_train.errors import GroupBroken
from elastic_train.ports import Formation

PATIENCE_S = 30.0
"""How long a test waits for anything before it fails."""

_FORK = multiprocessing.get_context("fork")


class FileExchange:
    """The Exchange port on a folder: a value is a file, put in place whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, key: str, value: bytes) -> None:
        """Publish a value."""
        scratch = self._path(f"{key}.{os.getpid()}")
        scratch.write_bytes(value)
        scratch.rename(self._path(key))

    def get(self, keys: Sequence[str], timeout_s: float) -> list[bytes]:
        """Wait until all keys are there."""
        deadline = time.monotonic() + timeout_s
        paths = [self._path(key) for key in keys]
        while not all(path.exists() for path in paths):
            if time.monotonic() > deadline:
                raise GroupBroken(
                    f"not there within {timeout_s} s: {[path.name for path in paths if not path.exists()]}"
                )
            time.sleep(0.001)
        return [path.read_bytes() for path in paths]

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "~")


class Worker:
    """What a test's function in a worker process has."""

    def __init__(self, index: int, folder: Path, pipe: Connection, framework: TorchFramework) -> None:
        self.index = index
        self.framework = framework
        self._folder = folder
        self._pipe = pipe

    def formation(self, members: Sequence[int], membership_epoch: int, timeout_s: float = PATIENCE_S) -> Formation:
        """Return the formation of a world of the workers with these indices, in order of rank."""
        folder = self._folder / str(membership_epoch)
        folder.mkdir(exist_ok=True)
        names = tuple(WorkerId(f"worker-{index}") for index in members)
        world = WorldRecord(membership_epoch, Stage.SEALED, names)
        return Formation(world, members.index(self.index), "127.0.0.1", FileExchange(folder), timeout_s)

    def form(self, members: Sequence[int], membership_epoch: int = 1, timeout_s: float = PATIENCE_S) -> TorchGroup:
        """Form that world."""
        return self.framework.form(self.formation(members, membership_epoch, timeout_s))

    def say(self, value: Any) -> None:
        """Send something to the test."""
        self._pipe.send(("said", value))

    def hear(self) -> Any:
        """Wait for something from the test."""
        assert self._pipe.poll(PATIENCE_S), "the test said nothing"
        return self._pipe.recv()


class Workers:
    """The worker processes, as the test sees them."""

    def __init__(self, processes: list[Any], pipes: list[Connection]) -> None:
        self._processes = processes
        self._pipes = pipes

    def pid(self, index: int) -> int:
        """Return a worker's process id."""
        return int(self._processes[index].pid)

    def heard(self, index: int, timeout_s: float = PATIENCE_S) -> Any:
        """Wait for what that worker says next; its failure is the test's."""
        assert self._pipes[index].poll(timeout_s), f"worker {index} said nothing within {timeout_s} s"
        kind, value = self._pipes[index].recv()
        assert kind != "failed", f"worker {index}:\n{value}"
        return value

    def tell(self, index: int, value: Any) -> None:
        """Say something to that worker."""
        self._pipes[index].send(value)

    def signal(self, index: int, number: signal.Signals) -> None:
        """Send a signal to that worker."""
        os.kill(self.pid(index), number)

    def results(self, indices: Sequence[int] | None = None) -> list[Any]:
        """Wait for the results of these workers (all of them)."""
        return [self.heard(index) for index in (range(len(self._processes)) if indices is None else indices)]


@contextmanager
def workers(count: int, function: Callable[[Worker], Any], *, process_group: bool = False) -> Iterator[Workers]:
    """Run `function` in `count` processes; what it returns is said to the test. All are ended at the end."""
    with tempfile.TemporaryDirectory(prefix="et-") as scratch:
        pairs = [_FORK.Pipe() for _ in range(count)]
        framework = TorchFramework(process_group=process_group)
        processes = [
            _FORK.Process(target=_run, args=(function, Worker(index, Path(scratch), theirs, framework)), daemon=True)
            for index, (_, theirs) in enumerate(pairs)
        ]
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        try:
            yield Workers(processes, [ours for ours, _ in pairs])
        finally:
            for process in processes:
                process.kill()
            for process, (ours, _) in zip(processes, pairs, strict=True):
                process.join()
                process.close()
                ours.close()


def _run(function: Callable[[Worker], Any], worker: Worker) -> None:
    torch.set_num_threads(1)
    try:
        outcome = ("returned", function(worker))
    except BaseException:  # noqa: BLE001  whatever it is belongs to the test
        outcome = ("failed", traceback.format_exc())
    worker._pipe.send(outcome)
    sys.stdout.flush()
    os._exit(0)
