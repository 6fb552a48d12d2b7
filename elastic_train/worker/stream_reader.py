"""Reads `ElasticStreams`: the streams of this worker's shards, read one step ahead, their states told to the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

import msgpack

from elastic_train.core.data import Indices, Share, indices_crc, mix, split
from elastic_train.core.streams import Announcement, SavedStream, StreamPlan, StreamPosition
from elastic_train.errors import UsageError
from elastic_train.worker.reading import Part
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.streams import ElasticStreams, ShardStream, ids_of

_COLLATE = 1  # what a seed is for, beside reading


class StreamReader:
    """Reads `ElasticStreams`.

    What all workers know alike - the position, and for each stream the newest state that was exchanged - is part of the
    runtime's progress: it reaches whoever joins, and lies in checkpoints. It changes with a committed step only, but
    for states, of which an older one serves as well.
    """

    def __init__(self, streams: ElasticStreams, runtime: Runtime, loop: str, *, per_shard: bool) -> None:
        self.plan: StreamPlan = streams.plan(runtime.job.logical_shards)
        self._streams = streams
        self._runtime = runtime
        self._loop = loop
        self._per_shard = per_shard
        self._quotas = self.plan.quotas
        self._open: dict[int, ShardStream] = {}
        self._prepared_in = 0  # membership epoch in which the newest states were exchanged
        self._counts: Sequence[int] = self._quotas  # [logical_shards] samples of each stream in the next step
        self._parsed: tuple[Any, StreamPosition] = (None, StreamPosition.start(self.plan))
        self._filler: list[Any] = []  # a sample, once it was needed
        self._ended: set[tuple[int, int]] = set()  # data_epoch and shard of streams whose end was journaled

    @property
    def total_steps(self) -> None:
        """Return None: only the streams' ends will tell."""

    @property
    def position(self) -> StreamPosition:
        """Return the place after the last committed step."""
        known = self._runtime.progress.data.get(self._loop)
        if known is None:
            return StreamPosition.start(self.plan)
        if known is not self._parsed[0]:
            self._parsed = (known, StreamPosition.from_tree(known["position"]))
        return self._parsed[1]

    def describe(self) -> dict[str, Any]:
        """Return the plan."""
        return {"plan": asdict(self.plan)}

    def finished(self) -> bool:
        """Say whether all data epochs are over."""
        return self.position.data_epoch >= self.plan.data_epochs

    def hand_over(self) -> None:
        """Tell the others the states of this worker's streams as they are now."""
        self._exchange_states()

    def prepare(self) -> None:
        """Open the streams of this worker's shards in a new world; agree on how many samples the next step has."""
        runtime = self._runtime
        if self._prepared_in != runtime.membership_epoch:
            self._exchange_states()
            self._prepared_in = runtime.membership_epoch
        elif runtime.progress.positions.get(self._loop, 0) % self._streams.exchange_every == 0:
            self._exchange_states()
        position = self.position
        self._take_place(position)
        self._counts = self._quotas if position.whole else self._exchange_counts(position)

    def share(self, step: int) -> Share:
        """Return the samples of this worker's shards in a step."""
        return self.position.share(step, self._shards(), self._counts)

    def proof(self, share: Share) -> dict[str, Any]:
        """Return how many samples, their numbers' checksum, and of each stream [shard, start, samples, checksum]."""
        used = self.position.used
        ids = {shard: self._ids(shard, used[shard]) for shard in range(*share.shards)}
        together = ids_of([number for shard_ids in ids.values() for number in shard_ids.tolist()])
        runs = [[shard, used[shard], len(numbers), indices_crc(numbers)] for shard, numbers in ids.items()]
        return {"samples": share.samples, "indices_crc": indices_crc(together), "runs": runs}

    def parts(self, share: Share) -> Iterator[Part]:
        """Yield the share in micro-batches, or a filler where it is empty."""
        collate = self._streams.collate or self._runtime.framework.collate
        if share.samples == 0:
            yield Part(share.shards, 0, collate(self._any_sample()), last=True)
            return
        reached = 0
        for shards in [(shard, shard + 1) for shard in range(*share.shards)] if self._per_shard else [share.shards]:
            samples = self._samples(shards)
            size = self._streams.micro_batch_size or max(1, len(samples))
            for start in range(0, len(samples), size):
                self._seed(shards[0], self.position.used[shards[0]] + start, _COLLATE)
                part = samples[start : start + size]
                reached += len(part)
                yield Part(shards, len(part), collate(part), last=reached == share.samples)

    def announce(self) -> list[float]:
        """Read a step ahead; return how many of this worker's streams lack a quota for it, and its samples."""
        used = self.position.used
        counts, quotas = [], []
        for shard in range(*self._shards()):
            quotas.append(self._quotas[shard])
            counts.append(self._available(shard, used[shard] + self._counts[shard]))
        announcement = Announcement.of(counts, quotas)
        return [float(announcement.short), float(announcement.samples)]

    def committed(self, heard: list[float]) -> None:
        """Move on; where a data epoch is over, to the beginning of the next."""
        before = self.position
        position = before.after(self._counts, Announcement(round(heard[0]), round(heard[1])), self.plan)
        states = self._known_states() if position.data_epoch == before.data_epoch else {}
        self._note(position, states)
        if position.data_epoch != before.data_epoch:
            self._let_go(self._open.keys())
            return
        for shard, stream in self._open.items():
            stream.forget(position.used[shard])

    def close(self) -> None:
        """Close all streams."""
        self._let_go(self._open.keys())

    # ------------------------------------------------------------------ what all workers know

    def _known_states(self) -> dict[int, SavedStream]:
        known = self._runtime.progress.data.get(self._loop, {}).get("states", [])
        return {shard: SavedStream(*state) for shard, *state in known}

    def _note(self, position: StreamPosition, states: dict[int, SavedStream]) -> None:
        """Replace what is known; never change it in place: a checkpoint of it may be under way."""
        self._runtime.progress.data[self._loop] = {
            "position": position.as_tree(),
            "states": [[shard, s.data_epoch, s.used, s.state] for shard, s in sorted(states.items())],
        }

    def _exchange_states(self) -> None:
        position = self.position
        mine = []
        for shard, stream in self._open.items():
            saved = stream.saved(position.used[shard]) if stream.data_epoch == position.data_epoch else None
            if saved is not None:
                mine.append([shard, saved.data_epoch, saved.used, saved.state])
        states = self._known_states()
        for theirs in self._runtime.group.all_gather_bytes(msgpack.packb(mine)):
            for shard, *state in msgpack.unpackb(theirs):
                saved = SavedStream(*state)
                if saved.is_newer_than(states.get(shard)):
                    states[shard] = saved
        self._note(position, states)

    def _exchange_counts(self, position: StreamPosition) -> list[int]:
        """Tell each other how many samples the streams have for the next step: one of them is near its end."""
        mine = [[shard, self._available(shard, position.used[shard])] for shard in range(*self._shards())]
        gathered = self._runtime.group.all_gather_bytes(msgpack.packb(mine))
        counts = dict(pair for theirs in gathered for pair in msgpack.unpackb(theirs))
        in_order = [counts[shard] for shard in range(self.plan.logical_shards)]
        if self.plan.is_over(Announcement.of(in_order, self._quotas)):
            raise UsageError(
                f"the streams have too few samples for one step: data epoch {position.data_epoch} would begin with "
                f"{in_order} of {list(self._quotas)} samples of the {self.plan.logical_shards} shards"
            )
        return in_order

    # ------------------------------------------------------------------ this worker's streams

    def _shards(self) -> tuple[int, int]:
        return split(self.plan.logical_shards, self._runtime.world_size, self._runtime.rank)

    def _take_place(self, position: StreamPosition) -> None:
        """Open the streams of the shards that are this worker's now, close the others."""
        mine = range(*self._shards())
        stale = [
            shard
            for shard, stream in self._open.items()
            if shard not in mine or stream.data_epoch != position.data_epoch or stream.first > position.used[shard]
        ]
        self._let_go(stale)
        states = self._known_states()
        for shard in mine:
            stream = self._open.get(shard)
            if stream is not None:
                stream.forget(position.used[shard])
            else:
                self._open[shard] = self._open_stream(shard, position, states.get(shard))

    def _open_stream(self, shard: int, position: StreamPosition, saved: SavedStream | None) -> ShardStream:
        place = (shard, self.plan.logical_shards, position.data_epoch)
        stream = ShardStream(self._streams, place, saved, position.used[shard])
        self._runtime.journal.record(
            "stream_opened",
            membership_epoch=self._runtime.membership_epoch,
            loop=self._loop,
            data_epoch=position.data_epoch,
            shard=shard,
            used=position.used[shard],
            skipped=stream.skipped,
        )
        return stream

    def _available(self, shard: int, start: int) -> int:
        """Read a quota on from a position; return how many samples there are, and journal the end if it was met."""
        stream = self._open[shard]
        self._seed(shard, start)
        available = stream.read_to(start + self._quotas[shard]) - start
        if stream.exhausted and (stream.data_epoch, shard) not in self._ended:
            self._ended.add((stream.data_epoch, shard))
            self._runtime.journal.record(
                "stream_ended",
                membership_epoch=self._runtime.membership_epoch,
                loop=self._loop,
                data_epoch=stream.data_epoch,
                shard=shard,
                samples=stream.position,
            )
        return max(0, available)

    def _seed(self, shard: int, position: int, purpose: int = 0) -> None:
        """In a deterministic job: what is random in reading or collating depends on the place in the stream alone."""
        engine = self._runtime.deterministic_engine
        if self._per_shard and engine is not None:
            engine.seed(mix(self._runtime.job.seed, self.position.data_epoch, shard, position, purpose) >> 1)

    def _require(self, shard: int, start: int) -> int:
        """Read what a step takes of a stream; return where it stops."""
        stop = start + self._counts[shard]
        self._seed(shard, start)
        reached = self._open[shard].read_to(stop)
        if reached < stop:
            raise UsageError(
                f"the stream of shard {shard} ended after {reached} samples, but {stop} were announced: "
                "make_stream(shard, num_shards) must give the same samples in the same order each time"
            )
        return stop

    def _samples(self, shards: tuple[int, int]) -> list[Any]:
        used = self.position.used
        samples = []
        for shard in range(*shards):
            samples += self._open[shard].samples(used[shard], self._require(shard, used[shard]))
        return samples

    def _ids(self, shard: int, start: int) -> Indices:
        return ids_of(self._open[shard].keys(start, self._require(shard, start)))

    def _any_sample(self) -> list[Any]:
        """Return one sample that counts for nothing, for a worker whose streams are exhausted."""
        for shard in range(self.plan.logical_shards):
            if not self._filler:
                self._filler = list(islice(self._streams.make_stream(shard, self.plan.logical_shards), 1))
        return self._filler

    def _let_go(self, shards: Iterable[int]) -> None:
        for shard in list(shards):
            self._open.pop(shard).close()
