"""The tree over logical shards is the same at every world size, and sums along it have the same bits."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.data import split
from elastic_train.core.summation import Node, absorb, are_siblings, fold, largest_nodes

SHARDS = st.integers(1, 70)


def tree(low: int, high: int) -> set[Node]:
    """Return all nodes, by the definition."""
    nodes = {(low, high)}
    if high - low > 1:
        half = 1
        while 2 * half < high - low:
            half *= 2
        nodes |= tree(low, low + half) | tree(low + half, high)
    return nodes


@given(SHARDS, st.data())
def test_siblings_are_the_halves_of_a_node_of_the_tree(shards: int, data: st.DataObject) -> None:
    nodes = tree(0, shards)
    left = data.draw(st.sampled_from(sorted(nodes)))
    right = data.draw(st.sampled_from(sorted(nodes)))
    union = (left[0], right[1])
    assert are_siblings(left, right, shards) == (left[1] == right[0] and union in nodes)


@given(SHARDS, st.data())
def test_a_run_consists_of_nodes_of_the_tree_and_of_few(shards: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, shards))
    high = data.draw(st.integers(low, shards))
    nodes = largest_nodes((low, high), shards)
    assert set(nodes) <= tree(0, shards)
    assert [shard for node in nodes for shard in range(*node)] == list(range(low, high))
    assert len(nodes) <= max(1, 2 * math.ceil(math.log2(shards + 1)))
    assert not any(are_siblings(*pair, shards) for pair in pairwise(nodes))


@given(SHARDS)
def test_all_shards_are_one_node(shards: int) -> None:
    assert largest_nodes((0, shards), shards) == [(0, shards)]


@given(st.integers(1, 6).flatmap(lambda power: st.tuples(st.just(2**power), st.integers(0, power))))
def test_in_aligned_worlds_each_run_is_one_node(case: tuple[int, int]) -> None:
    shards, power = case
    world_size = 2**power
    assert all(len(largest_nodes(split(shards, world_size, rank), shards)) == 1 for rank in range(world_size))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.data())
def test_the_sum_has_the_same_bits_however_the_shards_are_divided(values: list[float], data: st.DataObject) -> None:
    shards = len(values)
    numbers = np.array(values, dtype=np.float32)

    def add(left: np.float32, right: np.float32) -> np.float32:
        return np.float32(left + right)

    def node_sum(node: Node) -> np.float32:
        if node[1] - node[0] == 1:
            return np.float32(numbers[node[0]])
        half = 1 << ((node[1] - node[0] - 1).bit_length() - 1)
        return add(node_sum((node[0], node[0] + half)), node_sum((node[0] + half, node[1])))

    with np.errstate(over="ignore", invalid="ignore"):
        expected = node_sum((0, shards)).tobytes()
        world_size = data.draw(st.integers(1, shards))
        nodes = [node for rank in range(world_size) for node in largest_nodes(split(shards, world_size, rank), shards)]
        assert fold(nodes, [node_sum(node) for node in nodes], shards, add).tobytes() == expected


def test_absorbing_counts_the_merges() -> None:
    nodes: list[Node] = []
    assert [absorb(nodes, (shard, shard + 1), 5) for shard in range(5)] == [0, 1, 0, 2, 1]
    assert nodes == [(0, 5)]
