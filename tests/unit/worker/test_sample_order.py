"""A user's order under churn: the same everywhere, used once along the lineage, an impure one found and named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from elastic_train.core.data import Indices
from elastic_train.core.order import SampleOrder, WeightedOrder
from elastic_train.core.records import WorkerStatus
from elastic_train.worker.batches import ElasticBatches
from tests.unit.worker.churn import Script, Trained, findings_of, finish, grow, lose
from tests.unit.worker.harness import Worker, running_job, samples

SIZE, BATCH = 40, 8


def train_on(order_of: Callable[[Worker], SampleOrder], script: Script, trained: Trained) -> Callable[[Worker], None]:
    def train(worker: Worker) -> None:
        batches = ElasticBatches(samples(SIZE), global_batch_size=BATCH, data_epochs=2, order=order_of(worker))
        for step in worker.loop(batches):
            with step:
                for (numbers,) in step:
                    trained.add(step, worker, numbers)
                    step.backward(sum(numbers) / len(numbers))
                script(worker, step)
                worker.model.sgd(0.001)

    return train


def shuffled(data_epoch: int, seed: int) -> Indices:
    return np.random.default_rng([seed, data_epoch]).permutation(SIZE)


def test_an_order_is_used_once_through_deaths_and_joins() -> None:
    order = WeightedOrder(np.arange(SIZE) + 1.0, 37)
    trained, script = Trained(), Script()
    script.kill("w0001", at_step=2)
    train = train_on(lambda _: order, script, trained)
    gate = script.gate(at_step=6)
    with running_job() as job:
        workers = job.start(train, 3)
        job.form(workers)
        members = grow(job, lose(job, workers, workers[1]), train, gate)
        finish(job, members)
        for data_epoch in range(2):
            drawn = order(data_epoch, 1).tolist()
            used = [trained.samples(job)[5 * data_epoch + batch] for batch in range(5)]
            assert used == [sorted(drawn[start : start + BATCH]) for start in range(0, 37, BATCH)]
        assert findings_of(job) == []
        assert [r for r in job.workers[0].journal.of("loop_started") if r["plan"]["order"] == "WeightedOrder"]


def test_an_order_that_differs_between_workers_is_found_and_the_workers_are_named() -> None:
    def of_worker(worker: Worker) -> SampleOrder:
        return lambda data_epoch, seed: shuffled(data_epoch, seed + int(worker.worker_id == "w0001"))

    with running_job() as job:
        workers = job.start(train_on(of_worker, Script(), Trained()), 2)
        job.form(workers)
        for worker in workers:
            record = job.await_record(worker, lambda record: record.status is WorkerStatus.FAILED)
            told = str(record.failure)
            assert "not the same everywhere for data epoch 0" in told
            assert "on w0000" in told
            assert "on w0001" in told


def test_an_order_that_changed_since_the_checkpoint_is_found() -> None:
    script = Script()
    script.kill("w0000", at_step=2)
    with running_job() as job:
        job.checkpoints.every = 1
        workers = job.start(train_on(lambda _: shuffled, script, Trained()))
        job.form(workers)
        assert workers[0].join() == -9
        fresh = job.start(
            train_on(lambda _: lambda data_epoch, seed: shuffled(data_epoch, seed + 1), script, Trained())
        )
        job.form(fresh)
        record = job.await_record(fresh[0], lambda record: record.status is WorkerStatus.FAILED)
        assert "the steps committed before" in str(record.failure)
