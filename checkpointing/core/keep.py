"""Which checkpoints are kept: policies over what is committed, oldest first.

Whatever they say, the newest is always kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from checkpointing.core.records import CheckpointRef


class RetentionPolicy(Protocol):
    """Choose what to keep."""

    @property
    def metrics(self) -> frozenset[str]:
        """Return the names of the metrics that the choice depends on."""
        ...

    def choose(self, checkpoints: Sequence[CheckpointRef]) -> set[int]:
        """Return the indices of those to keep; `checkpoints` are oldest first."""
        ...


class _Union:
    def __or__(self, other: RetentionPolicy) -> KeepAny:
        """Return a policy that keeps what either keeps."""
        return KeepAny(self, other)  # type: ignore[arg-type]  # every class that has this mixin is a policy


@dataclass(frozen=True, slots=True)
class KeepLast(_Union):
    """Keep the newest few."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"KeepLast({self.count}) would keep nothing; keep 1 or more")

    @property
    def metrics(self) -> frozenset[str]:
        """Depend on no metric."""
        return frozenset()

    def choose(self, checkpoints: Sequence[CheckpointRef]) -> set[int]:
        """Keep the last `count`."""
        return set(range(max(0, len(checkpoints) - self.count), len(checkpoints)))


@dataclass(frozen=True, slots=True)
class KeepBest(_Union):
    """Keep those with the best value of a number in their metadata.

    Attributes:
        metric: Its name in `save(..., metadata=...)`.
        count: How many.
        mode: Whether smaller or larger is better.
    """

    metric: str
    count: int = 1
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"KeepBest(count={self.count}) would keep nothing; keep 1 or more")
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode {self.mode!r} is neither 'min' nor 'max'")

    @property
    def metrics(self) -> frozenset[str]:
        """Depend on the one metric."""
        return frozenset({self.metric})

    def choose(self, checkpoints: Sequence[CheckpointRef]) -> set[int]:
        """Keep the best `count`; of equals the newer. One without the metric, or with nan, is never among the best."""
        sign = 1 if self.mode == "min" else -1
        ranked = sorted(
            (sign * ref.metrics[self.metric], -index)
            for index, ref in enumerate(checkpoints)
            if not math.isnan(ref.metrics.get(self.metric, math.nan))
        )
        return {-negative for _, negative in ranked[: self.count]}


@dataclass(frozen=True, slots=True)
class KeepEvery(_Union):
    """Keep the first checkpoint of each stretch of so many steps."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"KeepEvery({self.steps}): steps must be 1 or more")

    @property
    def metrics(self) -> frozenset[str]:
        """Depend on no metric."""
        return frozenset()

    def choose(self, checkpoints: Sequence[CheckpointRef]) -> set[int]:
        """Keep the first of each stretch `[k * steps, (k + 1) * steps)`."""
        first: dict[int, int] = {}
        for index in sorted(range(len(checkpoints)), key=lambda index: (checkpoints[index].step, index)):
            first.setdefault(checkpoints[index].step // self.steps, index)
        return set(first.values())


@dataclass(frozen=True, slots=True, init=False)
class KeepAny(_Union):
    """Keep what any of several policies keeps."""

    policies: tuple[RetentionPolicy, ...]

    def __init__(self, *policies: RetentionPolicy) -> None:
        if not policies:
            raise ValueError("KeepAny() of nothing would keep nothing")
        object.__setattr__(self, "policies", policies)

    @property
    def metrics(self) -> frozenset[str]:
        """Depend on what they depend on."""
        return frozenset[str]().union(*(policy.metrics for policy in self.policies))

    def choose(self, checkpoints: Sequence[CheckpointRef]) -> set[int]:
        """Keep the union."""
        return set[int]().union(*(policy.choose(checkpoints) for policy in self.policies))


def split(
    policy: RetentionPolicy, checkpoints: Sequence[CheckpointRef]
) -> tuple[tuple[CheckpointRef, ...], tuple[CheckpointRef, ...]]:
    """Return what is kept and what is dropped, each oldest first; the newest is always kept."""
    chosen = policy.choose(checkpoints) | {len(checkpoints) - 1}
    kept = tuple(ref for index, ref in enumerate(checkpoints) if index in chosen)
    dropped = tuple(ref for index, ref in enumerate(checkpoints) if index not in chosen)
    return kept, dropped


def metrics_of(policy: RetentionPolicy, metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers that a policy needs from a save's metadata, at its top or under `metrics`."""
    nested: Any = metadata.get("metrics")
    places: list[Mapping[str, Any]] = [metadata, nested] if isinstance(nested, Mapping) else [metadata]
    return {
        name: float(place[name])
        for name in sorted(policy.metrics)
        for place in places
        if isinstance(place.get(name), int | float) and math.isfinite(place[name])
    }
