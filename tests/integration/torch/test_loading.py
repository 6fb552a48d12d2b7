"""Reader processes: what they read, how they are seeded, and that none is left when its work or its owner is gone."""

from __future__ import annotations

import gc
import multiprocessing.forkserver
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from elastic_train.adapters.framework.torch.framework import TorchFramework
from elastic_train.adapters.framework.torch.loading import TorchLoader
from elastic_train.ports import LoaderSettings, Piece
from elastic_train.worker.batches import ElasticBatches

PATIENCE_S = 60.0


class Noisy:
    """A dataset whose samples are random, in all three usual ways, and name the process they were read in."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, float, float, int]:
        return index, torch.rand(3), np.random.random(), random.random(), os.getpid()


def pieces(count: int) -> list[Piece]:
    """Return pieces of four samples of two shards each."""
    return [
        Piece(
            (step, 0, 4), ((1000 + 2 * step, [4 * step, 4 * step + 1]), (1001 + 2 * step, [4 * step + 2, 4 * step + 3]))
        )
        for step in range(count)
    ]


class Feed:
    """A feed that runs dry and goes on."""

    def __init__(self) -> None:
        self.waiting: list[Piece] = []

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if not self.waiting:
            raise StopIteration
        return self.waiting.pop(0)


@pytest.fixture
def open_loader() -> Iterator[Callable[..., tuple[TorchLoader, Feed]]]:
    opened: list[TorchLoader] = []

    def open_one(dataset: Any, **settings: Any) -> tuple[TorchLoader, Feed]:
        feed = Feed()
        read = ElasticBatches(dataset, global_batch_size=4).read_piece()
        opened.append(TorchFramework().open_loader(read, feed, LoaderSettings(**settings)))
        return opened[-1], feed

    yield open_one
    for loader in opened:
        loader.close()
    opened.clear()
    gc.collect()  # an exception's traceback holds the queues, and they their semaphores
    vars(multiprocessing.forkserver)["_forkserver"]._stop()  # it would live as long as this process


def test_pieces_come_in_order_from_other_processes_also_after_the_feed_ran_dry(
    open_loader: Callable[..., tuple[TorchLoader, Feed]],
) -> None:
    loader, feed = open_loader(Noisy(), num_workers=2)
    loader.start()  # dry: the processes come up
    readers = set()
    for round_ in range(2):
        feed.waiting = pieces(6)
        loader.start()
        for step in range(6):
            index, _, _, _, pid = loader.next()
            assert index.tolist() == [4 * step + number for number in range(4)], round_
            readers |= set(pid.tolist())
    assert len(readers) == 2
    assert os.getpid() not in readers
    loader.close()
    psutil.wait_procs([psutil.Process(pid) for pid in readers if psutil.pid_exists(pid)], timeout=10)
    assert not any(psutil.pid_exists(pid) for pid in readers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_random_depends_on_the_shard_and_not_on_the_process(
    open_loader: Callable[..., tuple[TorchLoader, Feed]], num_workers: int
) -> None:
    loader, feed = open_loader(Noisy(), num_workers=num_workers, prefetch_factor=1 + num_workers)
    feed.waiting = pieces(3)
    loader.start()
    batches = [loader.next() for _ in range(3)]
    for step, (_, tensors, from_numpy, from_random, _) in enumerate(batches):
        for shard in range(2):
            torch.manual_seed(1000 + 2 * step + shard)
            np.random.seed(1000 + 2 * step + shard)
            random.seed(1000 + 2 * step + shard)
            for row in (2 * shard, 2 * shard + 1):
                assert torch.equal(tensors[row], torch.rand(3))
                assert from_numpy[row] == np.random.random()
                assert from_random[row] == random.random()


def test_classes_of_the_users_script_and_closures_can_be_sent(
    open_loader: Callable[..., tuple[TorchLoader, Feed]],
) -> None:
    class OfTheScript(Noisy):
        pass

    started: list[int] = []
    OfTheScript.__module__ = "__main__"
    loader, feed = open_loader(OfTheScript(), num_workers=1, worker_init_fn=started.append)
    feed.waiting = pieces(1)
    loader.start()
    assert loader.next()[0].tolist() == [0, 1, 2, 3]


def test_an_error_in_the_dataset_is_raised_with_its_type_and_place(
    open_loader: Callable[..., tuple[TorchLoader, Feed]],
) -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> Any:
            raise LookupError(f"sample {index} is corrupt")

    loader, feed = open_loader(Broken(), num_workers=1)
    feed.waiting = pieces(1)
    loader.start()
    with pytest.raises(LookupError, match="sample 0 is corrupt"):
        loader.next()


def test_the_trainings_generator_is_left_alone(open_loader: Callable[..., tuple[TorchLoader, Feed]]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loader, feed = open_loader(Noisy(), num_workers=1)
    loader.start()
    feed.waiting = pieces(1)
    loader.start()
    loader.next()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])
def test_readers_of_a_killed_worker_are_gone_with_it(tmp_path: Path, start_method: str) -> None:
    before = set(Path("/dev/shm").iterdir())
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.torch.reading_worker", start_method],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert worker.stdout is not None
        readers = [psutil.Process(int(pid)) for pid in worker.stdout.readline().split()]
        assert len(readers) == 2
        children = psutil.Process(worker.pid).children(recursive=True)
        assert set(readers) <= set(children)
        worker.send_signal(signal.SIGKILL)
        worker.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        assert not alive
        deadline = time.monotonic() + PATIENCE_S
        while (left := set(Path("/dev/shm").iterdir()) - before) and time.monotonic() < deadline:
            time.sleep(0.02)  # others use it too: only what stays is a leak
        assert not left
    finally:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()
