"""The gradients of a worker's logical shards, each computed by itself and summed along the fixed tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elastic_train.adapters.framework.torch.gradients import GradientBuckets
from elastic_train.core.summation import Node, absorb

Flats = Sequence[torch.Tensor]


class ShardSums:
    """Adds up shard after shard like a binary counter: at most one buffer for each power of two, in place.

    The shard in hand is always computed in the gradients' own memory, where `.grad` is. What is finished is added to
    its sibling in the tree or put away. Empty shards (of a short last batch) are zero, which changes no bit: no sum
    here is ever -0, because each begins with +0.
    """

    def __init__(self, gradients: GradientBuckets) -> None:
        self._gradients = gradients
        self._run: tuple[int, int] = (0, 1)
        self.shards = 1
        """How many there are, all members together."""
        self._in_hand: int | None = None  # the shard whose gradient is in the gradients' own memory
        self._next = 0  # first shard that is not accounted for
        self._nodes: list[Node] = []
        self._sums: list[Flats | None] = []  # of each node; None: zero
        self._lefts: list[Flats] | None = None  # what is added to the last shard, nearest first; None: not sealed
        self._spare: list[Flats] = []

    def begin(self, run: tuple[int, int], shards: int) -> None:
        """Begin a reduction of this half-open run of all shards. The gradients must be zero."""
        self._spare += [flats for flats in (*self._sums, *(self._lefts or ())) if flats is not None]
        self._spare = [flats for flats in self._spare if flats is not self._gradients.flats]
        self._run, self.shards = run, shards
        self._in_hand, self._next = None, run[0]
        self._nodes, self._sums, self._lefts = [], [], None

    def open(self, shard: int) -> None:
        """Make the gradients' memory that of this shard; shards come in order."""
        if shard == self._in_hand:
            return
        if self._in_hand is not None:
            self._put_away()
        while self._next < shard:
            self._absorb(self._next, None)
        self._in_hand = shard

    def seal(self) -> None:
        """Take note that no further shard comes: `parts` may be called, when a bucket is complete."""
        if self._lefts is not None:
            return
        if self._in_hand is None:
            self._in_hand = self._run[0]
        self._lefts = []
        own: Flats = self._gradients.flats
        self._absorb_last(self._in_hand, own)
        while self._next < self._run[1]:
            self._absorb_last(self._next, None)

    def parts(self, bucket: int) -> list[torch.Tensor]:
        """Return this worker's sums of the tree's largest nodes in its run, for one bucket. Once for each bucket."""
        assert self._lefts is not None
        mine = self._gradients.flats[bucket]
        for left in self._lefts:
            torch.add(left[bucket], mine, out=mine)
        return [torch.zeros_like(mine) if flats is None else flats[bucket] for flats in self._sums]

    def _put_away(self) -> None:
        assert self._in_hand is not None
        own: Flats = self._gradients.flats
        self._absorb(self._in_hand, own)
        if self._sums[-1] is own:
            copies = self._spare.pop() if self._spare else [torch.empty_like(flat) for flat in own]
            for copy, flat in zip(copies, own, strict=True):
                copy.copy_(flat)
            self._sums[-1] = copies
        for flat in own:
            flat.zero_()

    def _absorb(self, shard: int, total: Flats | None) -> None:
        """Add a finished shard; the sum is then in the memory of what was left of it."""
        for _ in range(absorb(self._nodes, (shard, shard + 1), self.shards)):
            left = self._sums.pop()
            if left is not None and total is not None:
                for mine, other in zip(left, total, strict=True):
                    torch.add(mine, other, out=mine)
                if total is not self._gradients.flats:
                    self._spare.append(total)
            total = total if left is None else left
        self._sums.append(total)
        self._next = shard + 1

    def _absorb_last(self, shard: int, total: Flats | None) -> None:
        """Only note what is to be added to the last shard; that is done bucket by bucket, in `parts`."""
        assert self._lefts is not None
        for _ in range(absorb(self._nodes, (shard, shard + 1), self.shards)):
            left = self._sums.pop()
            if left is not None and total is not None:
                self._lefts.append(left)
            else:
                total = total if left is None else left
        self._sums.append(total)
        self._next = shard + 1
