"""What `ElasticTrainer.fit` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_train.core.goodput import EMPTY, Goodput
from elastic_train.core.records import Cause, WorkerId

if TYPE_CHECKING:
    from os import PathLike

    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one committed step reported, as means over its global batch; `step` is its index in its loop."""

    step: int
    metrics: Mapping[str, float]
    world_size: int
    membership_epoch: int
    at_s: float  # since the job began


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """One membership epoch that was formed."""

    membership_epoch: int
    world_size: int
    members: tuple[WorkerId, ...]
    cause: Cause
    reason: str
    begun_at_s: float  # since the job began: when it was proposed
    change_s: float | None  # from the proposal to the first step committed in it; None: it committed none


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint in the job's storage."""

    version: int  # transactions (steps and evaluations) in its state
    key: str  # its name within the storage
    storage: str  # the storage's URL


@dataclass(frozen=True, slots=True)
class Result:
    """How a job went.

    Attributes:
        name: Of the job.
        metrics: The last reported value of every metric.
        metrics_history: Every committed step that reported something, in order, each step once.
        checkpoint: The newest committed checkpoint, None where none was written.
        membership_history: Every membership epoch that was formed: world size, why, how long the change took.
        goodput: Where the workers' time went.
        steps: Committed in this run, each counted once.
        wall_s: Duration of this run.
        path: The job's directory; journal_path: this run's journals within it.
    """

    name: str
    path: Path
    journal_path: Path
    wall_s: float
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    metrics_history: tuple[StepMetrics, ...] = ()
    checkpoint: Checkpoint | None = None
    membership_history: tuple[MembershipChange, ...] = ()
    goodput: Goodput = EMPTY

    def show(self) -> None:
        """Print a summary: every membership change, where the time went, where to look further."""
        from rich.console import Console

        Console().print(self)

    def __rich__(self) -> RenderableType:
        from elastic_train.trainer.summary import summary

        return summary(self)

    def plot(self, path: str | PathLike[str], metric: str = "loss") -> Path:
        """Draw a metric and the world size over time, with the membership changes marked, as a PNG.

        Raises:
            ConfigurationError: No step reported `metric`, or matplotlib is not installed.
        """
        from elastic_train.trainer.picture import draw

        return draw(self, Path(path), metric)
