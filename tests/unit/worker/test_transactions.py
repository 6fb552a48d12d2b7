"""Steps and evaluations as transactions: worlds change, break and grow around them, and the result is the same."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from elastic_train.core.data import BatchPlan
from elastic_train.core.records import WorkerStatus
from elastic_train.errors import GroupBroken
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.steps import Step
from tests.unit.worker.harness import Job, Killed, Worker, running_job, samples, train_on

SIZE, BATCH = 24, 8


def batches() -> ElasticBatches:
    return ElasticBatches(samples(SIZE), global_batch_size=BATCH, data_epochs=2)


def reference_weight(initial: float = 0.0, size: int = SIZE, data_epochs: int = 2) -> float:
    """Return the weight after an undisturbed run in one process."""
    plan = BatchPlan(size, BATCH, 4, data_epochs, seed=1)
    weight = initial
    for step in range(plan.total_steps):
        share = plan.share(step, 0, 1)
        indices = plan.indices(share.data_epoch, share.start, share.stop)
        weight -= 0.1 * float(indices.mean())
    return weight


def nothing(worker: Worker, step: Step) -> None:
    """Do nothing in a step."""


class Gate:
    """Lets a test stop workers at a chosen step and let them go on."""

    def __init__(self, at_step: int) -> None:
        self.at_step = at_step
        self.reached = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, worker: Worker, step: Step) -> None:
        if step.index == self.at_step and not self.opened.is_set():
            self.reached.release()
            assert self.opened.wait(20)

    def await_workers(self, count: int) -> None:
        for _ in range(count):
            assert self.reached.acquire(timeout=20)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_world_size_trains_to_the_same_weight(world_size: int) -> None:
    with running_job() as job:
        workers = job.start(train_on(batches, nothing), world_size)
        job.form(workers)
        for worker in workers:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())


def test_a_short_last_batch_with_fewer_samples_than_workers_counts_each_once() -> None:
    def uneven() -> ElasticBatches:
        return ElasticBatches(samples(2 * BATCH + 2), global_batch_size=BATCH)

    with running_job() as job:
        workers = job.start(train_on(uneven, nothing), 4)
        job.form(workers)
        for worker in workers:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
        expected = reference_weight(size=2 * BATCH + 2, data_epochs=1)
        assert workers[0].model.weight == pytest.approx(expected)
        assert (
            sum(record["samples"] for worker in workers for record in worker.journal.of("step_read")) == 2 * BATCH + 2
        )


def test_a_lost_member_costs_no_step_and_no_sample() -> None:
    def kill_last(worker: Worker, step: Step) -> None:
        if worker.worker_id == "w0002" and step.index == 3:
            raise Killed

    with running_job() as job:
        workers = job.start(train_on(batches, kill_last), 3)
        job.form(workers)
        workers[2].join()
        survivors = workers[:2]
        for worker in survivors:
            assert job.await_suspicion(worker).broken
        job.form(survivors)
        for worker in survivors:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
            assert [record["step"] for record in worker.journal.of("step_committed")] == list(range(6))
            assert [record["step"] for record in worker.journal.of("step_aborted")] == [
                4
            ]  # lost after its share of step 3


def test_a_joiner_gets_the_state_and_the_place_in_the_loop() -> None:
    gate = Gate(at_step=2)
    with running_job() as job:
        first = job.start(train_on(batches, gate), 2)
        job.form(first)
        gate.await_workers(2)
        joiner = job.start(train_on(batches, gate))
        job.await_record(joiner[0], lambda record: record.status is WorkerStatus.READY)
        job.propose(first + joiner, planned=True)
        job.await_planned(first)
        gate.opened.set()
        job.seal(first + joiner, planned=True)
        for worker in first + joiner:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
        steps_of_joiner = [record["step"] for record in joiner[0].journal.of("step_committed")]
        assert steps_of_joiner == list(range(steps_of_joiner[0], 6))
        assert steps_of_joiner[0] >= 3
        assert not first[0].journal.of("step_aborted")


def test_a_drained_worker_leaves_after_its_step_and_nothing_is_raised_in_the_train_function() -> None:
    gate = Gate(at_step=2)
    with running_job() as job:
        workers = job.start(train_on(batches, gate), 3)
        job.form(workers)
        gate.await_workers(3)
        job.propose(workers[:2], planned=True)
        job.await_planned(workers)
        gate.opened.set()
        job.await_record(workers[2], lambda record: record.status is WorkerStatus.LEAVING)
        job.seal(workers[:2], planned=True)
        assert workers[2].join() == 0
        for worker in workers[:2]:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
            assert not worker.journal.of("step_aborted")


def test_members_that_did_not_apply_the_step_get_it_from_one_that_did() -> None:
    """One member applies step 2 and the world breaks before the other has: a ring can do that."""
    gate = Gate(at_step=2)
    applied = threading.Event()

    def each(worker: Worker, step: Step) -> None:
        if step.index == 2 and not gate.opened.is_set():
            if worker.worker_id == "w0001":
                gate(worker, step)
                worker.break_world()
                raise GroupBroken("as if the reduction had failed here only")
            applied.set()

    with running_job() as job:
        workers = job.start(train_on(batches, each), 2)
        job.form(workers)
        gate.await_workers(1)
        assert applied.wait(20)
        gate.opened.set()
        job.await_suspicion(workers[1])
        job.form(workers)
        for worker in workers:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
        assert [record["step"] for record in workers[1].journal.of("step_committed")] == [0, 1, 3, 4, 5]
        assert workers[1].journal.of("state_received")[-1]["version"] == 3


def test_everyone_lost_goes_on_from_the_newest_checkpoint() -> None:
    def kill_all(worker: Worker, step: Step) -> None:
        if step.index == 4:
            raise Killed

    with running_job() as job:
        job.checkpoints.every = 2
        workers = job.start(train_on(batches, kill_all), 2)
        job.form(workers)
        assert [worker.join() for worker in workers] == [-9, -9]
        assert job.checkpoints.newest is not None
        fresh = job.start(train_on(batches, nothing), 3)
        job.form(fresh)
        for worker in fresh:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
            assert worker.journal.of("step_committed")[0]["step"] == 4


def test_an_exception_of_the_user_says_which_step_and_samples() -> None:
    def fail(worker: Worker, step: Step) -> None:
        if step.index == 3:
            raise ValueError("bad sample")

    with running_job() as job:
        workers = job.start(train_on(batches, fail), 1)
        job.form(workers)
        record = job.await_record(workers[0], lambda record: record.status is WorkerStatus.FAILED)
        assert workers[0].join() == 1
        assert record.failure is not None
        assert record.failure.error_type == "ValueError"
        assert record.failure.step == 3
        assert record.failure.samples == (24, 32)
        assert "bad sample" in record.failure.traceback


def test_a_train_function_that_never_takes_a_step_is_told_so() -> None:
    with running_job() as job:
        (worker,) = job.start(lambda _: None)
        record = job.await_record(worker, lambda record: record.status is WorkerStatus.FAILED)
        assert record.failure is not None
        assert "without taking a step" in record.failure.message


def mean_of(numbers: list[int]) -> dict[str, float]:
    return {"mean": sum(numbers) / len(numbers)}


def validation() -> ElasticBatches:
    return ElasticBatches(samples(30), global_batch_size=8, shuffle=False)


def evaluating(kill: str | None = None) -> Callable[[Worker], None]:
    calls: dict[str, int] = {}

    def count_and_mean(worker: Worker, numbers: list[int]) -> dict[str, float]:
        calls[worker.worker_id] = calls.get(worker.worker_id, 0) + 1
        if worker.worker_id == kill and calls[worker.worker_id] == 2:
            raise Killed
        return mean_of(numbers)

    def train(worker: Worker) -> None:
        for step in worker.loop(batches()):
            with step:
                for (numbers,) in step:
                    step.backward(sum(numbers) / len(numbers))
                worker.model.sgd(0.1)
            if step.index == 2:
                worker.results = worker.evaluate(
                    f"{worker.runtime.progress.positions['loop-0']}/0",
                    validation(),
                    lambda numbers: count_and_mean(worker, numbers),
                )

    return train


def test_an_evaluation_counts_every_sample_once_at_every_world_size() -> None:
    for world_size in (1, 3):
        with running_job() as job:
            workers = job.start(evaluating(), world_size)
            job.form(workers)
            for worker in workers:
                job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
                assert worker.results == {"mean": pytest.approx(14.5)}
                assert worker.journal.of("evaluation_committed")[0]["samples"] == 30


def test_an_evaluation_survives_the_loss_of_a_member() -> None:
    with running_job() as job:
        workers = job.start(evaluating(kill="w0002"), 3)
        job.form(workers)
        workers[2].join()
        survivors = workers[:2]
        for worker in survivors:
            job.await_suspicion(worker)
        job.form(survivors)
        for worker in survivors:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.results == {"mean": pytest.approx(14.5)}
            assert worker.model.weight == pytest.approx(reference_weight())


def test_a_worker_that_joins_during_an_evaluation_attends_it_and_goes_on_with_the_others() -> None:
    with running_job() as job:
        workers = job.start(evaluating(kill="w0001"), 2)
        job.form(workers)
        workers[1].join()
        job.await_suspicion(workers[0])
        joiner = job.start(evaluating())
        job.form([workers[0], *joiner])
        for worker in (workers[0], *joiner):
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
        assert workers[0].results == {"mean": pytest.approx(14.5)}
        assert joiner[0].journal.of("step_committed")[0]["step"] == 3


def test_a_finished_member_serves_its_state_to_one_that_missed_the_last_step() -> None:
    last = 5
    gate = Gate(at_step=last)

    def each(worker: Worker, step: Step) -> None:
        if step.index == last and worker.worker_id == "w0001" and not gate.opened.is_set():
            gate(worker, step)
            worker.break_world()
            raise GroupBroken("as if the reduction had failed here only")

    with running_job() as job:
        workers = job.start(train_on(batches, each), 2)
        job.form(workers)
        gate.await_workers(1)
        job.await_record(workers[0], lambda record: record.status is WorkerStatus.FINISHED)
        gate.opened.set()
        job.await_suspicion(workers[1])
        job.form(workers)
        job.await_record(workers[1], lambda record: record.status is WorkerStatus.FINISHED)
        assert workers[1].model.weight == pytest.approx(reference_weight())


def test_stopping_everyone_saves_what_nobody_carries_on() -> None:
    gate = Gate(at_step=2)
    with running_job() as job:
        workers = job.start(train_on(batches, gate), 2)
        job.form(workers)
        gate.await_workers(2)
        job.propose([], planned=True)
        job.await_planned(workers)
        gate.opened.set()
        for worker in workers:
            job.await_record(worker, lambda record: record.status is WorkerStatus.LEAVING)
        job.end()
        assert [worker.join() for worker in workers] == [0, 0]
        assert job.checkpoints.saves
        assert job.checkpoints.saves[-1][0] >= 3


def test_the_job_fixture_itself_ends_workers_that_still_wait() -> None:
    with running_job() as job:
        job.start(train_on(batches, nothing), 2)
    assert isinstance(job, Job)


def test_a_member_that_had_not_begun_the_aborted_step_attends_the_evaluation_of_one_that_had() -> None:
    """Code behind the block of an aborted step runs: there, one member evaluates while the other begins the step."""
    gate = Gate(at_step=2)
    inside = threading.Event()

    def train(worker: Worker) -> None:
        for step in worker.loop(batches()):
            with step:
                for (numbers,) in step:
                    step.backward(sum(numbers) / len(numbers))
                    if step.index == 3 and worker.worker_id == "w0000":
                        inside.set()
                worker.model.sgd(0.1)
            if step.index == 3:
                steps = worker.runtime.progress.positions["loop-0"]
                worker.results = worker.evaluate(f"{steps}/0", validation(), mean_of)
            if worker.worker_id == "w0001":
                gate(worker, step)

    with running_job() as job:
        workers = job.start(train, 2)
        job.form(workers)
        gate.await_workers(1)
        assert inside.wait(20)
        workers[0].break_world()
        job.await_suspicion(workers[0])
        job.propose(workers)
        assert workers[1].agent.await_interruption(20)
        gate.opened.set()
        job.seal(workers)
        for worker in workers:
            job.await_record(worker, lambda record: record.status is WorkerStatus.FINISHED)
            assert worker.model.weight == pytest.approx(reference_weight())
            assert worker.results == {"mean": pytest.approx(14.5)}
        assert [record["step"] for record in workers[0].journal.of("step_aborted")] == [3]
        assert workers[1].journal.of("step_aborted") == []
