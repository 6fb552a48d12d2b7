"""Steps in which every logical shard is computed by itself, so that the world size changes no bit of the outcome."""

from __future__ import annotations

from collections.abc import Sequence

from elastic_train.adapters.framework.torch.buffers import Buffers
from elastic_train.adapters.framework.torch.generators import SavedGenerators, seed_generators
from elastic_train.adapters.framework.torch.gradients import GradientBuckets
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.shard_buffers import ShardBuffers
from elastic_train.adapters.framework.torch.shard_sums import ShardSums
from elastic_train.ports import StepPlan


class ShardedStep:
    """What a step needs beside a usual one: sums, buffers and generators, shard by shard.

    Args:
        gradients: Where the gradients lie.
        buffers: Of all bound modules.
    """

    def __init__(self, gradients: GradientBuckets, buffers: Buffers) -> None:
        self.sums = ShardSums(gradients)
        self._buffers = ShardBuffers(buffers)
        self._plan: StepPlan | None = None
        self._shard = 0
        self._phase = 0
        self._outside: SavedGenerators | None = None

    def begin(self, plan: StepPlan) -> None:
        """Open a step."""
        self._plan = plan
        self._phase = 0
        self._outside = SavedGenerators()

    def begin_phase(self) -> None:
        """Begin to accumulate for a reduction; the gradients are zero."""
        plan = self._open()
        self._buffers.begin(plan.shards, plan.logical_shards)
        self.sums.begin(plan.shards, plan.logical_shards)

    def open_part(self, shard: int, samples: int, seed: int) -> None:
        """Come to the next part, a piece of this shard; with no samples it counts for nothing."""
        self._shard = shard
        self._buffers.open(shard, samples / self._open().global_samples)
        seed_generators(seed)

    def before_backward(self, *, last: bool) -> None:
        """Make ready for the gradient of the part in hand."""
        self.sums.open(self._shard)
        if last:
            self.sums.seal()

    def complete(self) -> list[bool]:
        """Take note that all parts are through; return for each buffer whether one of them changed it."""
        self.sums.seal()
        self._buffers.close()
        return self._buffers.changed()

    def close_phase(self, changed_by_any: Sequence[bool], group: TorchGroup) -> None:
        """Give every member the outcome of all shards, and the same random numbers for what follows.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        if any(changed_by_any):
            self._buffers.fold(changed_by_any, group)
        self._phase += 1
        seed_generators(self._open().seed + self._phase)

    def end(self) -> None:
        """Close the step, committed or not: the generators go on where they were before it."""
        if self._outside is not None:
            self._outside.restore()
        self._outside = self._plan = None

    def _open(self) -> StepPlan:
        assert self._plan is not None
        return self._plan
