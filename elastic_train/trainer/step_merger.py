"""Put the parts of a step together again: every member of a world writes its own commit into its own journal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from elastic_train.trainer.observations import StepSeen

_REMEMBERED = 1000  # steps back: no part comes later than that


@dataclass(frozen=True, slots=True)
class StepPart:
    """One member's commit of one step.

    Attributes:
        version: Transactions in the state after it; the same for all members, and what orders steps across loops.
        samples, global_samples: In this member's share, and in the global batch.
        metrics: For each metric its sum weighted by samples, and the weight.
        named: In deterministic mode: which metric is which of the losses that `Measured` has no name for, and what was
            reported for the whole share.
    """

    at: float
    step: int
    version: int
    membership_epoch: int
    samples: int
    global_samples: int
    metrics: Mapping[str, tuple[float, float]]
    named: Mapping[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One member's measurements in a step, shard by shard: written before any member could commit it.

    Attributes:
        version: As of `StepPart`, if it is committed.
        metrics, losses: By name or number, [shard, sum weighted by samples, weight] of each logical shard.
    """

    version: int
    membership_epoch: int
    metrics: Mapping[str, Sequence[Sequence[float]]]
    losses: Mapping[str, Sequence[Sequence[float]]]


@dataclass(slots=True)
class _Pending:
    first: StepPart
    at: float
    samples: int = 0
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    whole: dict[str, set[float]] = field(default_factory=dict)  # what members reported for their whole shares

    def add(self, part: StepPart) -> None:
        self.at = max(self.at, part.at)
        self.samples += part.samples
        for name, (total, weight) in part.metrics.items():
            known_total, known_weight = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (known_total + total, known_weight + weight)
        if part.named is not None:
            for name, value in part.named["whole"].items():
                self.whole.setdefault(name, set()).add(value)

    @property
    def is_whole(self) -> bool:
        return self.samples >= self.first.global_samples

    def merged(self, measured: Sequence[Measured]) -> StepSeen:
        metrics = {name: total / weight for name, (total, weight) in self.sums.items() if weight > 0}
        if self.first.named is not None:
            metrics |= {name: values.copy().pop() for name, values in self.whole.items() if len(values) == 1}
            metrics |= _in_shard_order(measured, self.first.named["losses"])
        return StepSeen(
            at=self.at,
            step=self.first.step,
            version=self.first.version,
            membership_epoch=self.first.membership_epoch,
            samples=self.first.global_samples,
            metrics=metrics,
        )


def _in_shard_order(measured: Sequence[Measured], names: Mapping[str, str]) -> dict[str, float]:
    """Return the means of what was measured, added up in the order of the shards: whoever measured, the same bits."""
    rows: dict[str, list[tuple[float, ...]]] = {}
    for one in measured:
        for name, values in one.metrics.items():
            rows.setdefault(name, []).extend(map(tuple, values))
        for name, key in names.items():
            rows.setdefault(name, []).extend(map(tuple, one.losses.get(key, ())))
    means = {}
    for name, values in rows.items():
        total = weight = 0.0
        for _, part, samples in sorted(values, key=itemgetter(0)):
            total, weight = total + part, weight + samples
        if weight:
            means[name] = total / weight
    return means


class StepMerger:
    """Collects parts until their samples make up the global batch.

    The parts of a member that died between its commit and its record never come. Such a step is known to be committed
    once a later one is; if it was run again in a newer membership epoch instead, it never was.
    """

    def __init__(self) -> None:
        self._pending: dict[tuple[int, int], _Pending] = {}
        self._newest = -1  # version of the newest whole step
        self._measured: dict[tuple[int, int], list[Measured]] = {}
        self._overtaken: set[tuple[int, int]] = set()  # already behind at the last `settle`
        self._told: dict[int, int] = {}  # version -> membership epoch of those told, for late parts

    def measure(self, measured: Measured) -> None:
        """Take in one member's measurements of a step; its part follows if the step is committed."""
        self._measured.setdefault((measured.version, measured.membership_epoch), []).append(measured)

    def add(self, part: StepPart) -> Iterator[StepSeen]:
        """Take in one part; yield the step if it is whole now."""
        key = (part.version, part.membership_epoch)
        if self._told.get(part.version) == part.membership_epoch:
            return
        pending = self._pending.setdefault(key, _Pending(part, part.at))
        pending.add(part)
        if pending.is_whole:
            self._newest = part.version
            yield self._tell(key)

    def settle(self) -> Iterator[StepSeen]:
        """Yield steps whose missing parts do not come: they were overtaken before the last call.

        Call it after all journals have been read once more.
        """
        for key in sorted(self._overtaken & self._pending.keys()):
            yield from self._settle_one(key)
        self._overtaken = {key for key in self._pending if key[0] < self._newest}

    def finish(self) -> Iterator[StepSeen]:
        """Yield what is left when all journals have ended."""
        for key in sorted(self._pending):
            yield from self._settle_one(key)

    def _settle_one(self, key: tuple[int, int]) -> Iterator[StepSeen]:
        version, membership_epoch = key
        newer = max(
            (other for known, other in (*self._pending, *self._told.items()) if known == version),
            default=membership_epoch,
        )
        if newer > membership_epoch:
            del self._pending[key]  # run again: it was never part of the lineage
        else:
            yield self._tell(key)

    def _tell(self, key: tuple[int, int]) -> StepSeen:
        version, membership_epoch = key
        self._told[version] = membership_epoch
        if len(self._told) > 2 * _REMEMBERED:
            self._told = {known: told for known, told in self._told.items() if known >= self._newest - _REMEMBERED}
        measured = self._measured.pop(key, [])
        self._measured = {
            known: rows for known, rows in self._measured.items() if known[0] >= version or known in self._pending
        }
        return self._pending.pop(key).merged(measured)
