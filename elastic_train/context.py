"""What a train function may ask about where it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elastic_train.errors import UsageError


@dataclass(frozen=True, slots=True)
class Context:
    """This worker's place, as of the current membership epoch. Ask again after a step: it may have changed."""

    job: str
    worker_id: str
    rank: int
    world_size: int
    membership_epoch: int
    node: str
    local_rank: int  # slot on its node, fixed for the life of the process
    min_workers: int
    max_workers: int


_provider: Callable[[], Context] | None = None
_runtime: Any = None


def install(provider: Callable[[], Context] | None, runtime: Any = None) -> None:
    """Make this process a worker (called by the worker's composition root only); None undoes it."""
    global _provider, _runtime
    _provider, _runtime = provider, runtime


def get_context() -> Context:
    """Return this worker's context.

    Raises:
        UsageError: Not called from within a train function.
    """
    if _provider is None:
        raise UsageError("get_context() works only inside a train function that an ElasticTrainer runs")
    return _provider()


def get_runtime() -> Any:
    """Return the worker runtime of this process (for TrainState).

    Raises:
        UsageError: Not called from within a train function.
    """
    if _runtime is None:
        raise UsageError(
            "TrainState works only inside a train function: pass the function to ElasticTrainer(train, ...).fit()"
        )
    return _runtime
