"""Metrics are means over what they were reported for; a loss reported after the loop stands for every part."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_train.errors import UsageError
from elastic_train.worker.metrics import LocalMetrics


class Loss:
    """A number that is an object of its own, as tensors are."""

    def __init__(self, value: float) -> None:
        self._value = value

    def __float__(self) -> float:
        return self._value


def step(parts: list[tuple[int, int, float]]) -> tuple[LocalMetrics, Any]:
    """Go through parts of (shard, samples, loss); return the metrics and the last loss."""
    metrics = LocalMetrics()
    metrics.begin_pass()
    loss = None
    for shard, samples, value in parts:
        metrics.open_part(shard, samples)
        loss = Loss(value)
        metrics.add_loss(loss)
    return metrics, loss


def test_the_last_loss_reported_after_the_loop_counts_all_parts() -> None:
    metrics, loss = step([(0, 2, 1.0), (0, 1, 4.0), (1, 5, 2.0)])
    metrics.add_after({"loss": loss}, 8)
    assert metrics.sums() == {"loss": [2.0 + 4.0 + 10.0, 8.0]}
    assert metrics.names() == {"losses": {"loss": "1.0"}, "whole": {}}


def test_another_value_reported_after_the_loop_counts_for_the_whole_share() -> None:
    metrics, _ = step([(0, 2, 1.0), (1, 6, 2.0)])
    metrics.add_after({"lr": 0.5}, 8)
    assert metrics.sums() == {"lr": [4.0, 8.0]}
    assert metrics.names() == {"losses": {}, "whole": {"lr": 0.5}}


def test_a_value_reported_in_the_loop_counts_for_the_part_in_hand() -> None:
    metrics = LocalMetrics()
    metrics.begin_pass()
    for shard, samples, value in [(3, 2, 1.0), (3, 2, 3.0), (4, 4, 5.0)]:
        metrics.open_part(shard, samples)
        metrics.add({"accuracy": value})
    assert metrics.sums() == {"accuracy": [28.0, 8.0]}
    assert metrics.rows() == {"metrics": {"accuracy": [[3, 8.0, 4], [4, 20.0, 4]]}, "losses": {}}


def test_rows_are_told_once() -> None:
    metrics, _ = step([(0, 2, 1.0)])
    assert metrics.rows()["losses"] == {"1.0": [[0, 2.0, 2]]}
    assert metrics.rows()["losses"] == {}
    metrics.begin_pass()
    metrics.open_part(0, 2)
    metrics.add_loss(Loss(7.0))
    assert metrics.rows()["losses"] == {"2.0": [[0, 14.0, 2]]}


def test_of_several_losses_in_a_part_each_stands_for_its_own_kind() -> None:
    metrics = LocalMetrics()
    metrics.begin_pass()
    for shard in range(2):
        metrics.open_part(shard, 1)
        first, second = Loss(1.0 + shard), Loss(10.0 + shard)
        metrics.add_loss(first)
        metrics.add_loss(second)
    metrics.add_after({"a": first, "b": second}, 2)
    assert metrics.sums() == {"a": [3.0, 2.0], "b": [21.0, 2.0]}


def test_a_filler_counts_for_nothing() -> None:
    metrics, loss = step([(0, 0, float("nan"))])
    metrics.add_after({"loss": loss}, 0)
    assert metrics.sums() == {"loss": [0.0, 0.0]}
    assert metrics.rows() == {"metrics": {}, "losses": {}}


def test_what_is_no_number_is_refused() -> None:
    metrics, _ = step([(0, 1, 1.0)])
    metrics.add_after({"name": "high"}, 1)
    with pytest.raises(UsageError, match="metric 'name' must be one number, not str"):
        metrics.sums()
