"""Reads `ElasticBatches`: which samples a step has is a pure plan, so the position is all there is to agree on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgpack

from elastic_train.core.data import BatchPlan, Share, indices_crc, mix
from elastic_train.core.order import OrderedPlan, describe
from elastic_train.errors import ConfigurationError, UsageError
from elastic_train.ports import HasLoader, Piece
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.prefetch import Prefetcher
from elastic_train.worker.reading import Part
from elastic_train.worker.runtime import Runtime


class BatchReader:
    """Reads `ElasticBatches`."""

    def __init__(self, batches: ElasticBatches, runtime: Runtime, loop: str, *, per_shard: bool) -> None:
        self.plan: BatchPlan = batches.plan(runtime.job.logical_shards, runtime.job.seed)
        self._batches = batches
        self._runtime = runtime
        self._loop = loop
        self._per_shard = per_shard
        self._prefetcher = self._open_prefetcher()
        self._compared: tuple[int, int] | None = None  # membership_epoch and data_epoch whose order all agree on

    @property
    def total_steps(self) -> int:
        """Return the number of steps of all data epochs."""
        return self.plan.total_steps

    def describe(self) -> dict[str, Any]:
        """Return the plan."""
        return {"plan": describe(self.plan)}

    def finished(self) -> bool:
        """Say whether every step is committed."""
        return self._runtime.progress.positions.get(self._loop, 0) >= self.plan.total_steps

    def hand_over(self) -> None:
        """Do nothing: the position is all there is to know."""

    def prepare(self) -> None:
        """Compare the user's order with the others', once for each data epoch in each world."""
        plan, progress = self.plan, self._runtime.progress
        if not isinstance(plan, OrderedPlan):
            return
        data_epoch = progress.positions.get(self._loop, 0) // plan.steps_per_data_epoch
        if self._compared == (self._runtime.membership_epoch, data_epoch):
            return
        crc = plan.order_crc(data_epoch)
        mine = msgpack.packb([self._runtime.context().worker_id, crc])
        crcs: dict[str, int] = dict(msgpack.unpackb(other) for other in self._runtime.group.all_gather_bytes(mine))
        before = progress.data.get(self._loop)  # of the steps committed so far, perhaps by workers that are no more
        if before is not None and before["data_epoch"] == data_epoch:
            crcs["the steps committed before"] = before["order_crc"]
        if len(set(crcs.values())) > 1:
            raise UsageError(_different_orders(plan, data_epoch, crcs))
        self._compared = (self._runtime.membership_epoch, data_epoch)
        self._runtime.journal.record(
            "order_compared",
            membership_epoch=self._runtime.membership_epoch,
            loop=self._loop,
            data_epoch=data_epoch,
            samples=plan.dataset_size,
            order_crc=crc,
        )

    def share(self, step: int) -> Share:
        """Return this worker's run of logical shards of a step."""
        share = self.plan.share(step, self._runtime.rank, self._runtime.world_size)
        if self._prefetcher is not None:
            self._prefetcher.begin(step, share.shards, partial(self._pieces, share.shards))
        return share

    def proof(self, share: Share) -> dict[str, Any]:
        """Return how many samples, and the checksum of their indices."""
        return {"samples": share.samples, "indices_crc": indices_crc(self._batches.indices(self.plan, share))}

    def parts(self, share: Share) -> Iterator[Part]:
        """Yield the share in micro-batches, or a filler where it is empty."""
        if share.samples == 0:
            filler = self.plan.indices(share.data_epoch, share.batch_start, share.batch_start + 1)
            yield Part(share.shards, 0, self._batches.read(filler, self._runtime.framework.collate), last=True)
            return
        indices = self._batches.indices(self.plan, share)
        for shards, start, stop in self._cuts(share):
            if self._prefetcher is not None:
                batch = self._prefetcher.get(self._piece(share, start, stop))
            else:
                self._seed(share.step, shards[0], start)
                part = indices[start - share.start : stop - share.start]
                batch = self._batches.read(part, self._runtime.framework.collate)
            yield Part(shards, stop - start, batch, last=stop == share.stop)

    def _seed(self, step: int, shard: int, start: int) -> None:
        """In a deterministic job: what is random in reading depends on what is read alone."""
        engine = self._runtime.deterministic_engine
        if self._per_shard and engine is not None:
            engine.seed(self._seed_of(step, shard, start))

    def _seed_of(self, step: int, shard: int, start: int) -> int:
        """Return the seed for what is random in reading a shard's samples from a position on."""
        return mix(self._runtime.job.seed, step, shard, start) >> 1

    def announce(self) -> list[float]:
        """Return nothing: the plan says everything."""
        return []

    def committed(self, heard: list[float]) -> None:
        """Note, with the committed step, of which order it was."""
        del heard
        if self._compared is not None and isinstance(self.plan, OrderedPlan):
            data_epoch = self._compared[1]
            note = {"data_epoch": data_epoch, "order_crc": self.plan.order_crc(data_epoch)}
            self._runtime.progress.data[self._loop] = note

    def close(self) -> None:
        """End the reader processes."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _cuts(self, share: Share) -> Iterator[tuple[tuple[int, int], int, int]]:
        """Yield the runs of shards and the half-open range of positions of each micro-batch, none of them empty."""
        runs = self._runs(share) if self._per_shard else [share]
        for run in runs:
            size = self._batches.micro_batch_size or max(1, run.samples)
            for start in range(run.start, run.stop, size):
                yield run.shards, start, min(start + size, run.stop)

    def _runs(self, share: Share) -> list[Share]:
        """Return each logical shard's share by itself."""
        return [self.plan.share_of_shards(share.step, (shard, shard + 1)) for shard in range(*share.shards)]

    # ------------------------------------------------------------------ reading ahead

    def _open_prefetcher(self) -> Prefetcher | None:
        settings, framework = self._batches.loading, self._runtime.framework
        if not settings.num_workers and not settings.pin_memory:
            return None
        if not isinstance(framework, HasLoader):
            raise ConfigurationError(
                "num_workers",
                f"there are no reader processes for {framework.name}",
                "Leave num_workers=0 and pin_memory=False.",
            )
        read = self._batches.read_piece()
        return Prefetcher(self.plan.total_steps, lambda feed: framework.open_loader(read, feed, settings))

    def _pieces(self, shards: tuple[int, int], step: int) -> list[Piece]:
        """Return what is read for a step by whoever has these shards."""
        share = self.plan.share_of_shards(step, shards)
        return [self._piece(share, start, stop) for _, start, stop in self._cuts(share)]

    def _piece(self, share: Share, start: int, stop: int) -> Piece:
        """Return the piece of these positions, each logical shard in it with a seed of its own."""
        indices = self._batches.indices(self.plan, share)
        runs = []
        for run in self._runs(share):
            first, end = max(start, run.start), min(stop, run.stop)
            if first < end:
                seed = self._seed_of(share.step, run.shards[0], first)
                runs.append((seed, indices[first - share.start : end - share.start].tolist()))
        return Piece((share.step, start, stop), tuple(runs))


def _different_orders(plan: OrderedPlan, data_epoch: int, crcs: dict[str, int]) -> str:
    name = plan.order.name if plan.order is not None else ""
    told = ", ".join(f"{crc:08x} on {who}" for who, crc in crcs.items())
    return (
        f"the order {name} is not the same everywhere for data epoch {data_epoch} (checksums: {told}). Make it a pure "
        "function of (data_epoch, seed): no global generator, no set or dict whose order may vary, the same data"
    )
