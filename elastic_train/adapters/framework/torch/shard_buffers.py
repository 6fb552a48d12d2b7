"""Buffers that a forward pass changes (batch norm's), where every logical shard is computed by itself.

Each shard begins with the values of the step's beginning, and what the shards make of them is averaged by weight along
the tree: at every world size that is one update by the mean of the shards' statistics, as one pass over the whole
batch would be. Counters are those of the first shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgpack
import torch

from elastic_train.adapters.framework.torch.buffers import Buffers
from elastic_train.adapters.framework.torch.collectives import byte_view
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.ordered_sum import nodes_by_rank
from elastic_train.core.summation import absorb, fold


@dataclass(frozen=True)
class _Outcome:
    """What a shard has made of the buffers that it changed."""

    shard: int
    weight: float
    values: dict[int, torch.Tensor]


class ShardBuffers:
    """The buffers of all bound modules, shard by shard."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._run: tuple[int, int] = (0, 1)
        self._shards = 1
        self._base: list[torch.Tensor | None] = []
        self._outcomes: list[_Outcome] = []
        self._open: tuple[int, float] | None = None
        self._changed = [False] * len(buffers)

    def begin(self, run: tuple[int, int], shards: int) -> None:
        """Begin a reduction of this half-open run of all shards; what the buffers hold now is where each begins."""
        self._run, self._shards = run, shards
        self._buffers.mark()
        with torch.no_grad():
            tensors = [place.tensor for place in self._buffers.places]
            self._base = [None if tensor is None else tensor.detach().clone() for tensor in tensors]
        self._outcomes.clear()
        self._open = None
        self._changed = [False] * len(self._base)

    def open(self, shard: int, weight: float) -> None:
        """Come to a shard; all its passes follow one another.

        Args:
            shard: Which.
            weight: Its part of the global batch; 0: what is changed now counts for nothing.
        """
        if self._open is not None and self._open[0] == shard:
            self._open = shard, self._open[1] + weight
            return
        self.close()
        self._open = shard, weight

    def close(self) -> None:
        """Leave the shard in hand: keep what it made of the buffers, and put them back."""
        if self._open is None:
            return
        (shard, weight), self._open = self._open, None
        values: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for index, changed in enumerate(self._buffers.changed()):
                base, tensor = self._base[index], self._buffers.places[index].tensor
                if not changed or tensor is None or base is None:
                    continue
                values[index] = tensor.detach().clone()
                tensor.copy_(base)
                self._changed[index] |= weight > 0
        self._buffers.mark()
        if weight > 0:
            self._outcomes.append(_Outcome(shard, weight, values))

    def changed(self) -> list[bool]:
        """Return for each buffer whether a shard of this worker changed it."""
        return list(self._changed)

    def fold(self, changed_by_any: Sequence[bool], group: TorchGroup) -> None:
        """Give every member the outcome of all shards.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        wanted = [index for index, changed in enumerate(changed_by_any) if changed and self._base[index] is not None]
        floats = [index for index in wanted if self._value(index).is_floating_point()]
        others = [index for index in wanted if index not in floats]
        with torch.no_grad():
            gathered = [msgpack.unpackb(data) for data in group.all_gather_bytes(self._pack(floats, others))]
            nodes = [node for theirs in nodes_by_rank(self._shards, group.world_size) for node in theirs]
            parts = [
                torch.frombuffer(bytearray(part), dtype=torch.float64) for _, theirs in gathered for part in theirs
            ]
            average = fold(nodes, parts, self._shards, torch.add)
            for index, values in zip(floats, average.split([self._value(i).numel() for i in floats]), strict=True):
                self._replace(index, values)
            counters: list[bytes] = next((theirs for theirs, _ in gathered if theirs), [])
            for index, data in zip(others, counters, strict=False):
                self._replace(index, torch.frombuffer(bytearray(data), dtype=self._value(index).dtype))
        self._buffers.mark()

    def _pack(self, floats: list[int], others: list[int]) -> bytes:
        """Return this worker's counters (none where its shards were all empty), and its sums of the tree's nodes."""
        counters = [_bytes(self._outcomes[0].values.get(i, self._value(i))) for i in others] if self._outcomes else []
        return bytes(msgpack.packb([counters, [_bytes(part) for part in self._parts(floats)]]))

    def _parts(self, floats: list[int]) -> list[torch.Tensor]:
        size = sum(self._value(index).numel() for index in floats)
        outcomes = {outcome.shard: outcome for outcome in self._outcomes}
        nodes: list[tuple[int, int]] = []
        parts: list[torch.Tensor] = []
        for shard in range(*self._run):
            total = torch.zeros(size, dtype=torch.float64)
            if shard in outcomes and floats:
                values = [outcomes[shard].values.get(index, self._value(index)) for index in floats]
                total = torch.cat([value.reshape(-1).to("cpu", torch.float64) for value in values])
                total *= outcomes[shard].weight
            for _ in range(absorb(nodes, (shard, shard + 1), self._shards)):
                total = torch.add(parts.pop(), total)
            parts.append(total)
        return parts

    def _value(self, index: int) -> torch.Tensor:
        base = self._base[index]
        assert base is not None
        return base

    def _replace(self, index: int, values: torch.Tensor) -> None:
        tensor = self._buffers.places[index].tensor
        assert tensor is not None
        tensor.copy_(values.view(tensor.shape))


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(byte_view(tensor.detach().cpu().contiguous().view(-1))) if tensor.numel() else b""
