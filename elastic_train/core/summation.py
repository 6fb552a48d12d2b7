"""The fixed binary tree along which logical shards are summed, whoever holds them.

Floating point addition is not associative: a sum has the same bits at every world size only if the same numbers are
added in the same pairs. So the pairs are fixed once for all: the sum over shards ``[low, high)`` is that of its first
half, whose length is the largest power of two below ``high - low``, plus that of the rest. Each sum of a run of shards
is a *node*, ``(low, high)``. A worker that holds a run of shards can compute every node inside it alone; what is left
to add between workers is the top of the tree.

This is pairwise summation: its worst error grows with the logarithm of the number of terms (Higham: The accuracy of
floating point summation, SIAM J. Sci. Comput. 14, 1993), that of adding one worker after the other with the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Node = tuple[int, int]
"""A half-open run of logical shards that the tree sums by itself."""

Value = TypeVar("Value")


def are_siblings(left: Node, right: Node, shards: int) -> bool:
    """Say whether two nodes of the tree over ``[0, shards)`` are the halves of one."""
    low, high = left[0], right[1]
    if left[1] != right[0] or high - low < 2:
        return False
    half = 1 << ((high - low - 1).bit_length() - 1)
    return left[1] - low == half and low % (2 * half) == 0 and high == min(low + 2 * half, shards)


def absorb(nodes: list[Node], node: Node, shards: int) -> int:
    """Append the node that follows on `nodes`, after merging it with as many of the last as the tree allows.

    This is how a binary counter counts: at most one node of each size is left over.

    Returns:
        How many were merged, one after the other.
    """
    merged = 0
    while nodes and are_siblings(nodes[-1], node, shards):
        node = (nodes.pop()[0], node[1])
        merged += 1
    nodes.append(node)
    return merged


def largest_nodes(run: tuple[int, int], shards: int) -> list[Node]:
    """Return the fewest nodes that a half-open run of shards consists of, in order: at most 2 log2(shards)."""
    nodes: list[Node] = []
    for shard in range(*run):
        absorb(nodes, (shard, shard + 1), shards)
    return nodes


def fold(nodes: Sequence[Node], values: Sequence[Value], shards: int, add: Callable[[Value, Value], Value]) -> Value:
    """Return the sum of the values of nodes that are together the whole tree, added along it."""
    seen: list[Node] = []
    sums: list[Value] = []
    for node, value in zip(nodes, values, strict=True):
        total = value
        for _ in range(absorb(seen, node, shards)):
            total = add(sums.pop(), total)
        sums.append(total)
    (whole,) = sums
    return whole
