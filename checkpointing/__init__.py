"""Checkpoints that cost nothing and cannot be lost; useful without `elastic_train`.

    >>> from checkpointing import Checkpointer, KeepLast
    >>> from storage import open_store
    >>> with (
    ...     open_store("memory://example") as store,
    ...     Checkpointer(store, job="mnist", retention=KeepLast(3)) as checkpointer,
    ... ):
    ...     ticket = checkpointer.save(100, {"lr": 0.1, "epoch": 3})
    ...     _ = checkpointer.wait()
    ...     checkpointer.load()
    {'lr': 0.1, 'epoch': 3}

Importing this loads no array library but numpy.
"""

from checkpointing.catalog import Pointer, StorePointer
from checkpointing.checkpointer import Checkpointer
from checkpointing.core.keep import KeepAny, KeepBest, KeepEvery, KeepLast, RetentionPolicy
from checkpointing.core.records import CheckpointRef, PointerRecord
from checkpointing.errors import CheckpointError, Damaged, NoCheckpoint, SaveError, StaleFence, StructureMismatch
from checkpointing.settings import CheckpointInfo, Event, EventKind, Settings, Stats, Ticket

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointRef",
    "Checkpointer",
    "Damaged",
    "Event",
    "EventKind",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "NoCheckpoint",
    "Pointer",
    "PointerRecord",
    "RetentionPolicy",
    "SaveError",
    "Settings",
    "StaleFence",
    "Stats",
    "StorePointer",
    "StructureMismatch",
    "Ticket",
]
