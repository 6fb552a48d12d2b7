"""Where V streams stand: what each gave in this data epoch, what the next step takes, when a data epoch is over.

Logical shard ``s`` has a stream of its own and gives its quota, a fixed part of the global batch, to every step until
it is exhausted. How long a stream is, only reading tells: so each owner reads one step ahead and says, with the step's
gradients, whether its streams have a quota more. Everybody thus knows before a step whether it is whole, and after the
last one that it was the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from elastic_train.core.data import Share, split

Ends = Literal["all", "any"]


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How V streams are cut into steps.

    Args:
        global_batch_size: Samples of one step over all streams, as long as all of them last.
        logical_shards: V, the number of streams.
        data_epochs: Passes over the streams.
        ends: When a data epoch is over: when ``"all"`` streams are exhausted (the last steps are smaller, every sample
            is used), or when ``"any"`` lacks a whole quota (every step is whole, the rest of all is left out).
    """

    global_batch_size: int
    logical_shards: int
    data_epochs: int = 1
    ends: Ends = "all"

    @property
    def quotas(self) -> tuple[int, ...]:
        """Return how many samples each stream gives to a whole step."""
        cuts = [split(self.global_batch_size, self.logical_shards, shard) for shard in range(self.logical_shards)]
        return tuple(stop - start for start, stop in cuts)

    def is_over(self, announcement: Announcement) -> bool:
        """Say whether a data epoch has no step in which the streams have this much left."""
        return announcement.samples == 0 or (self.ends == "any" and announcement.short > 0)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What streams have for the next step. The sum over all workers' is that of all streams."""

    short: int = 0  # streams that have less than their quota
    samples: int = 0

    @classmethod
    def of(cls, counts: Sequence[int], quotas: Sequence[int]) -> Announcement:
        """Return the announcement of streams with so many samples for the next step, each at most its quota."""
        return cls(sum(count < quota for count, quota in zip(counts, quotas, strict=True)), sum(counts))


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The place between two steps; the same on every worker that has committed as many.

    Attributes:
        data_epoch: The present one; the number of all of them when everything is read.
        base: Samples used in the data epochs before.
        used: [logical_shards] samples used of each stream in this data epoch.
        whole: Whether every stream is known to have its quota for the next step.
    """

    data_epoch: int
    base: int
    used: tuple[int, ...]
    whole: bool = False

    @classmethod
    def start(cls, plan: StreamPlan) -> StreamPosition:
        """Return the place before the first step."""
        return cls(0, 0, (0,) * plan.logical_shards)

    def after(self, counts: Sequence[int], announced: Announcement, plan: StreamPlan) -> StreamPosition:
        """Return the place after a step that took so many samples of each stream."""
        if plan.is_over(announced):
            samples = sum(self.used) + sum(counts)
            return StreamPosition(self.data_epoch + 1, self.base + samples, (0,) * plan.logical_shards)
        used = tuple(before + count for before, count in zip(self.used, counts, strict=True))
        return replace(self, used=used, whole=announced.short == 0)

    def share(self, step: int, shards: tuple[int, int], counts: Sequence[int]) -> Share:
        """Return the samples of a run of shards in a step that takes so many of each stream."""
        batch_start = sum(self.used)
        start = batch_start + sum(counts[: shards[0]])
        stop = start + sum(counts[slice(*shards)])
        return Share(step, self.data_epoch, shards, start, stop, batch_start, batch_start + sum(counts), self.base)

    def as_tree(self) -> dict[str, Any]:
        """Return plain values."""
        return {"data_epoch": self.data_epoch, "base": self.base, "used": list(self.used), "whole": self.whole}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> StreamPosition:
        """Read what `as_tree` wrote."""
        return cls(int(tree["data_epoch"]), int(tree["base"]), tuple(map(int, tree["used"])), bool(tree["whole"]))


@dataclass(frozen=True, slots=True)
class SavedStream:
    """The state of one stream after it gave `used` samples of a data epoch; `state` is b"" at its beginning."""

    data_epoch: int
    used: int
    state: bytes

    def is_newer_than(self, other: SavedStream | None) -> bool:
        """Say whether less must be skipped from here."""
        return other is None or (self.data_epoch, self.used) > (other.data_epoch, other.used)
