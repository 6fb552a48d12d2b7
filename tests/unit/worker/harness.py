"""Workers as threads, the toy framework, an in-process service, and a controller that does as the test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.core.records import (
    Cause,
    JobRecord,
    Keys,
    Stage,
    Suspicion,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.errors import StepAborted, WorkerLeaving
from elastic_train.ports import Put
from elastic_train.testing.toy_framework import Switchboard, ToyFramework, ToyModel
from elastic_train.worker.agent import Agent
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.evaluation import Evaluation
from elastic_train.worker.process import run_train_function
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.steps import Loop, Step
from elastic_train.worker.streams import ElasticStreams

PATIENCE_S = 20.0


class MemoryJournal:
    """Keeps records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, kind: str, /, **fields: Any) -> None:
        self.records.append({"kind": kind, **deepcopy(fields)})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


class SharedCheckpoints:
    """A store of one checkpoint, shared by the members; rank 0 writes."""

    def __init__(self) -> None:
        self.newest: Mapping[str, Any] | None = None
        self.saves: list[tuple[int, int]] = []  # version, fence
        self.every: int | None = None

    def for_worker(self) -> _WorkerCheckpoints:
        return _WorkerCheckpoints(self)


class _WorkerCheckpoints:
    def __init__(self, shared: SharedCheckpoints) -> None:
        self._shared = shared
        self._rank = 0

    def due(self, steps: int) -> bool:
        return bool(self._shared.every) and steps % (self._shared.every or 1) == 0

    def take_place(self, rank: int, world_size: int) -> None:
        del world_size
        self._rank = rank

    def save(self, version: int, tree: Mapping[str, Any], fence: int, *, wait: bool) -> None:
        del wait
        if self._rank == 0:
            self._shared.newest = deepcopy(dict(tree))
            self._shared.saves.append((version, fence))

    def restore(self) -> Mapping[str, Any] | None:
        return deepcopy(self._shared.newest)

    def close(self) -> None:
        """Nothing is under way."""


def _knows_of_plan(agent: Agent) -> bool:
    return agent.planned is not None


class Worker:
    """One worker: an agent, a runtime and a thread that runs a train function of (worker)."""

    def __init__(self, job: Job, number: int, train: Callable[[Worker], None]) -> None:
        self.job = job
        self.worker_id = WorkerId(f"w{number:04d}")
        self.coordination = MemoryCoordination(job.store)
        self.journal = MemoryJournal()
        record = WorkerRecord(worker_id=self.worker_id, status=WorkerStatus.STARTING)
        self.agent = Agent(self.coordination, job.keys, record, lease_ttl_s=60.0)
        self.model = ToyModel(weight=float(number))  # different at first: only a transfer makes them the same
        self.runtime = Runtime(
            job=job.record,
            agent=self.agent,
            worker=record,
            local_rank=number,
            coordination=self.coordination,
            framework=ToyFramework(job.switchboard),
            journal=self.journal,
            checkpoints=job.checkpoints.for_worker(),
            formation_timeout_s=PATIENCE_S,
        )
        self.runtime.bind({"model": self.model})
        self.exit_code: int | None = None
        self.loops = 0
        self.results: dict[str, float] = {}  # of the newest evaluation
        self._thread = threading.Thread(target=self._run, args=(train,), name=self.worker_id)
        self._thread.start()

    def loop(self, batches: ElasticBatches | ElasticStreams) -> Iterator[Step]:
        self.loops += 1
        return iter(Loop(self.runtime, f"loop-{self.loops - 1}", batches))

    def evaluate(self, name: str, batches: ElasticBatches, fn: Callable[..., Mapping[str, Any]]) -> dict[str, float]:
        self.runtime.join()
        return Evaluation(self.runtime, name, batches, fn).run()

    def break_world(self) -> None:
        """Do as a lost member does to its peers: cut the connections, say nothing."""
        self.runtime.group.abort()

    def join(self) -> int:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self.worker_id} hangs"
        assert self.exit_code is not None
        return self.exit_code

    def _run(self, train: Callable[[Worker], None]) -> None:
        try:
            self.exit_code = run_train_function(self.runtime, lambda: train(self), save_at_end=False)
        except Killed:
            self.exit_code = -9
            self.runtime.group.abort()
        finally:
            self.runtime.close()
            self.agent.close()
            self.coordination.close()


class Killed(BaseException):
    """Raised by a test's train function where the process would be killed."""


class Job:
    """The service, the keys and the scripted controller."""

    def __init__(self, logical_shards: int = 4, seed: int = 1) -> None:
        self.store = MemoryStore()
        self.switchboard = Switchboard()
        self.checkpoints = SharedCheckpoints()
        self.keys = Keys("job")
        self.record = JobRecord("job", 1, 4, logical_shards, seed, "memory://", 0.0)
        self.coordination = MemoryCoordination(self.store)
        self.membership_epoch = 0
        self.sealed: tuple[WorkerId, ...] = ()  # members of the newest sealed world
        self.workers: list[Worker] = []

    def start(self, train: Callable[[Worker], None], count: int = 1) -> list[Worker]:
        started = [Worker(self, len(self.workers) + index, train) for index in range(count)]
        self.workers += started
        return started

    def propose(self, members: list[Worker], *, planned: bool = False) -> None:
        self.membership_epoch += 1
        self._write(Stage.PROPOSED, members, planned=planned)

    def seal(self, members: list[Worker], *, planned: bool = False) -> None:
        for member in members:
            self.await_record(member, lambda record: record.acknowledged >= self.membership_epoch)
        self._write(Stage.SEALED, members, planned=planned)

    def form(self, members: list[Worker], *, planned: bool = False) -> None:
        for member in members:
            self.await_record(member, lambda record: record.status is not WorkerStatus.STARTING)
        self.propose(members, planned=planned)
        self.seal(members, planned=planned)

    def end(self) -> None:
        self.membership_epoch += 1
        self._write(Stage.ENDED, [], planned=False)

    def await_record(self, worker: Worker, predicate: Callable[[WorkerRecord], bool]) -> WorkerRecord:
        return WorkerRecord.from_bytes(
            self._await(self.keys.worker(worker.worker_id), lambda data: predicate(WorkerRecord.from_bytes(data)))
        )

    def await_suspicion(self, worker: Worker) -> Suspicion:
        key = self.keys.suspicion(self.membership_epoch, worker.worker_id)
        return Suspicion.from_bytes(self._await(key, lambda _: True))

    def await_planned(self, workers: list[Worker]) -> None:
        """Wait until the agents of these workers know of the planned proposal."""
        for worker in workers:
            with worker.agent._changed:
                knows = partial(_knows_of_plan, worker.agent)
                assert worker.agent._changed.wait_for(knows, PATIENCE_S)

    def _await(self, key: str, predicate: Callable[[bytes], bool]) -> bytes:
        """Wait for a value that was ever written, also if it was deleted since (a worker's key goes with its lease)."""

        def found() -> list[bytes]:
            changes = self.store.since(0, key)
            return [c.value for c in changes if c.key == key and c.value is not None and predicate(c.value)]

        with self.store.changed:
            assert self.store.changed.wait_for(found, PATIENCE_S), f"waited in vain for {key}: {self.store.get(key)}"
            return found()[-1]

    def _write(self, stage: Stage, members: list[Worker], *, planned: bool) -> None:
        ids = tuple(member.worker_id for member in members)
        joining = tuple(worker_id for worker_id in ids if worker_id not in self.sealed)
        if stage is Stage.SEALED:
            self.sealed = ids
        world = WorldRecord(
            self.membership_epoch, stage, ids, joining, planned=planned, cause=Cause.START, reason="as the test says"
        )
        self.coordination.commit([Put(self.keys.world, world.to_bytes())])


@contextmanager
def running_job(logical_shards: int = 4) -> Iterator[Job]:
    """Yield a job; end it and all its workers."""
    job = Job(logical_shards)
    try:
        yield job
    finally:
        job.end()
        for worker in job.workers:
            worker.join()
        job.coordination.close()


def samples(count: int) -> list[int]:
    """Return a dataset of the numbers 0 to count - 1."""
    return list(range(count))


def train_on(
    batches_of: Callable[[], ElasticBatches], each: Callable[[Worker, Step], None]
) -> Callable[[Worker], None]:
    """Return a train function that calls `each` inside every step, after its batch was read."""

    def train(worker: Worker) -> None:
        for step in worker.loop(batches_of()):
            with step:
                for (numbers,) in step:
                    step.backward(sum(numbers) / len(numbers))
                each(worker, step)
                worker.model.sgd(0.1)
                step.report(mean=worker.model.gradient)

    return train


__all__ = [
    "Job",
    "Killed",
    "StepAborted",
    "Worker",
    "WorkerLeaving",
    "running_job",
    "samples",
    "train_on",
]
