"""The reading port, which a framework may offer: samples read ahead in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read at a time, as one batch.

    Attributes:
        name: Tells it apart from all others of its loop.
        runs: Of each logical shard in it: (seed for whatever is random in reading, dataset indices).
    """

    name: tuple[int, int, int]
    runs: tuple[tuple[int, Sequence[int]], ...]


class ReadPiece(Protocol):
    """Reads a piece, in a reader process. Can be sent there, with the user's dataset in it."""

    def __call__(
        self, piece: Piece, seed: Callable[[int], None], default_collate: Callable[[Sequence[Any]], Any], /
    ) -> Any:
        """Return the piece as a batch; `seed` seeds every generator that user code is likely to use."""
        ...


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How pieces are read ahead; each as ``torch.utils.data.DataLoader`` has it.

    Attributes:
        num_workers: Reader processes; 0 reads in this one.
        pin_memory: Put batches into page-locked memory, where there is an accelerator.
        prefetch_factor: Pieces that each reader process reads ahead.
        worker_init_fn: Called with its number in each reader process.
        start_method: "forkserver", "spawn" or "fork".
    """

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int = 2
    worker_init_fn: Callable[[int], None] | None = None
    start_method: str = "forkserver"


class Loader(Protocol):
    """Reads pieces ahead, in other processes; used by the training thread only."""

    def start(self) -> None:
        """Draw pieces from the feed, as many as may be under way. When none is under way: at first, or again."""
        ...

    def next(self) -> Any:
        """Return the batch of the oldest piece that is under way; draw one more.

        Raises:
            Exception: What the user's dataset or collate raised.
        """
        ...

    def close(self) -> None:
        """End the reader processes; idempotent."""


@runtime_checkable
class HasLoader(Protocol):
    """A framework that can read in other processes."""

    def open_loader(self, read: ReadPiece, feed: Iterator[Piece], settings: LoaderSettings) -> Loader:
        """Return a loader of the pieces that `feed` gives. The feed may run dry and go on later."""
        ...
