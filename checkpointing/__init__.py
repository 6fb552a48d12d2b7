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
from checkpointing.core.policies import (
    AnyOf,
    Interval,
    Moment,
    SaveAtBestInterval,
    SaveEverySeconds,
    SaveEverySteps,
    SaveOnPreemption,
    SavePolicy,
    choose_interval,
    estimate_mtbf_s,
)
from checkpointing.core.records import CheckpointRef, PointerRecord
from checkpointing.core.urgency import Loss
from checkpointing.errors import CheckpointError, Damaged, NoCheckpoint, SaveError, StaleFence, StructureMismatch
from checkpointing.settings import CheckpointInfo, Event, EventKind, Settings, Stats, Ticket
from checkpointing.tiers import Tier

__all__ = [
    "AnyOf",
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointRef",
    "Checkpointer",
    "Damaged",
    "Event",
    "EventKind",
    "Interval",
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "Loss",
    "Moment",
    "NoCheckpoint",
    "Pointer",
    "PointerRecord",
    "RetentionPolicy",
    "SaveAtBestInterval",
    "SaveError",
    "SaveEverySeconds",
    "SaveEverySteps",
    "SaveOnPreemption",
    "SavePolicy",
    "Settings",
    "StaleFence",
    "Stats",
    "StorePointer",
    "StructureMismatch",
    "Ticket",
    "Tier",
    "choose_interval",
    "estimate_mtbf_s",
]
