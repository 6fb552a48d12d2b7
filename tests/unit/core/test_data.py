"""The data plan: every sample once per data epoch, whatever the worlds are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.data import BatchPlan, indices_crc, mix, permute, split


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63))
def test_a_permutation_visits_every_index_once(size: int, seed: int) -> None:
    order = permute(np.arange(size, dtype=np.int64), size, seed)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_permutation_is_the_same_for_ever() -> None:
    # The order is part of the format of a checkpoint: position k must mean the same samples in every later version.
    assert permute(np.arange(10, dtype=np.int64), 10, 0).tolist() == [2, 3, 0, 8, 6, 7, 9, 4, 1, 5]
    assert indices_crc(permute(np.arange(1000, dtype=np.int64), 1000, 7)) == 3761868798


def test_a_permutation_looks_random() -> None:
    size = 100_000
    order = permute(np.arange(size, dtype=np.int64), size, 3)
    correlation = np.corrcoef(order, np.arange(size))[0, 1]
    neighbours = np.mean(np.abs(np.diff(order)))
    assert abs(correlation) < 0.02
    assert neighbours == pytest.approx(size / 3, rel=0.05)


def test_a_huge_dataset_costs_only_the_batch() -> None:
    plan = BatchPlan(dataset_size=10**15, global_batch_size=512, logical_shards=8)
    share = plan.share(step=123_456_789, rank=1, world_size=3)
    indices = plan.indices(share.data_epoch, share.start, share.stop)
    assert len(set(indices.tolist())) == share.samples
    assert indices.min() >= 0
    assert indices.max() < 10**15


@given(
    size=st.integers(1, 400),
    batch=st.integers(1, 100),
    shards=st.integers(1, 16),
    data_epochs=st.integers(1, 3),
    worlds=st.lists(st.integers(1, 16), min_size=1, max_size=8),
    shuffle=st.booleans(),
)
def test_every_sample_is_read_once_per_data_epoch_at_any_sequence_of_worlds(
    size: int, batch: int, shards: int, data_epochs: int, worlds: list[int], shuffle: bool
) -> None:
    plan = BatchPlan(size, batch, shards, data_epochs, seed=5, shuffle=shuffle)
    seen: list[list[int]] = [[] for _ in range(data_epochs)]
    for step in range(plan.total_steps):
        world_size = min(worlds[step % len(worlds)], shards)
        covered: list[int] = []
        for rank in range(world_size):
            share = plan.share(step, rank, world_size)
            covered += range(*share.shards)
            seen[share.data_epoch] += plan.indices(share.data_epoch, share.start, share.stop).tolist()
        assert covered == list(range(shards))
    for data_epoch in seen:
        assert sorted(data_epoch) == list(range(size))


def test_the_order_differs_between_data_epochs_and_seeds() -> None:
    plan = BatchPlan(1000, 100, 4, data_epochs=2, seed=1)
    other = BatchPlan(1000, 100, 4, data_epochs=2, seed=2)
    assert not np.array_equal(plan.indices(0, 0, 1000), plan.indices(1, 0, 1000))
    assert not np.array_equal(plan.indices(0, 0, 1000), other.indices(0, 0, 1000))


def test_drop_last_leaves_out_the_incomplete_batch() -> None:
    assert BatchPlan(10, 4, 2).total_steps == 3
    assert BatchPlan(10, 4, 2, drop_last=True).total_steps == 2
    assert BatchPlan(10, 4, 2).share(2, 0, 1).global_samples == 2


@given(total=st.integers(0, 1000), parts=st.integers(1, 64))
def test_a_split_is_contiguous_complete_and_even(total: int, parts: int) -> None:
    runs = [split(total, parts, part) for part in range(parts)]
    assert runs[0][0] == 0
    assert runs[-1][1] == total
    assert all(before[1] == after[0] for before, after in pairwise(runs))
    sizes = [stop - start for start, stop in runs]
    assert max(sizes) - min(sizes) <= 1


def test_mixed_seeds_do_not_collide() -> None:
    assert len({mix(seed, step, shard) for seed in range(10) for step in range(100) for shard in range(10)}) == 10_000
