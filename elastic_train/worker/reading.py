"""Readers: how a loop comes by the data of its steps, whatever it is read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from elastic_train.core.data import BatchPlan, Indices, Share, indices_crc
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Part:
    """What the user's loop gets at a time: a micro-batch.

    Attributes:
        shards: Half-open run of logical shards that its samples are of.
        samples: How many samples count; 0 in a filler, which exists so that the code in the loop runs on every worker.
        data: The batch.
        last: Whether it is this worker's last of the step.
    """

    shards: tuple[int, int]
    samples: int
    data: Any
    last: bool


class Reader(Protocol):
    """Where a loop's data comes from, and how far it has come. Used by the training thread only.

    Between two steps, in this order: `hand_over` where a change was agreed on, `finished`, `prepare`, `share`.
    In a step: `proof`, `parts`, `announce`, and `committed` if it was.
    """

    @property
    def total_steps(self) -> int | None:
        """Return how many steps there are; None where only the end of the data will tell."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the journal must know to prove what was read."""
        ...

    def finished(self) -> bool:
        """Say whether every step is committed."""
        ...

    def hand_over(self) -> None:
        """Tell the others, in the world that will be left after this step as agreed, what they need to go on.

        Raises:
            GroupBroken: A member was lost meanwhile.
        """

    def prepare(self) -> None:
        """Come to an agreement with the other members of this world, where one is needed before the next step.

        Raises:
            GroupBroken: A member was lost meanwhile.
            UsageError: The members' data differ; says how.
        """

    def share(self, step: int) -> Share:
        """Return this worker's part of a step, in its present world."""
        ...

    def proof(self, share: Share) -> dict[str, Any]:
        """Return the fields of the journal record that says what is read for this share."""
        ...

    def parts(self, share: Share) -> Iterator[Part]:
        """Yield the share in micro-batches; where shards are kept apart, no part has samples of two."""
        ...

    def announce(self) -> list[float]:
        """Return what the others must know before the next step; summed over the world with the gradients."""
        ...

    def committed(self, heard: list[float]) -> None:
        """Count a step as done; `heard` is the sum of all members' announcements in it."""

    def close(self) -> None:
        """End what reads ahead; idempotent."""


def open_reader(source: ElasticBatches, runtime: Runtime, loop: str, *, per_shard: bool = False) -> Reader:
    """Return the reader of a loop over this source.

    Args:
        source: What the user gave.
        runtime: This worker's.
        loop: Name of the loop.
        per_shard: Keep logical shards apart: every part has samples of one only.

    Raises:
        ConfigurationError: The source cannot be divided among the job's logical shards.
    """
    return BatchReader(source, runtime, loop, per_shard=per_shard)


class BatchReader:
    """Reads `ElasticBatches`."""

    def __init__(self, batches: ElasticBatches, runtime: Runtime, loop: str, *, per_shard: bool) -> None:
        self.plan: BatchPlan = batches.plan(runtime.job.logical_shards, runtime.job.seed)
        self._batches = batches
        self._runtime = runtime
        self._loop = loop
        self._per_shard = per_shard

    @property
    def total_steps(self) -> int:
        """Return the number of steps of all data epochs."""
        return self.plan.total_steps

    def describe(self) -> dict[str, Any]:
        """Return the plan."""
        return {"plan": asdict(self.plan)}

    def finished(self) -> bool:
        """Say whether every step is committed."""
        return self._runtime.progress.positions.get(self._loop, 0) >= self.plan.total_steps

    def hand_over(self) -> None:
        """Do nothing: the position is all there is to know."""

    def prepare(self) -> None:
        """Do nothing: the plan is the same on every worker."""

    def share(self, step: int) -> Share:
        """Return this worker's run of logical shards of a step."""
        return self.plan.share(step, self._runtime.rank, self._runtime.world_size)

    def proof(self, share: Share) -> dict[str, Any]:
        """Return how many samples, and the checksum of their indices."""
        return {"samples": share.samples, "indices_crc": indices_crc(self._batches.indices(self.plan, share))}

    def parts(self, share: Share) -> Iterator[Part]:
        """Yield the share in micro-batches, or a filler where it is empty."""
        collate = self._runtime.framework.collate
        if share.samples == 0:
            filler = self.plan.indices(share.data_epoch, share.batch_start, share.batch_start + 1)
            yield Part(share.shards, 0, self._batches.read(filler, collate), last=True)
            return
        reached = 0
        for shards, indices in self._cuts(share):
            reached += len(indices)
            yield Part(shards, len(indices), self._batches.read(indices, collate), last=reached == share.samples)

    def announce(self) -> list[float]:
        """Return nothing: the plan says everything."""
        return []

    def committed(self, heard: list[float]) -> None:
        """Do nothing: the position is counted with the step."""

    def close(self) -> None:
        """Do nothing: nothing reads ahead."""

    def _cuts(self, share: Share) -> Iterator[tuple[tuple[int, int], Indices]]:
        """Yield the runs of shards and the indices of each micro-batch, none of them empty."""
        runs = [share]
        if self._per_shard:
            runs = [self.plan.share_of_shards(share.step, (shard, shard + 1)) for shard in range(*share.shards)]
        indices = self._batches.indices(self.plan, share)
        for run in runs:
            size = self._batches.micro_batch_size or max(1, run.samples)
            for start in range(run.start, run.stop, size):
                stop = min(start + size, run.stop)
                yield run.shards, indices[start - share.start : stop - share.start]
