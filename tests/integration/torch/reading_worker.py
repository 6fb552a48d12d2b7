"""A process that reads ahead for ever; says which processes it reads in."""

from __future__ import annotations

import itertools
import os
import sys
import time

import torch

from elastic_train.adapters.framework.torch.framework import TorchFramework
from elastic_train.ports import LoaderSettings, Piece
from elastic_train.worker.batches import ElasticBatches


class Big:
    """Samples that travel through shared memory."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(100_000), os.getpid()


def main() -> None:
    """Read eight pieces, keep the last ones, and wait to be killed."""
    feed = (Piece((step, 0, 4), ((step, [0, 1, 2, 3]),)) for step in itertools.count())
    read = ElasticBatches(Big(), global_batch_size=4).read_piece()
    loader = TorchFramework().open_loader(read, feed, LoaderSettings(num_workers=2, start_method=sys.argv[1]))
    loader.start()
    kept = [loader.next() for _ in range(8)]
    sys.stdout.write(" ".join(map(str, sorted({pid for _, pids in kept for pid in pids.tolist()}))) + "\n")
    sys.stdout.flush()
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
