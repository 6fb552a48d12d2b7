"""Sum tensors over the members along the fixed tree over logical shards: the same bits at every world size.

Reduce-scatter and all-gather as in `collectives`, but what a member sends of a slice is not one sum: it is one for each
of the largest nodes of the tree inside its run of shards. In a world whose runs are nodes (every power of two that
divides the number of shards) that is one, and no byte more than any all-reduce moves; else up to 2 log2(shards).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import chain

import torch

from elastic_train.adapters.framework.torch.collectives import byte_view
from elastic_train.adapters.framework.torch.mesh import Mesh
from elastic_train.core.data import split
from elastic_train.core.summation import Node, absorb, largest_nodes

_ONE_ROUND_BYTES = 16 * 1024  # as in `collectives`


class OrderedSum:
    """The ordered sum on one mesh, with the memory it needs between calls. Used by one thread at a time."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._others = [rank for rank in range(mesh.world_size) if rank != mesh.rank]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def all_reduce(self, parts: Sequence[torch.Tensor], out: torch.Tensor, shards: int) -> None:
        """Sum along the tree over all shards; every member gets the result.

        Args:
            parts: Contiguous, of one size: the sums of the largest nodes of this member's run, in order. Overwritten.
            out: Where the result goes; may be one of `parts`.
            shards: How many there are, all members together.

        Raises:
            GroupBroken: A member is gone, or the mesh was aborted.
        """
        if not out.numel():
            return
        flats = [part.detach().view(-1) for part in parts]
        target = out.detach().view(-1)
        if target.device.type != "cpu":  # the seam for devices, as in `collectives`
            staged = [flat.cpu() for flat in flats]
            self.all_reduce(staged, staged[-1], shards)
            target.copy_(staged[-1])
            return
        nodes = nodes_by_rank(shards, self._mesh.world_size)
        if self._others and target.numel() * target.element_size() > _ONE_ROUND_BYTES:
            self._reduce_scatter_gather(flats, target, nodes, shards)
        else:
            self._reduce_everywhere(flats, target, nodes, shards)

    def _reduce_everywhere(
        self, parts: list[torch.Tensor], out: torch.Tensor, nodes: Sequence[Sequence[Node]], shards: int
    ) -> None:
        """Send everything to everybody in one round: more bytes, half the latency."""
        rows = self._scratch_for(out, sum(map(len, nodes)) * out.numel()).view(-1, out.numel())
        blocks = rows.split([len(theirs) for theirs in nodes])
        torch.stack(parts, out=blocks[self._mesh.rank])
        mine = byte_view(blocks[self._mesh.rank].view(-1))
        self._mesh.exchange(
            dict.fromkeys(self._others, mine), {rank: byte_view(blocks[rank].view(-1)) for rank in self._others}
        )
        folding = _Folding(list(chain(*nodes)), list(rows), out, shards)
        folding.arrive(*range(len(rows)))

    def _reduce_scatter_gather(
        self, parts: list[torch.Tensor], out: torch.Tensor, nodes: Sequence[Sequence[Node]], shards: int
    ) -> None:
        world_size, rank = self._mesh.world_size, self._mesh.rank
        chunks = [torch.tensor_split(part, world_size) for part in parts]
        out_chunks = torch.tensor_split(out, world_size)
        mine = out_chunks[rank]
        first = [sum(map(len, nodes[:other])) for other in range(world_size)]  # place of a rank's first node
        scratch = self._scratch_for(out, sum(map(len, nodes)) * mine.numel()).view(-1, mine.numel())
        slots = list(scratch)
        slots[first[rank] : first[rank] + len(parts)] = [part_chunks[rank] for part_chunks in chunks]
        folding = _Folding(list(chain(*nodes)), slots, mine, shards)
        folding.arrive(*range(first[rank], first[rank] + len(parts)))
        for turn in range(max(map(len, nodes))):
            outgoing = chunks[turn] if turn < len(parts) else ()
            self._mesh.exchange(
                {other: byte_view(outgoing[other]) for other in self._others} if outgoing else {},
                {o: byte_view(slots[first[o] + turn]) for o in self._others if turn < len(nodes[o])},
                partial(_arrived, folding, first, turn),
            )
        views = {other: byte_view(out_chunks[other]) for other in self._others}
        self._mesh.exchange(dict.fromkeys(self._others, byte_view(mine)), views)

    def _scratch_for(self, like: torch.Tensor, count: int) -> torch.Tensor:
        """Return `count` uninitialised elements of the same type; they are the next caller's too."""
        nbytes = count * like.element_size()
        if self._scratch.numel() < nbytes:
            self._scratch = torch.empty(nbytes, dtype=torch.uint8)
        return self._scratch[:nbytes].view(like.dtype)


@lru_cache(maxsize=64)
def nodes_by_rank(shards: int, world_size: int) -> tuple[tuple[Node, ...], ...]:
    """Return, by rank, the largest nodes inside each member's run of shards."""
    return tuple(tuple(largest_nodes(split(shards, world_size, rank), shards)) for rank in range(world_size))


def _arrived(folding: _Folding, first: Sequence[int], turn: int, other: int) -> None:
    folding.arrive(first[other] + turn)


class _Folding:
    """Adds the values of nodes along the tree, as far as those have arrived that it needs: arrival decides nothing."""

    def __init__(self, nodes: list[Node], values: list[torch.Tensor], out: torch.Tensor, shards: int) -> None:
        self._nodes = nodes
        self._values = values
        self._out = out
        self._shards = shards
        self._arrived: set[int] = set()
        self._next = 0
        self._seen: list[Node] = []
        self._sums: list[torch.Tensor] = []

    def arrive(self, *indices: int) -> None:
        self._arrived.update(indices)
        while self._next in self._arrived:
            self._add(self._next)
            self._next += 1

    def _add(self, index: int) -> None:
        total = self._values[index]
        for _ in range(absorb(self._seen, self._nodes[index], self._shards)):
            left = self._sums.pop()
            whole = index == len(self._nodes) - 1 and not self._sums
            total = torch.add(left, total, out=self._out if whole else left)
        self._sums.append(total)
        if index == len(self._nodes) - 1 and total is not self._out and total.data_ptr() != self._out.data_ptr():
            self._out.copy_(total)
