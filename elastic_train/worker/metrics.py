"""What one worker contributes to a metric: a weighted sum and its weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastic_train.errors import UsageError


def as_float(name: str, value: Any) -> float:
    """Return a metric's value as a float.

    Raises:
        UsageError: It is not a single number.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"metric {name!r} must be one number, not {type(value).__name__}: {error}") from error


class LocalMetrics:
    """Collects values without reading them: a tensor on a device is only waited for when the step commits."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Any, int]]] = {}

    def add(self, metrics: Mapping[str, Any], samples: int) -> None:
        """Add one mean over so many samples for each metric."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append((value, samples))

    def sums(self) -> dict[str, list[float]]:
        """Return for each metric [sum of value x samples, samples]."""
        result = {}
        for name, values in self._values.items():
            weighted = [(as_float(name, value), samples) for value, samples in values if samples]
            result[name] = [sum(v * n for v, n in weighted), float(sum(n for _, n in weighted))]
        return result
