"""Sum gradients over the world, beginning while backward still runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from elastic_train.adapters.framework.torch.gradients import GradientBuckets
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.shard_sums import ShardSums

_NEVER = -1


class GradientReducer:
    """Reduces buckets in index order; the last one only in `finish`, when the numbers that ride on it are known.

    A bucket may be reduced early when its last gradient has come. Which one that is, is learned in the first step of
    a world, in which every parameter has a hook; from then on only one parameter a bucket has. When it fires, the
    version counters prove that all others of the bucket were written too; if not, the bucket waits for `finish`. The
    timing of one member is nothing to the others: all reduce the same buckets in the same order.

    A gradient written after its bucket was reduced (a program that made one backward pass a part now makes two) is
    found in `finish`, see `misjudged`.
    """

    def __init__(self, gradients: GradientBuckets) -> None:
        self._gradients = gradients
        self.shard_sums: ShardSums | None = None
        """Where logical shards are kept apart: what is to be summed, along their tree."""
        self._early = len(gradients.flats) - 1  # buckets that could be reduced before `finish`
        self._group: TorchGroup | None = None
        self._hooks: list[Any] = []
        self._fired: list[int] = []
        self._learning = False
        self._armed = False
        self._passes = 0
        self._before: list[int] = []  # versions when backward began
        self._ready: set[int] = set()
        self._launched: list[int] = []  # sums of versions, by bucket, when its reduction began
        self.overlap = True
        """False once this program was seen to write gradients more than once in the last part of a step."""

    def attach(self, group: TorchGroup | None) -> None:
        """Use this group from now on, and learn again when buckets are complete."""
        self._group = group
        self._remove_hooks()
        self._learning = self.overlap and self._early > 0 and group is not None and group.world_size > 1
        if self._learning:
            for index in range(len(self._gradients.parameters)):
                self._hook(index, partial(self._note_fired, index))

    def detach(self) -> None:
        """Take all hooks off the parameters."""
        self._remove_hooks()
        self._group = None

    def begin(self) -> None:
        """Begin to accumulate for another reduction."""
        self._passes = 0
        self._fired.clear()
        self._ready.clear()
        self._launched.clear()

    def arm(self) -> None:
        """Expect the next backward pass to be the last before `finish`, as far as is known."""
        self._passes += 1
        if self._passes == 1:
            self._fired.clear()
            self._before = self._gradients.versions()
            self._armed = True

    def disarm(self) -> None:
        """Take note that the backward pass is over."""
        self._armed = False

    @property
    def misjudged(self) -> bool:
        """Return whether a gradient was written after the reduction of its bucket had begun: the sum is then void."""
        if not self._launched:
            return False
        now = self._gradients.versions()
        return any(
            total != sum(now[index] for index in self._gradients.members[bucket])
            for bucket, total in enumerate(self._launched)
        )

    def finish(self) -> None:
        """Reduce what is left and wait for all.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        group = self._group
        assert group is not None
        self._learn()
        for bucket in range(len(self._launched), len(self._gradients.flats)):
            self._reduce(group, bucket)
        group.wait()
        self._launched.clear()

    def _learn(self) -> None:
        """Replace the hook on every parameter by one on the last of each bucket."""
        if not self._learning or not self._passes:
            return
        self._learning = False
        self._remove_hooks()
        if self._passes > 1 or len(set(self._fired)) < len(self._fired):
            self.overlap = False
            return
        order = {index: position for position, index in enumerate(self._fired)}
        for bucket, members in enumerate(self._gradients.members[: self._early]):
            last = max(members, key=lambda index: order.get(index, _NEVER))
            if all(index in order for index in members):
                self._hook(last, partial(self._on_complete, bucket))

    def _note_fired(self, index: int, _: torch.Tensor) -> None:
        self._fired.append(index)

    def _on_complete(self, bucket: int, _: torch.Tensor) -> None:
        if not self._armed or self._group is None:
            return
        now = self._gradients.versions()
        if any(now[index] == self._before[index] for index in self._gradients.members[bucket]):
            return  # the order has changed: it waits for `finish`
        self._ready.add(bucket)
        while (following := len(self._launched)) in self._ready:
            self._launched.append(sum(now[index] for index in self._gradients.members[following]))
            self._start_reducing(self._group, following)

    def _reduce(self, group: TorchGroup, bucket: int) -> None:
        flat, sums = self._gradients.flats[bucket], self.shard_sums
        if sums is None:
            group.all_reduce(flat)
        else:
            group.ordered_sum(partial(sums.parts, bucket), flat, sums.shards)

    def _start_reducing(self, group: TorchGroup, bucket: int) -> None:
        flat, sums = self._gradients.flats[bucket], self.shard_sums
        if sums is None:
            group.start_all_reduce(flat)
        else:
            group.start_ordered_sum(partial(sums.parts, bucket), flat, sums.shards)

    def _hook(self, index: int, function: Callable[[torch.Tensor], None]) -> None:
        self._hooks.append(self._gradients.parameters[index].register_post_accumulate_grad_hook(function))

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
