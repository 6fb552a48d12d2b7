"""An elastic, fault-tolerant training runtime.

    import elastic_train as et

    result = et.ElasticTrainer(train, min_workers=2, max_workers=16).fit()

Names are imported on first use: ``import elastic_train`` loads no framework and no client library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_train.config import CheckpointConfig, FailureConfig, TimeoutConfig
    from elastic_train.context import get_context
    from elastic_train.core.order import BucketedOrder, WeightedOrder
    from elastic_train.errors import (
        ConfigurationError,
        CoordinationDenied,
        CoordinationError,
        CoordinationUnavailable,
        ElasticTrainError,
        JobAlreadyRunning,
        JobError,
        JobNotFound,
        JobStopped,
        LaunchError,
        NotEnoughWorkers,
        StateNotRestorable,
        TrainingFailed,
        UsageError,
    )
    from elastic_train.trainer.elastic_trainer import ElasticTrainer
    from elastic_train.trainer.result import Checkpoint, MembershipChange, Result, StepMetrics
    from elastic_train.worker.batches import ElasticBatches
    from elastic_train.worker.state import TrainState
    from elastic_train.worker.streams import ElasticStreams

__version__ = "0.1.0"

_HOMES = {
    "elastic_train.config": ("CheckpointConfig", "FailureConfig", "TimeoutConfig"),
    "elastic_train.context": ("get_context",),
    "elastic_train.core.order": ("BucketedOrder", "WeightedOrder"),
    "elastic_train.errors": (
        "ConfigurationError",
        "CoordinationDenied",
        "CoordinationError",
        "CoordinationUnavailable",
        "ElasticTrainError",
        "JobAlreadyRunning",
        "JobError",
        "JobNotFound",
        "JobStopped",
        "LaunchError",
        "NotEnoughWorkers",
        "StateNotRestorable",
        "TrainingFailed",
        "UsageError",
    ),
    "elastic_train.trainer.elastic_trainer": ("ElasticTrainer",),
    "elastic_train.trainer.result": ("Checkpoint", "MembershipChange", "Result", "StepMetrics"),
    "elastic_train.worker.batches": ("ElasticBatches",),
    "elastic_train.worker.state": ("TrainState",),
    "elastic_train.worker.streams": ("ElasticStreams",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BucketedOrder",
    "Checkpoint",
    "CheckpointConfig",
    "ConfigurationError",
    "CoordinationDenied",
    "CoordinationError",
    "CoordinationUnavailable",
    "ElasticBatches",
    "ElasticStreams",
    "ElasticTrainError",
    "ElasticTrainer",
    "FailureConfig",
    "JobAlreadyRunning",
    "JobError",
    "JobNotFound",
    "JobStopped",
    "LaunchError",
    "MembershipChange",
    "NotEnoughWorkers",
    "Result",
    "StateNotRestorable",
    "StepMetrics",
    "TimeoutConfig",
    "TrainState",
    "TrainingFailed",
    "UsageError",
    "WeightedOrder",
    "get_context",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home (PEP 562)."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
