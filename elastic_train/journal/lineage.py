"""The proof, from a journal alone, that every sample was used exactly once along the surviving lineage.

A worker journals what it reads before it computes, and each commit after it. The lineage is the sequence of
transactions (steps and evaluations, numbered by `version`) that the final state is made of: of a version that several
membership epochs committed, the newest one's commit is in it; what an older one had committed from where a newer one
began is not. For each step in it, what its world's members read must be the plan's global batch, each logical shard
once (invariant I1); versions and steps must follow each other without a gap, and no worker may have gone back (I2);
worlds and fences must be one for each membership epoch, and rise (I3).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from elastic_train.core.data import indices_crc
from elastic_train.core.order import OrderedPlan
from elastic_train.core.streams import StreamPlan
from elastic_train.journal.data_proofs import Plan, check_order, check_streams
from elastic_train.journal.reader import Record

_NOTHING: Mapping[str, int] = MappingProxyType({})
_COMMITS = ("step_committed", "evaluation_committed")


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation, with the records that show it."""

    rule: str
    message: str
    records: tuple[Record, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.rule}: {self.message}", *map(str, self.records)])


@dataclass(frozen=True, slots=True)
class Committed:
    """One version of the lineage: the commits of one transaction, by the members of one world that recorded it."""

    version: int
    membership_epoch: int
    records: tuple[Record, ...]

    @property
    def transaction(self) -> tuple[str, Any]:
        """Return what was committed: (loop, step), or (evaluation's name, None)."""
        return _transaction(self.records[0])


def lineage(records: Iterable[Record]) -> list[Committed]:
    """Return the surviving lineage, by version."""
    worlds: dict[int, dict[int, list[Record]]] = defaultdict(lambda: defaultdict(list))
    begins: dict[int, float] = defaultdict(lambda: math.inf)  # the first version a world committed or began to compute
    for record in records:
        if record.kind in _COMMITS:
            worlds[record["membership_epoch"]][record["version"]].append(record)
        elif record.kind != "step_read":
            continue
        under_way = record["version"] + (record.kind == "step_read")
        begins[record["membership_epoch"]] = min(begins[record["membership_epoch"]], under_way)
    kept: list[Committed] = []
    superseded_from = math.inf
    for number in sorted(begins, reverse=True):
        versions = worlds[number]
        kept += [Committed(v, number, tuple(versions[v])) for v in versions if v < superseded_from]
        superseded_from = min(superseded_from, begins[number])
    return sorted(kept, key=lambda committed: committed.version)


def check_lineage(
    records: Iterable[Record],
    plans: Mapping[str, Plan],
    *,
    resumed_at: int = 0,
    first_steps: Mapping[str, int] = _NOTHING,
    complete: bool = True,
) -> list[Finding]:
    """Return every violation of exactly-once that the journal of one run shows; an empty list means that it holds.

    Args:
        records: Of all participants, in the order of time.
        plans: The plan of each loop, by its name.
        resumed_at: The version of the checkpoint that the run went on from, 0 if it began afresh.
        first_steps: The step at which each loop stood in that checkpoint. A loop that is not listed must begin at step
            0 or, in a run that went on from a checkpoint, may begin anywhere.
        complete: Whether every loop must have run to its end.
    """
    records = list(records)
    worlds = _Worlds(records)
    kept = lineage(records)
    findings = [*worlds.findings(), *_check_no_worker_went_back(records)]
    findings += _check_versions(kept, resumed_at)
    anywhere = resumed_at > 0
    findings += _check_sequence(kept, plans, first_steps, anywhere=anywhere, complete=complete)
    reads = _reads(records)
    findings += _check_data(kept, plans, reads, records, complete=complete)
    for committed in kept:
        findings += _check_agreement(committed)
        findings += _check_committers(committed, worlds)
        loop, step = committed.transaction
        if step is not None and loop in plans:
            key = (committed.membership_epoch, loop, step)
            findings += _StepCheck(committed, reads[key], worlds, plans[loop]).findings()
    return findings


def _transaction(commit: Record) -> tuple[str, Any]:
    return (commit["loop"], commit["step"]) if commit.kind == "step_committed" else (commit["name"], None)


def _reads(records: Iterable[Record]) -> Mapping[tuple[int, str, int], dict[str, Record]]:
    """Return what each member read last for each step of each world."""
    reads: dict[tuple[int, str, int], dict[str, Record]] = defaultdict(dict)
    for record in records:
        if record.kind == "step_read":
            reads[record["membership_epoch"], record["loop"], record["step"]][record.source] = record
    return reads


class _Worlds:
    """The worlds that were formed, as their members and the controller tell."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._formed: dict[int, list[Record]] = defaultdict(list)
        self._sealed: dict[int, list[Record]] = defaultdict(list)
        for record in records:
            if record.kind == "group_formed":
                self._formed[record["membership_epoch"]].append(record)
            elif record.kind == "world_sealed":
                self._sealed[record["membership_epoch"]].append(record)

    def members(self, membership_epoch: int) -> dict[int, str]:
        """Return who had which rank, as far as they lived to tell."""
        return {record["rank"]: record.source for record in self._formed[membership_epoch]}

    def world_size(self, membership_epoch: int) -> int:
        """Return the number of members, 0 if none told."""
        return max((record["world_size"] for record in self._formed[membership_epoch]), default=0)

    def findings(self) -> Iterator[Finding]:
        fences: dict[int, Record] = {}
        for number in sorted({*self._formed, *self._sealed}):
            formed, sealed = self._formed[number], self._sealed[number]
            yield from self._check_one_world(number, formed, sealed)
            if formed or sealed:
                fences[number] = (sealed or formed)[0]
        for (older, before), (newer, after) in pairwise(fences.items()):
            if before["fence"] >= after["fence"]:
                message = f"the fence of membership epoch {newer} is not above that of {older}"
                yield Finding("fences rise", message, (before, after))

    def _check_one_world(self, number: int, formed: list[Record], sealed: list[Record]) -> Iterator[Finding]:
        rule = "one world per membership epoch"
        if len({record["fence"] for record in (*formed, *sealed)}) > 1:
            yield Finding(rule, f"membership epoch {number} has several fences", (*sealed, *formed))
        if len({record["world_size"] for record in formed}) > 1:
            yield Finding(rule, f"membership epoch {number} has several sizes", tuple(formed))
        ranks = [record["rank"] for record in formed]
        sources = [record.source for record in formed]
        if len(set(ranks)) < len(ranks) or len(set(sources)) < len(sources):
            yield Finding(rule, f"a rank or a worker stands twice in membership epoch {number}", tuple(formed))
        for seal in sealed:
            roster = dict(enumerate(seal["members"]))
            strays = [record for record in formed if roster.get(record["rank"]) != record.source]
            if strays:
                yield Finding(rule, f"not as the roster of membership epoch {number} says", (seal, *strays))


def _check_no_worker_went_back(records: Iterable[Record]) -> Iterator[Finding]:
    last: dict[str, Record] = {}
    for record in records:
        if record.kind not in _COMMITS:
            continue
        before = last.get(record.source)
        if before is not None and record["version"] <= before["version"]:
            message = f"{record.source} committed version {record['version']} after version {before['version']}"
            yield Finding("no committed step is lost while a survivor lives", message, (before, record))
        last[record.source] = record


def _check_versions(kept: list[Committed], resumed_at: int) -> Iterator[Finding]:
    previous = resumed_at
    for committed in kept:
        if committed.version != previous + 1:
            message = f"version {committed.version} follows version {previous}"
            yield Finding("no transaction is missing", message, committed.records)
        previous = committed.version


def _check_sequence(
    kept: list[Committed],
    plans: Mapping[str, Plan],
    first_steps: Mapping[str, int],
    *,
    anywhere: bool,
    complete: bool,
) -> Iterator[Finding]:
    """Check that each loop's steps follow each other, from its first to its last."""
    rule = "steps follow each other"
    expected: dict[str, int] = {}
    for committed in kept:
        loop, step = committed.transaction
        if step is None:
            continue
        if loop not in plans:
            yield Finding(rule, f"there is no plan for the loop {loop!r}", committed.records[:1])
            continue
        first = first_steps.get(loop, step if anywhere else 0)
        if step != expected.setdefault(loop, first):
            yield Finding(rule, f"step {step} of {loop!r} stands where {expected[loop]} should", committed.records)
        expected[loop] = step + 1
    for loop, plan in plans.items():
        if isinstance(plan, StreamPlan):
            continue  # only the streams' ends tell how many steps there are
        reached = expected.get(loop, first_steps.get(loop, 0))
        if reached > plan.total_steps or (complete and reached < plan.total_steps):
            yield Finding(rule, f"{loop!r} ended before step {reached} of {plan.total_steps}")


def _check_data(
    kept: list[Committed],
    plans: Mapping[str, Plan],
    reads: Mapping[tuple[int, str, int], dict[str, Record]],
    records: list[Record],
    *,
    complete: bool,
) -> Iterator[Finding]:
    """Check data epochs as a whole, where no plan says which samples a step has."""
    for loop, plan in plans.items():
        steps = {
            committed.transaction[1]: list(reads[committed.membership_epoch, loop, committed.transaction[1]].values())
            for committed in kept
            if committed.transaction[0] == loop and committed.transaction[1] is not None
        }
        violations: Iterable[tuple[str, tuple[Record, ...]]] = ()
        if isinstance(plan, StreamPlan):
            violations = check_streams(plan, loop, steps, records, complete=complete)
        elif isinstance(plan, OrderedPlan):
            violations = check_order(plan, loop, steps, records)
        for message, shown in violations:
            yield Finding("each sample exactly once", f"{loop!r}: {message}", shown)


def _check_agreement(committed: Committed) -> Iterator[Finding]:
    first = committed.records[0]
    shared = ("loop", "step", "global_samples") if first.kind == "step_committed" else ("name", "samples", "metrics")
    for other in committed.records[1:]:
        if other.kind != first.kind or any(other[name] != first[name] for name in shared):
            message = f"members disagree on version {committed.version}"
            yield Finding("a version is one transaction", message, (first, other))


def _check_committers(committed: Committed, worlds: _Worlds) -> Iterator[Finding]:
    members = set(worlds.members(committed.membership_epoch).values())
    for record in committed.records:
        if record.source not in members:
            message = f"{record.source} is no member of membership epoch {committed.membership_epoch}"
            yield Finding("members commit", message, (record,))


@dataclass(frozen=True, slots=True)
class _StepCheck:
    """One step of the lineage against the plan."""

    committed: Committed
    reads: Mapping[str, Record]
    worlds: _Worlds
    plan: Plan

    def findings(self) -> Iterator[Finding]:
        yield from self._check_everybody_read()
        yield from self._check_shards()
        for read in self.reads.values():
            yield from self._check_read(read)
        yield from self._check_samples()

    def _finding(self, message: str, *records: Record) -> Finding:
        loop, step = self.committed.transaction
        where = f"step {step} of {loop!r} in membership epoch {self.committed.membership_epoch}"
        return Finding("each sample exactly once", f"{where}: {message}", records)

    def _check_everybody_read(self) -> Iterator[Finding]:
        members = self.worlds.members(self.committed.membership_epoch)
        for rank in range(self.worlds.world_size(self.committed.membership_epoch)):
            if members.get(rank) not in self.reads:
                yield self._finding(
                    f"rank {rank} ({members.get(rank, 'unknown')}) read nothing", *self.committed.records
                )
        for source in self.reads.keys() - members.values():
            yield self._finding(f"{source} read, but is no member", self.reads[source])

    def _check_shards(self) -> Iterator[Finding]:
        reached = 0
        for read in sorted(self.reads.values(), key=lambda read: tuple(read["shards"])):
            first, stop = read["shards"]
            if first != reached or stop < first:
                how = "twice" if first < reached else "by nobody"
                yield self._finding(f"shards [{min(first, reached)}, {max(first, reached)}) were read {how}", read)
            reached = stop
        if reached != self.plan.logical_shards:
            message = f"the shards read end at {reached}, not at {self.plan.logical_shards}"
            yield self._finding(message, *self.reads.values())

    def _check_read(self, read: Record) -> Iterator[Finding]:
        first, stop = read["shards"]
        if not 0 <= first <= stop <= self.plan.logical_shards:
            return  # told of already
        for name, planned in {"version": self.committed.version - 1, **self._planned(read)}.items():
            if read[name] != planned:
                yield self._finding(f"{name} is {read[name]}, the plan says {planned}", read)

    def _planned(self, read: Record) -> dict[str, int]:
        """Return what the plan alone says of a read."""
        if isinstance(self.plan, StreamPlan):
            return {"samples": sum(count for _, _, count, _ in read["runs"])}
        first, stop = read["shards"]
        share = self.plan.share_of_shards(read["step"], (first, stop))
        planned = {"data_epoch": share.data_epoch, "samples": share.samples}
        if not (isinstance(self.plan, OrderedPlan) and self.plan.order is None):
            planned["indices_crc"] = indices_crc(self.plan.indices(share.data_epoch, share.start, share.stop))
        return planned

    def _check_samples(self) -> Iterator[Finding]:
        if isinstance(self.plan, StreamPlan):
            planned = sum(read["samples"] for read in self.reads.values())
        else:
            planned = self.plan.share_of_shards(self.committed.transaction[1], (0, 0)).global_samples
        for record in self.committed.records:
            read = self.reads.get(record.source)
            if record["global_samples"] != planned:
                yield self._finding(f"global_samples is {record['global_samples']}, the plan says {planned}", record)
            if read is not None and read["samples"] != record["samples"]:
                yield self._finding("more or fewer samples committed than read", read, record)
