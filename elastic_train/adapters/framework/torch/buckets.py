"""Which gradients are reduced together: pure arithmetic on sizes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

ALIGNMENT_BYTES = 64  # of each gradient in its bucket: a cache line, and what vector instructions like
FIRST_BUCKET_BYTES = 1 << 20
BUCKET_BYTES = 25 << 20


@dataclass(frozen=True, slots=True)
class GradientSpec:
    """One parameter's gradient. Those of different `kind` (type and device) never share a bucket."""

    elements: int
    element_bytes: int
    kind: Hashable


@dataclass(frozen=True, slots=True)
class Bucket:
    """A run of gradients that lie in one flat tensor."""

    kind: Hashable
    members: tuple[int, ...]  # indices into the specs
    offsets: tuple[int, ...]  # of each member, in elements
    elements: int  # length of the flat tensor


def plan_buckets(
    specs: Sequence[GradientSpec], first_bytes: int = FIRST_BUCKET_BYTES, bucket_bytes: int = BUCKET_BYTES
) -> tuple[Bucket, ...]:
    """Fill buckets in reverse order of registration, which is about the order in which backward produces gradients.

    The first is small, so that its reduction begins early (Li et al.: PyTorch Distributed, VLDB 2020, section 3.2). A
    bucket is closed by the gradient that fills it. Buckets are returned in the order in which their last gradients
    come.
    """
    closed: list[tuple[int, Bucket]] = []
    filling: dict[Hashable, _Filling] = {}
    for position, index in enumerate(reversed(range(len(specs)))):
        spec = specs[index]
        limit = first_bytes if not closed else bucket_bytes
        bucket = filling.setdefault(spec.kind, _Filling(spec.kind))
        bucket.add(index, spec, position)
        if bucket.elements * spec.element_bytes >= limit:
            closed.append(filling.pop(spec.kind).close())
    closed += [bucket.close() for bucket in filling.values()]
    return tuple(bucket for _, bucket in sorted(closed, key=lambda entry: entry[0]))


class _Filling:
    def __init__(self, kind: Hashable) -> None:
        self.elements = 0
        self._kind = kind
        self._members: list[int] = []
        self._offsets: list[int] = []
        self._last_position = 0

    def add(self, index: int, spec: GradientSpec, position: int) -> None:
        step = max(1, ALIGNMENT_BYTES // spec.element_bytes)
        self._members.append(index)
        self._offsets.append(self.elements)
        self.elements += -(-spec.elements // step) * step
        self._last_position = position

    def close(self) -> tuple[int, Bucket]:
        return self._last_position, Bucket(self._kind, tuple(self._members), tuple(self._offsets), self.elements)
