"""Reading ahead in other processes, on torch's DataLoader: it draws from our feed what is to be read next."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from elastic_train.ports import LoaderSettings, Piece, ReadPiece

_PR_SET_PDEATHSIG = 1
_PRELOADED = ["torch", "torch.utils.data", "numpy", __name__]


class TorchLoader:
    """A `Loader`. The DataLoader's own batches are ours: its sampler is the feed, its index a piece.

    Reader processes come from a fork server, which has none of this process's connections: a reader that outlived this
    process by a moment would otherwise hold them open, and the other workers would not see it die.

    Args:
        read: Reads a piece.
        feed: Says which piece is to be read next; may run dry (StopIteration) and go on later.
        settings: As of a DataLoader.
    """

    def __init__(self, read: ReadPiece, feed: Iterator[Piece], settings: LoaderSettings) -> None:
        options: dict[str, Any] = {}
        if settings.num_workers:
            context = multiprocessing.get_context(settings.start_method)
            if settings.start_method == "forkserver":
                context.set_forkserver_preload(_PRELOADED)  # no effect where the user has started one already
            options = {
                "multiprocessing_context": context,
                "prefetch_factor": settings.prefetch_factor,
                "persistent_workers": True,
                "worker_init_fn": _ReaderProcess(settings.worker_init_fn, os.getpid(), settings.start_method),
            }
        self._loader: DataLoader[Any] | None = DataLoader(
            _Pieces(read),
            batch_size=None,
            sampler=_Feed(feed),
            num_workers=settings.num_workers,
            collate_fn=_as_it_is,
            pin_memory=settings.pin_memory and torch.cuda.is_available(),
            generator=torch.Generator(),  # the default one is the training's: nothing is drawn from it
            **options,
        )
        self._batches: Iterator[Any] | None = None

    def start(self) -> None:
        """Draw as many pieces from the feed as may be under way."""
        if self._loader is None:
            raise AssertionError("the loader is closed")
        self._batches = iter(self._loader)

    def next(self) -> Any:
        """Return the batch of the oldest piece that is under way; draw one more."""
        if self._batches is None:
            raise AssertionError("the loader was not started")
        return next(self._batches)

    def close(self) -> None:
        """End the reader processes: the DataLoader does when it is let go of."""
        self._batches = None
        self._loader = None


class _Feed:
    """A DataLoader's sampler. Its iterator goes on after StopIteration, of which a DataLoader keeps no memory."""

    def __init__(self, feed: Iterator[Piece]) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[Piece]:
        return self._feed


class _Pieces(Dataset[Any]):
    """A dataset that is indexed by pieces. Sent by value, so that classes of the user's script may be in it."""

    def __init__(self, read: ReadPiece) -> None:
        self._read = read

    def __getitem__(self, piece: Piece) -> Any:
        return self._read(piece, _seed, _collate)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpack, (cloudpickle.dumps(self._read),)


def _unpack(data: bytes) -> _Pieces:
    return _Pieces(cloudpickle.loads(data))


class _ReaderProcess:
    """What a reader process does first: see to it that it dies with its parent, then what the user wants."""

    def __init__(self, then: Callable[[int], None] | None, owner: int, start_method: str) -> None:
        self._then = cloudpickle.dumps(then)
        self._parent = owner if start_method != "forkserver" else None

    def __call__(self, number: int) -> None:
        # The fork server ends when the worker does, in whatever way; a reader ends with whoever forked it.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1 or (self._parent is not None and os.getppid() != self._parent):
            os._exit(1)  # it died before
        then = cloudpickle.loads(self._then)
        if then is not None:
            then(number)


def _collate(samples: Sequence[Any]) -> Any:
    return default_collate(list(samples))


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def _as_it_is(batch: Any) -> Any:
    return batch
