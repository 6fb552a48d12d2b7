"""Streams go where their logical shard goes: no sample is lost or used twice, whoever leaves, dies or joins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from elastic_train.core.records import WorkerStatus
from elastic_train.core.streams import Ends
from elastic_train.worker.streams import ElasticStreams
from tests.unit.worker.churn import Script, Trained, change, findings_of, finish, grow, lose
from tests.unit.worker.harness import Job, Worker, running_job

SHARDS, BATCH = 4, 8
LENGTHS = (23, 17, 26, 20)


class Numbers:
    """The stream of one shard: consecutive numbers, with a state."""

    def __init__(self, shard: int, length: int, stateful: bool) -> None:
        self._range = range(1000 * shard, 1000 * shard + length)
        self._next = 0
        self.reads = 0
        if stateful:
            self.state_dict = lambda: {"next": self._next}
            self.load_state_dict = self._load

    def _load(self, state: dict[str, int]) -> None:
        self._next = state["next"]

    def __iter__(self) -> Iterator[int]:
        while self._next < len(self._range):
            self._next += 1
            self.reads += 1
            yield self._range[self._next - 1]


class Source:
    """Makes streams, and remembers them."""

    def __init__(self, lengths: tuple[int, ...] = LENGTHS, *, stateful: bool = True) -> None:
        self._lengths = lengths
        self._stateful = stateful
        self.made: list[Numbers] = []

    def __call__(self, shard: int, num_shards: int) -> Numbers:
        assert num_shards == SHARDS
        self.made.append(Numbers(shard, self._lengths[shard], self._stateful))
        return self.made[-1]

    def everything(self) -> list[int]:
        return sorted(number for shard, length in enumerate(self._lengths) for number in Numbers(shard, length, False))


def train_on(source: Source, script: Script, trained: Trained, **options: Any) -> Callable[[Worker], None]:
    def train(worker: Worker) -> None:
        streams = ElasticStreams(source, global_batch_size=BATCH, **{"exchange_every": 3, **options})
        for step in worker.loop(streams):
            with step:
                for (numbers,) in step:
                    if step._part_samples:
                        trained.add(step, worker, numbers)
                    step.backward(sum(numbers) / len(numbers))
                script(worker, step)
                worker.model.sgd(0.001)

    return train


def used(trained: Trained, job: Job) -> list[int]:
    return sorted(number for numbers in trained.samples(job).values() for number in numbers)


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_world_size_uses_every_sample_once_in_the_same_steps(world_size: int, stateful: bool) -> None:
    source, trained = Source(stateful=stateful), Trained()
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, Script(), trained), world_size)
        job.form(workers)
        finish(job, workers)
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
        steps = trained.samples(job)
        # 8 whole steps (the shortest stream has 17), then smaller ones until the longest, of 26, is exhausted.
        assert [len(numbers) for numbers in steps.values()] == [8] * 8 + [7, 6, 3, 4, 2][:0] + [
            sum(max(0, min(2, length - 2 * step)) for length in LENGTHS) for step in range(8, 13)
        ]
        assert steps[3] == [6, 7, 1006, 1007, 2006, 2007, 3006, 3007]


@pytest.mark.parametrize("stateful", [True, False])
def test_a_killed_owner_costs_no_sample(stateful: bool) -> None:
    source, trained, script = Source(stateful=stateful), Trained(), Script()
    script.kill("w0002", at_step=4)
    script.kill("w0001", at_step=8)
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, script, trained), 3)
        job.form(workers)
        survivors = lose(job, workers, workers[2])
        survivors = lose(job, survivors, workers[1])
        finish(job, survivors)
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
        skipped = [record["skipped"] for record in workers[0].journal.of("stream_opened")]
        # A stream's state is at most 3 steps of 2 samples old; without states, everything before is read again.
        assert max(skipped) <= 6 if stateful else max(skipped) >= 8


def test_a_drained_owner_hands_its_streams_over_without_a_sample_read_twice() -> None:
    source, trained, script = Source(), Trained(), Script()
    gate = script.gate(at_step=4)
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, script, trained, exchange_every=1000), 3)
        job.form(workers)
        gate.await_workers(3)
        change(job, workers, workers[:2], gate)
        assert workers[2].join() == 0
        finish(job, workers[:2])
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
        assert {record["skipped"] for worker in workers for record in worker.journal.of("stream_opened")} == {0}


def test_a_joiner_takes_streams_over_where_they_stand() -> None:
    source, trained, script = Source(), Trained(), Script()
    train = train_on(source, script, trained, exchange_every=1000)
    gates = [script.gate(at_step=2), script.gate(at_step=10)]
    with running_job(SHARDS) as job:
        workers = job.start(train)
        job.form(workers)
        workers = grow(job, workers, train, gates[0], by=2)
        workers = grow(job, workers, train, gates[1])  # in the tail, where some streams are exhausted
        finish(job, workers)
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
        assert {record["skipped"] for worker in workers for record in worker.journal.of("stream_opened")} == {0}


def test_everyone_lost_goes_on_from_the_checkpoint() -> None:
    source, trained, script = Source(), Trained(), Script()
    for worker_id in ("w0000", "w0001"):
        script.kill(worker_id, at_step=6)
    with running_job(SHARDS) as job:
        job.checkpoints.every = 4
        workers = job.start(train_on(source, script, trained, exchange_every=1000), 2)
        job.form(workers)
        assert [worker.join() for worker in workers] == [-9, -9]
        fresh = job.start(train_on(source, Script(), trained), 3)
        job.form(fresh)
        finish(job, fresh)
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
        opened = [record for worker in fresh for record in worker.journal.of("stream_opened")]
        assert {(record["used"], record["skipped"]) for record in opened} == {(8, 0)}, "a save takes the states with it"


def test_data_epochs_begin_anew_when_all_streams_are_exhausted() -> None:
    source, trained, script = Source(), Trained(), Script()
    script.kill("w0001", at_step=13)  # the first step of the second data epoch
    script.kill("w0002", at_step=24)
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, script, trained, data_epochs=3), 3)
        job.form(workers)
        survivors = lose(job, workers, workers[1])
        survivors = lose(job, survivors, workers[2])
        finish(job, survivors)
        assert used(trained, job) == sorted(3 * source.everything())
        assert findings_of(job) == []
        assert {len(numbers) for step, numbers in trained.samples(job).items() if step % 13 < 8} == {8}


def test_with_ends_any_every_step_is_whole_and_the_rest_is_left_out() -> None:
    source, trained = Source(), Trained()
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, Script(), trained, ends="any", data_epochs=2), 2)
        job.form(workers)
        finish(job, workers)
        steps = trained.samples(job)
        assert [len(numbers) for numbers in steps.values()] == [8] * 16
        whole = [1000 * shard + number for shard in range(SHARDS) for number in range(16)]
        assert used(trained, job) == sorted(2 * whole)
        assert findings_of(job) == []


@pytest.mark.parametrize(("lengths", "ends"), [((0, 0, 0, 0), "all"), ((9, 9, 1, 9), "any")])
def test_streams_too_short_for_a_step_are_an_error_that_says_so(lengths: tuple[int, ...], ends: Ends) -> None:
    with running_job(SHARDS) as job:
        workers = job.start(train_on(Source(lengths), Script(), Trained(), ends=ends), 2)
        job.form(workers)
        for worker in workers:
            record = job.await_record(worker, lambda record: record.status is WorkerStatus.FAILED)
            assert record.failure is not None
            assert "too few samples for one step" in str(record.failure)


def test_a_stream_that_gives_less_the_second_time_is_found() -> None:
    script = Script()
    script.kill("w0001", at_step=4)
    lengths = list(LENGTHS)

    class Shrinking(Source):
        def __call__(self, shard: int, num_shards: int) -> Numbers:
            self.made.append(Numbers(shard, lengths[shard], stateful=False))
            return self.made[-1]

    with running_job(SHARDS) as job:
        workers = job.start(train_on(Shrinking(), script, Trained()), 2)
        job.form(workers)
        assert workers[1].join() == -9
        lengths[2:] = [3, 3]
        job.form(workers[:1])
        record = job.await_record(workers[0], lambda record: record.status is WorkerStatus.FAILED)
        assert "must give the same samples" in str(record.failure)


def test_micro_batches_cut_the_share_and_count_each_sample_once() -> None:
    source, trained = Source(), Trained()
    with running_job(SHARDS) as job:
        workers = job.start(train_on(source, Script(), trained, micro_batch_size=3), 1)
        job.form(workers)
        finish(job, workers)
        assert used(trained, job) == source.everything()
        assert findings_of(job) == []
