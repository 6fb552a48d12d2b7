"""Users' orders: pure, checked, and what the ready ones promise."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.crc import crc32_combine, crc32_join
from elastic_train.core.data import Indices
from elastic_train.core.order import BucketedOrder, DrawnOrder, OrderedPlan, WeightedOrder, describe, uniforms
from elastic_train.errors import ConfigurationError, UsageError

FROZEN = [[1, 3, 1, 2, 1, 2, 1, 0], [2, 3, 0, 1], [2, 0, 1, 3, 5, 4, 7, 6]]


def test_weighted_samples_come_as_often_as_they_weigh() -> None:
    drawn = WeightedOrder([1.0, 0.0, 3.0], 40_000)(0, 5)
    counts = np.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert counts[2] / counts[0] == pytest.approx(3, rel=0.05)


def test_without_replacement_no_sample_comes_twice_and_heavy_ones_come_first() -> None:
    weights = np.r_[np.full(500, 1.0), np.full(500, 9.0), np.zeros(10)]
    drawn = WeightedOrder(weights, 500, replacement=False)(0, 5)
    assert len(set(drawn.tolist())) == 500
    assert drawn.max() < 1000
    assert np.mean(drawn >= 500) == pytest.approx(0.79, abs=0.05)  # successive sampling of half of them


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=200),
    batch_size=st.integers(1, 20),
    pool_batches=st.integers(1, 5),
    data_epoch=st.integers(0, 3),
)
def test_buckets_hold_every_sample_once(
    lengths: list[int], batch_size: int, pool_batches: int, data_epoch: int
) -> None:
    drawn = BucketedOrder(lengths, batch_size, pool_batches)(data_epoch, 3)
    assert sorted(drawn.tolist()) == list(range(len(lengths)))


def test_a_bucketed_batch_has_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 6400)
    drawn = BucketedOrder(lengths, 32)(0, 1)
    spread = np.ptp(lengths[drawn].reshape(-1, 32), axis=1).mean()
    assert spread < 50
    starts = lengths[drawn].reshape(-1, 32).mean(axis=1)
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.25, "batches follow each other in no order of length"


@pytest.mark.parametrize(
    "order", [WeightedOrder([1, 2, 3, 4], 9), WeightedOrder([1, 2, 3, 4], 3, False), BucketedOrder([5, 1, 4, 2], 2)]
)
def test_the_ready_orders_are_pure_and_differ_between_data_epochs(order: Callable[[int, int], Indices]) -> None:
    assert np.array_equal(order(1, 7), order(1, 7))
    assert any(not np.array_equal(order(0, 7), order(data_epoch, 7)) for data_epoch in range(1, 8))


def test_the_ready_orders_are_the_same_for_ever() -> None:
    # An order is part of the meaning of a checkpoint's position, as the built-in permutation is.
    assert WeightedOrder([1, 2, 3, 4], 8)(0, 7).tolist() == FROZEN[0]
    assert WeightedOrder([1, 2, 3, 4], 4, replacement=False)(0, 7).tolist() == FROZEN[1]
    assert BucketedOrder([5, 1, 4, 2, 9, 7, 8, 3], 2, 2)(0, 7).tolist() == FROZEN[2]


@pytest.mark.parametrize(
    "make",
    [
        lambda: WeightedOrder([], 1),
        lambda: WeightedOrder([0.0], 1),
        lambda: WeightedOrder([1.0, -1.0], 1),
        lambda: WeightedOrder([1.0, float("nan")], 1),
        lambda: WeightedOrder([1.0, 0.0], 2, replacement=False),
        lambda: WeightedOrder([1.0], 0),
        lambda: BucketedOrder([], 1),
        lambda: BucketedOrder([1], 0),
    ],
)
def test_what_cannot_be_an_order_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_an_impure_order_is_found_at_once() -> None:
    generator = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match="two different orders"):
        DrawnOrder(lambda _data_epoch, _seed: generator.permutation(100), 100, 0)


@pytest.mark.parametrize("returned", [[], [0.5], [[1]], [100], [-1]])
def test_indices_that_are_none_are_refused(returned: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match="order"):
        DrawnOrder(lambda _data_epoch, _seed: returned, 100, 0)


def test_data_epochs_of_different_lengths_are_refused() -> None:
    drawn = DrawnOrder(lambda data_epoch, _seed: range(10 + data_epoch), 100, 0)
    with pytest.raises(UsageError, match="11 samples in data epoch 1"):
        drawn.of(1)


def test_a_plan_cuts_the_order_as_it_is_and_tells_of_it() -> None:
    def backwards(data_epoch: int, seed: int) -> range:
        return range(9, -1, -1)

    plan = OrderedPlan(10, 4, 2, data_epochs=2, order=DrawnOrder(backwards, 10, 0))
    assert plan.indices(1, 4, 8).tolist() == [5, 4, 3, 2]
    assert describe(plan)["order"].endswith("backwards")
    assert plan.order_crc(0) == plan.order_crc(1) == zlib.crc32(np.arange(9, -1, -1, dtype="<i8").tobytes())


@given(pieces=st.lists(st.binary(max_size=40), max_size=12))
def test_checksums_of_pieces_combine_to_that_of_the_whole(pieces: list[bytes]) -> None:
    assert crc32_join((zlib.crc32(piece), len(piece)) for piece in pieces) == zlib.crc32(b"".join(pieces))


def test_checksums_of_huge_pieces_combine() -> None:
    zeros = bytes(1 << 20)
    assert crc32_combine(7, zlib.crc32(zeros), len(zeros)) == zlib.crc32(zeros, 7)


def test_uniforms_are_uniform() -> None:
    values = uniforms(100_000, 3)
    assert values.min() >= 0
    assert values.max() < 1
    assert np.histogram(values, 10, (0, 1))[0].min() > 9_600
