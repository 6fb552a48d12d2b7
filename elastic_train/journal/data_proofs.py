"""What a journal shows about data whose order no plan knows: a user's order, and streams.

Of a user's order, each worker journals the checksum of the whole; the checksums of all pieces read along the lineage
must combine to it. Of a stream, each read says from where to where it went; the runs of each stream must follow each
other from its beginning to its end, and whoever reads a run a second time must have got the same samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

from elastic_train.core.crc import crc32_join
from elastic_train.core.data import BatchPlan
from elastic_train.core.order import OrderedPlan
from elastic_train.core.streams import StreamPlan
from elastic_train.journal.reader import Record

Plan: TypeAlias = BatchPlan | StreamPlan
StepReads: TypeAlias = Mapping[int, Sequence[Record]]  # step -> what was read for it along the lineage
Violation: TypeAlias = tuple[str, tuple[Record, ...]]

_INDEX_NBYTES = 8


def plan_of(values: Mapping[str, Any]) -> Plan:
    """Return the plan that a ``loop_started`` record tells of; a user's order itself is not in it."""
    for kind in (StreamPlan, OrderedPlan, BatchPlan):
        names = {field.name for field in fields(kind)}
        if names == values.keys():
            known = {name: value for name, value in values.items() if name != "order"}
            return kind(**known)
    raise ValueError(f"a plan of an unknown kind: {dict(values)}")


def check_order(plan: OrderedPlan, loop: str, reads: StepReads, records: Iterable[Record]) -> Iterator[Violation]:
    """Yield where the pieces read are not the user's order, for each data epoch that the lineage has all steps of."""
    told: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.kind == "order_compared" and record["loop"] == loop:
            told[record["data_epoch"]].append(record)
    for data_epoch in range(plan.data_epochs):
        first = data_epoch * plan.steps_per_data_epoch
        steps = range(first, first + plan.steps_per_data_epoch)
        if not all(step in reads for step in steps):
            continue
        crcs = {record["order_crc"] for record in told[data_epoch]}
        if len(crcs) != 1:
            yield f"data epoch {data_epoch} has {len(crcs)} orders", tuple(told[data_epoch])
            continue
        pieces = [read for step in steps for read in _by_shard(reads[step])]
        crc = crc32_join((piece["indices_crc"], piece["samples"] * _INDEX_NBYTES) for piece in pieces)
        if crc not in crcs:
            yield (
                f"what was read in data epoch {data_epoch} is not the order that was compared",
                tuple(told[data_epoch]),
            )


def check_streams(
    plan: StreamPlan, loop: str, reads: StepReads, records: Sequence[Record], *, complete: bool
) -> Iterator[Violation]:
    """Yield where the runs read of each stream do not follow each other, from its beginning to its end."""
    yield from _check_same_samples(loop, records)
    ends = _Ends(plan, loop, records)
    data_epoch, used = 0, [0] * plan.logical_shards
    for number, step in enumerate(sorted(reads)):
        pieces = _by_shard(reads[step])
        runs = [run for piece in pieces for run in piece["runs"]]
        if [shard for shard, *_ in runs] != list(range(plan.logical_shards)):
            continue  # told of already: shards were read twice, or by nobody
        told = {piece["data_epoch"] for piece in pieces}
        if number == 0 and step > 0:  # the run went on from a checkpoint
            data_epoch, used = min(told), [start for _, start, *_ in runs]
        elif told == {data_epoch + 1}:
            yield from ends.check(data_epoch, used)
            data_epoch, used = data_epoch + 1, [0] * plan.logical_shards
        if told != {data_epoch}:
            yield f"step {step} is of data epoch {sorted(told)}, not of {data_epoch}", tuple(pieces)
        for (shard, start, count, _), quota in zip(runs, plan.quotas, strict=True):
            if start != used[shard] or count > quota:
                message = f"step {step} took {count} of stream {shard} from {start}; it stood at {used[shard]}"
                yield f"{message}, and gives at most {quota}", tuple(pieces)
            used[shard] = start + count
    if complete and reads:
        yield from ends.check(data_epoch, used)
        if data_epoch != plan.data_epochs - 1:
            yield f"{loop!r} ended in data epoch {data_epoch} of {plan.data_epochs}", ()


def _by_shard(pieces: Iterable[Record]) -> list[Record]:
    return sorted(pieces, key=lambda piece: tuple(piece["shards"]))


def _check_same_samples(loop: str, records: Iterable[Record]) -> Iterator[Violation]:
    """Yield runs that were read several times, in aborted steps too, and were not the same each time."""
    seen: dict[tuple[int, int, int, int], tuple[int, Record]] = {}
    for record in records:
        if record.kind != "step_read" or record["loop"] != loop:
            continue
        for shard, start, count, crc in record.get("runs", ()):
            key = (record["data_epoch"], shard, start, count)
            before = seen.setdefault(key, (crc, record))
            if before[0] != crc:
                message = f"stream {shard} gave other samples when [{start}, {start + count}) was read again"
                yield message, (before[1], record)


class _Ends:
    """Where streams ended, as their readers tell."""

    def __init__(self, plan: StreamPlan, loop: str, records: Iterable[Record]) -> None:
        self._plan = plan
        self._told: dict[int, dict[int, Record]] = defaultdict(dict)
        for record in records:
            if record.kind == "stream_ended" and record["loop"] == loop:
                self._told[record["data_epoch"]][record["shard"]] = record

    def check(self, data_epoch: int, used: Sequence[int]) -> Iterator[Violation]:
        told = self._told[data_epoch]
        left = {shard: record["samples"] - used[shard] for shard, record in told.items()}
        if self._plan.ends == "any":
            if not any(0 <= rest < self._plan.quotas[shard] for shard, rest in left.items()):
                yield f"data epoch {data_epoch} was over while every stream had a quota more", tuple(told.values())
            return
        for shard, count in enumerate(used):
            if left.get(shard) != 0:
                there = told[shard]["samples"] if shard in told else "more"
                yield f"data epoch {data_epoch} used {count} samples of stream {shard}, which has {there}", ()
