"""What one worker contributes to metrics: weighted sums and their weights, over its whole share or shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from elastic_train.errors import UsageError

Rows = list[list[float]]
"""[shard, sum of value x samples, samples] of each logical shard, in order."""


def as_float(name: str, value: Any) -> float:
    """Return a metric's value as a float.

    Raises:
        UsageError: It is not a single number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"metric {name!r} must be one number, not {type(value).__name__}: {error}") from error


@dataclass(slots=True)
class _Series:
    """The means of one quantity over one part after the other: (value, samples, shard)."""

    means: list[tuple[Any, int, int]] = field(default_factory=list)
    told: int = 0  # how many of them `rows` has returned


class LocalMetrics:
    """Collects values without reading them: a tensor on a device is only waited for when the step commits.

    What `step.backward` returned is kept for every part. Reported after the loop over the parts, the last of them
    stands for all: ``step.report(loss=loss)`` means the same there whether a share came in one part or in many.
    """

    def __init__(self) -> None:
        self._values: dict[str, _Series] = {}
        self._losses: dict[str, _Series] = {}  # by pass over the parts and number of the call in a part
        self._named: dict[str, str] = {}  # metric -> which of the losses it is
        self._after: dict[str, tuple[Any, int]] = {}
        self._passes = 0
        self._calls = 0  # of backward in the part in hand
        self._samples = 0
        self._shard = 0

    def begin_pass(self) -> None:
        """Begin a pass over the parts; most steps have one."""
        self._passes += 1

    def open_part(self, shard: int, samples: int) -> None:
        """Come to a part of that logical shard (the first of them, where it has more)."""
        self._shard, self._samples, self._calls = shard, samples, 0

    def add_loss(self, loss: Any) -> None:
        """Note what a call of `step.backward` returned."""
        key = f"{self._passes}.{self._calls}"
        self._calls += 1
        self._losses.setdefault(key, _Series()).means.append((loss, self._samples, self._shard))

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add means over the part in hand."""
        for name, value in metrics.items():
            self._values.setdefault(name, _Series()).means.append((value, self._samples, self._shard))

    def add_after(self, metrics: Mapping[str, Any], samples: int) -> None:
        """Add means over all parts, so many samples."""
        for name, value in metrics.items():
            key = self._loss_that_is(value)
            if key is not None:
                self._named[name] = key
            else:
                self._after[name] = value, samples

    def sums(self) -> dict[str, list[float]]:
        """Return for each metric [sum of value x samples, samples]."""
        means = {name: list(series.means) for name, series in self._values.items()}
        for name, key in self._named.items():
            means.setdefault(name, []).extend(self._losses[key].means)
        for name, (value, samples) in self._after.items():
            means.setdefault(name, []).append((value, samples, 0))
        result = {}
        for name, entries in means.items():
            weighted = [(as_float(name, value), samples) for value, samples, _ in entries if samples]
            result[name] = [sum(v * n for v, n in weighted), float(sum(n for _, n in weighted))]
        return result

    def rows(self) -> dict[str, dict[str, Rows]]:
        """Return what has come since the last call, shard by shard: of metrics, and of losses that have no name yet."""
        return {"metrics": _rows_of(self._values.items()), "losses": _rows_of(self._losses.items())}

    def names(self) -> dict[str, Any]:
        """Return which metrics are which of the losses, and the values that were reported after the loop."""
        return {
            "losses": dict(self._named),
            "whole": {name: as_float(name, value) for name, (value, _) in self._after.items()},
        }

    def _loss_that_is(self, value: Any) -> str | None:
        if isinstance(value, int | float):
            return None  # equal numbers may be one object
        newest = {key: series.means[-1][0] for key, series in self._losses.items()}
        return next((key for key, loss in newest.items() if loss is value), None)


def _rows_of(series: Iterable[tuple[str, _Series]]) -> dict[str, Rows]:
    result: dict[str, Rows] = {}
    for name, one in series:
        sums: dict[int, tuple[float, int]] = {}
        for value, samples, shard in one.means[one.told :]:
            if samples:
                total, weight = sums.get(shard, (0.0, 0))
                sums[shard] = total + as_float(name, value) * samples, weight + samples
        one.told = len(one.means)
        if sums:
            result[name] = [[shard, total, weight] for shard, (total, weight) in sums.items()]
    return result
