"""Gradients that live in flat buckets, for the whole life of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from elastic_train.adapters.framework.torch.buckets import GradientSpec, plan_buckets
from elastic_train.errors import UsageError

_version = attrgetter("_version")


class GradientBuckets:
    """Flat tensors, and for each parameter a view into one of them that serves as its `.grad`.

    Whether a gradient was written is read from the version counter of its view, which autograd raises at each
    accumulation: no hook and no Python per parameter.

    Args:
        parameters: Distinct, in the same order on every member.
        tail: How many extra numbers travel with the last bucket (see `tail`).
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], tail: int) -> None:
        self.parameters = list(parameters)
        specs = [GradientSpec(p.numel(), p.element_size(), (p.dtype, p.device)) for p in self.parameters]
        plan = plan_buckets(specs)
        with_tail = bool(plan) and _can_carry_numbers(plan[-1].kind)
        self.flats: list[torch.Tensor] = []
        self.members: list[tuple[int, ...]] = []
        views: list[torch.Tensor | None] = [None] * len(self.parameters)
        for number, bucket in enumerate(plan):
            extra = tail if with_tail and number == len(plan) - 1 else 0
            first = self.parameters[bucket.members[0]]
            flat = torch.zeros(bucket.elements + extra, dtype=first.dtype, device=first.device)
            for index, offset in zip(bucket.members, bucket.offsets, strict=True):
                views[index] = _view(flat, offset, self.parameters[index])
            self.flats.append(flat)
            self.members.append(bucket.members)
        if not with_tail:
            self.flats.append(torch.zeros(tail))
            self.members.append(())
        self.tail = self.flats[-1][self.flats[-1].numel() - tail :]
        """Extra numbers, summed with the last bucket."""
        self.views: list[torch.Tensor] = [view for view in views if view is not None]
        self._base = [0] * len(self.views)
        self._seen = [0] * len(self.views)

    def zero(self) -> None:
        """Begin to accumulate anew."""
        for flat in self.flats:
            flat.zero_()
        self._base = self.versions()
        self._seen = self._base

    def versions(self) -> list[int]:
        """Return a number for each gradient that rises with every write to it."""
        return list(map(_version, self.views))

    def install(self, *, first: bool) -> None:
        """Make every parameter's `.grad` its view again, before a backward pass.

        `optimizer.zero_grad()` in the user's loop takes them away; what was accumulated is kept, because where a
        share of the global batch is cut into parts is no concern of the user's.

        Raises:
            UsageError: Gradients of earlier parts of the step were changed in place.
        """
        written = self.versions() != self._seen
        if written and first:
            self.zero()  # what was written before the first part was no gradient of this step
        elif written:
            raise UsageError(
                "gradients were changed between two parts of one step (by optimizer.zero_grad(set_to_none=False), "
                "by clipping, or by loss.backward() instead of step.backward(loss)). "
                "Do that after the loop over the step's parts."
            )
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is not view:
                parameter.grad = view

    def accumulated(self) -> None:
        """Remember the state after a backward pass."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is not view and parameter.grad is not None:  # autograd made a new one (create_graph)
                view.copy_(parameter.grad.detach())
                parameter.grad = view
        self._seen = self.versions()

    def touched(self) -> list[bool]:
        """Return for each parameter whether a gradient was accumulated since the step began."""
        return [now != before for now, before in zip(self.versions(), self._base, strict=True)]

    def show(self, touched_by_any: Sequence[Any]) -> None:
        """Give every parameter that some worker touched its gradient, and the others None, as plain torch does."""
        for parameter, view, touched in zip(self.parameters, self.views, touched_by_any, strict=True):
            if not touched:
                parameter.grad = None
            elif parameter.grad is not view:
                parameter.grad = view


def _can_carry_numbers(kind: object) -> bool:
    return kind in [(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.float64)]


def _view(flat: torch.Tensor, offset: int, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the bucket's memory in the parameter's shape and strides, with a version counter of its own."""
    memory = flat.data[offset : offset + parameter.numel()]
    if parameter.is_contiguous():
        return memory.view(parameter.shape).data
    return torch.as_strided(memory, parameter.shape, parameter.stride(), memory.storage_offset()).data
