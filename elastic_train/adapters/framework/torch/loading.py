"""Reading ahead in other processes, on torch's DataLoader: it draws from our feed what is to be read next."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from elastic_train.adapters.framework.torch.generators import seed_generators
from elastic_train.ports import LoaderSettings, Piece, ReadPiece

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
                "worker_init_fn": _ReaderProcess(settings.worker_init_fn),
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
        """End the reader processes."""
        # A DataLoader ends them when it is let go of, which an exception's traceback may put off for long.
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
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
        return self._read(piece, seed_generators, _collate)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpack, (cloudpickle.dumps(self._read),)


def _unpack(data: bytes) -> _Pieces:
    return _Pieces(cloudpickle.loads(data))


class _ReaderProcess:
    """What a reader process does first: see to it that it dies with its owner, then what the user wants."""

    def __init__(self, then: Callable[[int], None] | None) -> None:
        self._then = cloudpickle.dumps(then)

    def __call__(self, number: int) -> None:
        _die_with_owner()
        then = cloudpickle.loads(self._then)
        if then is not None:
            then(number)


def _die_with_owner() -> None:
    """End this process when its owner is gone, however that ended.

    A DataLoader's reader watches its parent, which is the fork server; and that lives as long as there are readers, for
    they hold its pipe. So the owner itself is watched.
    """
    owner = multiprocessing.parent_process()
    if owner is None or owner.pid is None:
        raise AssertionError("a reader process has an owner")
    try:
        watched = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        os._exit(1)
    if not owner.is_alive():  # another process may have its number already
        os._exit(1)
    threading.Thread(target=_kill_after, args=(watched,), name="elastic-train-owner", daemon=True).start()


def _kill_after(watched: int) -> None:
    select.select([watched], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _collate(samples: Sequence[Any]) -> Any:
    return default_collate(list(samples))


def _as_it_is(batch: Any) -> Any:
    return batch
