"""The ordered sum between members: one result at every world size, more accurate than adding in rank order."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations

import pytest
import torch

from elastic_train.adapters.framework.torch import ordered_sum
from elastic_train.adapters.framework.torch.mesh import Mesh, Wakeup
from elastic_train.adapters.framework.torch.ordered_sum import OrderedSum
from elastic_train.core.data import split
from elastic_train.core.summation import absorb

pytestmark = pytest.mark.integration

SIZES = [1, 2, 3, 5, 6, 7, 8]


@contextmanager
def meshes(count: int) -> Iterator[list[Mesh]]:
    """Yield the connected members of a world, all in this process."""
    peers: list[dict[int, socket.socket]] = [{} for _ in range(count)]
    for one, other in combinations(range(count), 2):
        peers[one][other], peers[other][one] = socket.socketpair()
    for mine in peers:
        for peer in mine.values():
            peer.setblocking(False)
    members = [Mesh(rank, mine, Wakeup()) for rank, mine in enumerate(peers)]
    try:
        yield members
    finally:
        for member in members:
            member.close()


def total(values: torch.Tensor, world_size: int) -> torch.Tensor:
    """Return the sum over rows, each a logical shard, of a world of that size; all members must agree on it."""
    shards = len(values)

    def member(mesh: Mesh) -> torch.Tensor:
        nodes: list[tuple[int, int]] = []
        parts: list[torch.Tensor] = []
        for shard in range(*split(shards, world_size, mesh.rank)):
            part = values[shard].clone()
            for _ in range(absorb(nodes, (shard, shard + 1), shards)):
                part = parts.pop() + part
            parts.append(part)
        OrderedSum(mesh).all_reduce(parts, parts[-1], shards)
        return parts[-1]

    with meshes(world_size) as members, ThreadPoolExecutor(world_size) as pool:
        results = list(pool.map(member, members))
    assert all(torch.equal(result.view(torch.int32), results[0].view(torch.int32)) for result in results)
    return results[0]


def spread(shards: int, count: int) -> torch.Tensor:
    """Return numbers of very different size: [shards, count]."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(shards, count, generator=generator) * 10 ** torch.randn(shards, 1, generator=generator)


@pytest.mark.parametrize("count", [3, 1001, 20_000])
@pytest.mark.parametrize("shards", [8, 13])
def test_the_sum_has_the_same_bits_at_every_world_size(shards: int, count: int) -> None:
    values = spread(shards, count)
    sums = {size: total(values, size) for size in SIZES}
    for size, result in sums.items():
        assert torch.equal(result.view(torch.int32), sums[1].view(torch.int32)), size
    torch.testing.assert_close(sums[1].double(), values.double().sum(0), rtol=1e-5, atol=1e-5)


def test_infinity_and_nan_come_out_as_in_a_plain_sum() -> None:
    values = torch.ones(8, 20_000)
    values[2, 5], values[6, 5], values[3, 7], values[1, 9] = torch.inf, -torch.inf, torch.inf, torch.nan
    for size in (1, 3, 8):
        result = total(values, size)
        assert result[5].isnan()
        assert result[7] == torch.inf
        assert result[9].isnan()
        assert result.isfinite().sum() == 20_000 - 3


def test_the_sum_is_at_least_as_accurate_as_adding_one_after_the_other_in_single_precision() -> None:
    values = spread(64, 20_000)
    exact = values.double().sum(0)
    in_turn = torch.zeros(20_000)
    for row in values:
        in_turn += row

    def error(result: torch.Tensor) -> float:
        return float((result.double() - exact).abs().mean())

    assert error(total(values, 3)) <= error(in_turn)


def test_adding_in_the_order_of_ranks_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(nodes: list[tuple[int, int]], node: tuple[int, int], shards: int) -> int:
        del shards
        merged = len(nodes)
        nodes[:] = [(nodes[0][0] if nodes else node[0], node[1])]
        return merged

    values = spread(8, 20_000)
    right = total(values, 3)
    monkeypatch.setattr(ordered_sum, "absorb", in_turn)
    assert not torch.equal(right, total(values, 3))
