"""Evaluation: a validation pass divided among all workers, every sample counted once whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from elastic_train.core.data import BatchPlan, split
from elastic_train.core.records import Activity
from elastic_train.errors import GroupBroken, UsageError
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.metrics import as_float
from elastic_train.worker.replica import Transaction
from elastic_train.worker.runtime import Runtime

EvaluateBatch = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Report:
    """What one member tells the others at the beginning of a round."""

    name: str  # of the evaluation; empty from a member that only attends
    units: int  # how many there are
    done: dict[int, tuple[int, dict[str, float]]]  # unit -> samples, mean of each metric over them

    def pack(self) -> bytes:
        data: bytes = msgpack.packb([self.name, self.units, [[unit, *result] for unit, result in self.done.items()]])
        return data

    @classmethod
    def unpack(cls, data: bytes) -> _Report:
        name, units, done = msgpack.unpackb(data)
        return cls(name, units, {unit: (samples, means) for unit, samples, means in done})


class Evaluation:
    """One evaluation, as a transaction.

    The data is cut into units, a logical shard of a global batch each. In rounds, the members tell each other which
    units they have results of and divide the missing ones, until none is missing: when a member is lost only its units
    are computed again. Results are summed in unit order, so they are the same bits at every world size.

    Args:
        runtime: This worker's.
        name: Where in the program it stands; the same in all members.
        batches: What to evaluate on; None for a member that only attends.
        evaluate_batch: Called as ``evaluate_batch(*batch)``; returns means over the batch.
    """

    def __init__(
        self,
        runtime: Runtime,
        name: str = "",
        batches: ElasticBatches | None = None,
        evaluate_batch: EvaluateBatch | None = None,
    ) -> None:
        self._runtime = runtime
        self._name = name
        self._batches = batches
        self._evaluate_batch = evaluate_batch
        self._shards = runtime.job.logical_shards
        self._plan: BatchPlan | None = batches.plan(self._shards, runtime.job.seed) if batches is not None else None
        self._units = self._plan.steps_per_data_epoch * self._shards if self._plan is not None else 0
        self._done: dict[int, tuple[int, dict[str, float]]] = {}

    @classmethod
    def attend(cls, runtime: Runtime) -> None:
        """Take part in an evaluation this worker has no data for: it joined while the others were about to run it."""
        attendance = cls(runtime)
        finished = False
        while not finished:
            try:
                finished = attendance._round()
            except GroupBroken as error:
                runtime.recover(error)
                return  # what the others are at now is asked again

    def run(self) -> dict[str, float]:
        """Run to the end and commit; return the means over all samples."""
        results = self._runtime.progress.evaluations
        while self._name not in results:
            if not self._runtime.enter(Transaction.EVALUATION):
                raise AssertionError("an evaluation is never attended by one who runs it")
            try:
                while not self._round():
                    pass
            except GroupBroken as error:
                self._runtime.recover(error)
                results = self._runtime.progress.evaluations  # somebody may have finished it
        return results[self._name]

    def _round(self) -> bool:
        """Exchange results and compute missing ones; True when all were there and the evaluation is committed."""
        runtime = self._runtime
        runtime.agent.progress.now(Activity.WAITING)
        gathered = runtime.group.all_gather_bytes(_Report(self._name, self._units, self._done).pack())
        runtime.agent.progress.now(Activity.COMPUTING)
        reports = [_Report.unpack(report) for report in gathered]
        active = [rank for rank, report in enumerate(reports) if report.name]
        done: dict[int, tuple[int, dict[str, float]]] = {}
        for report in reports:
            done = report.done | done  # of a unit computed twice, the lowest rank's result counts
        missing = sorted(set(range(max(report.units for report in reports))) - done.keys())
        if not missing:
            self._commit(reports[active[0]].name, done)
            return True
        if runtime.rank in active:
            first, stop = split(len(missing), len(active), active.index(runtime.rank))
            self._compute(missing[first:stop])
        return False

    def _compute(self, units: list[int]) -> None:
        if self._plan is None or self._batches is None or self._evaluate_batch is None:
            raise AssertionError("a member that only attends has nothing to compute")
        runtime = self._runtime
        runtime.journal.record(
            "evaluation_read", membership_epoch=runtime.membership_epoch, name=self._name, units=units
        )
        with runtime.engine.evaluation():
            for unit in units:
                if runtime.agent.interrupted:
                    raise GroupBroken("the world has changed")
                shard = unit % self._shards
                share = self._plan.share_of_shards(unit // self._shards, (shard, shard + 1))
                if not share.samples:
                    self._done[unit] = (0, {})
                    continue
                indices = self._batches.indices(self._plan, share)
                batch = self._batches.read(indices, runtime.framework.collate)
                means = self._evaluate_batch(*batch) if isinstance(batch, tuple | list) else self._evaluate_batch(batch)
                self._done[unit] = (share.samples, _plain(means))

    def _commit(self, name: str, done: dict[int, tuple[int, dict[str, float]]]) -> None:
        runtime = self._runtime
        sums: dict[str, tuple[float, int]] = {}
        for unit in sorted(done):
            samples, means = done[unit]
            for metric, mean in means.items():
                total, weight = sums.get(metric, (0.0, 0))
                sums[metric] = (total + mean * samples, weight + samples)
        metrics = {metric: total / weight for metric, (total, weight) in sums.items()}
        runtime.commit()
        runtime.progress.evaluations[name] = metrics
        runtime.journal.record(
            "evaluation_committed",
            membership_epoch=runtime.membership_epoch,
            name=name,
            version=runtime.progress.version,
            samples=sum(samples for samples, _ in done.values()),
            metrics=metrics,
        )


def _plain(means: Any) -> dict[str, float]:
    if not isinstance(means, Mapping):
        raise UsageError(
            f"the function given to evaluate must return a dict of metric means, not {type(means).__name__}: "
            'for example {"loss": F.cross_entropy(model(inputs), targets)}'
        )
    return {name: as_float(name, value) for name, value in means.items()}
