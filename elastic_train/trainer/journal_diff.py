"""Compare two runs by their journals: from which step on, and in which tensors, their states differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elastic_train.core.agreement import differences
from elastic_train.journal import Record

Place = tuple[str, int]
"""Name of a loop, and a committed step in it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What two runs differ in.

    Attributes:
        compared: How many digests both journals have, up to the first that differs.
        last_same: The last step after which the states were the same; None: none was compared before.
        first_different: The first after which they differ; None: no digest differs.
        tensors: Whose digests differ there.
    """

    compared: int
    last_same: Place | None
    first_different: Place | None
    tensors: tuple[str, ...]


def state_digests(records: Sequence[Record]) -> dict[Place, Mapping[str, str]]:
    """Return the digests of a run's tensors by place; of a step that was run again, those that lasted."""
    newest: dict[Place, tuple[int, Mapping[str, str]]] = {}
    dropped = {
        (record["membership_epoch"], record["version"], worker)
        for record in records
        if record.kind == "state_diverged"
        for worker in record["workers"]
    }
    for record in records:
        if record.kind != "state_digest":
            continue
        membership_epoch = record["membership_epoch"]
        if (membership_epoch, record["version"], record.source) in dropped:
            continue
        place = record["loop"], record["step"]
        if place not in newest or newest[place][0] <= membership_epoch:
            newest[place] = membership_epoch, record["tensors"]
    return {place: tensors for place, (_, tensors) in newest.items()}


def compare(one: Sequence[Record], other: Sequence[Record]) -> Difference:
    """Compare the states that two runs had after the same steps."""
    first, second = state_digests(one), state_digests(other)
    common = sorted(first.keys() & second.keys())
    last_same = None
    for count, place in enumerate(common, start=1):
        tensors = differences(first[place], second[place])
        if tensors:
            return Difference(count, last_same, place, tuple(tensors))
        last_same = place
    return Difference(len(common), last_same, None, ())
