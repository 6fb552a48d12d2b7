"""A launcher whose workers are threads around real agents, and a job that a real controller leads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.controller.loop import Controller
from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import FinishJob
from elastic_train.core.records import (
    ControlAnswer,
    ControlRequest,
    Failure,
    Keys,
    Stage,
    WorkerId,
    WorkerRecord,
    WorkerStatus,
    WorldRecord,
)
from elastic_train.errors import CoordinationError, WorkerLeaving
from elastic_train.ports import LauncherSink, Put, WorkerExited, WorkerStarted
from elastic_train.worker.agent import Agent

PATIENCE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait until a condition holds; return its value."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        time.sleep(0.001)
    return value


class MemoryJournal:
    """Keeps records in memory."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def record(self, kind: str, /, **fields: Any) -> None:
        self.records.append({"kind": kind, **fields})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]


class ThreadWorker:
    """A worker without training: takes its place in worlds, and does as it is told."""

    def __init__(self, store: MemoryStore, keys: Keys, worker_id: WorkerId, sink: LauncherSink) -> None:
        self.worker_id = worker_id
        self._sink = sink
        self._coordination = MemoryCoordination(store)
        self._orders: list[tuple[WorkerStatus, Failure | None]] = []
        self._killed = threading.Event()
        self.agent = Agent(self._coordination, keys, WorkerRecord(worker_id, WorkerStatus.STARTING), 60.0)
        self._thread = threading.Thread(target=self._run, name=worker_id)
        self._thread.start()

    def end_with(self, status: WorkerStatus, failure: Failure | None = None) -> None:
        """Let the train function end so, as soon as the worker is in a world."""
        self._orders.append((status, failure))

    def kill(self) -> None:
        """End the worker without a word; its record stays until its lease ends."""
        if not self._killed.is_set():
            self._killed.set()
            self._coordination.close()
            self.agent._dismiss("killed")  # a thread cannot be killed: let it fall out of whatever it waits for
            self._sink(WorkerExited(self.worker_id, -9))

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"{self.worker_id} hangs"

    def _run(self) -> None:
        try:
            self.agent.ready()
            self._train()
        except (WorkerLeaving, CoordinationError):
            pass
        finally:
            was_killed = self._killed.is_set()
            self.agent.close()
            self._coordination.close()
            if not was_killed:
                self._sink(WorkerExited(self.worker_id, 0))

    def _train(self) -> None:
        epoch = self.agent.await_world(after=0).record.membership_epoch
        while not self._killed.is_set():
            if self._orders:
                status, failure = self._orders.pop()
                self.agent.finish(status, failure)
                if status is WorkerStatus.FAILED:
                    return
            planned = self.agent.planned
            if planned is not None and self.worker_id in planned.members:
                self.agent.acknowledge(planned.membership_epoch, 1)
                epoch = self.agent.await_world(after=epoch).record.membership_epoch
            elif planned is not None:
                self.agent.finish(WorkerStatus.LEAVING)
                self.agent.await_end()
            elif self.agent.interrupted:
                epoch = self.agent.await_world(after=epoch).record.membership_epoch
            else:
                self._killed.wait(0.001)  # a step


class ThreadLauncher:
    """Launches ThreadWorkers."""

    def __init__(self, store: MemoryStore, keys: Keys) -> None:
        self._store = store
        self._keys = keys
        self._sink: LauncherSink = lambda _: None
        self.workers: dict[WorkerId, ThreadWorker] = {}
        self.launches: list[WorkerId] = []
        self.refuses = False

    def start(self, sink: LauncherSink) -> None:
        self._sink = sink

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        for worker_id in worker_ids:
            self.launches.append(worker_id)
            if self.refuses:
                self._sink(WorkerExited(worker_id, None, "no more processes"))
                continue
            self._sink(WorkerStarted(worker_id, 1, "here"))
            self.workers[worker_id] = ThreadWorker(self._store, self._keys, worker_id, self._report)

    def _report(self, news: WorkerStarted | WorkerExited) -> None:
        self._sink(news)  # whoever leads by now

    def kill(self, worker_id: WorkerId) -> None:
        if worker_id in self.workers:
            self.workers[worker_id].kill()

    def capacity(self) -> int | None:
        return None

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        for worker in self.workers.values():
            worker.join()


class LedJob:
    """A job in one process: an in-memory service, thread workers, and controllers that lead it."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.store = MemoryStore()
        self.keys = Keys("job")
        self.client = MemoryCoordination(self.store)
        self.launcher = ThreadLauncher(self.store, self.keys)
        self.journal = MemoryJournal()
        self.controllers: list[LedController] = []

    def lead(self) -> LedController:
        """Start another controller; the launcher reports to the newest."""
        controller = LedController(self)
        self.controllers.append(controller)
        self.launcher.start(controller.controller.on_launcher_news)
        controller.start()
        return controller

    @property
    def world(self) -> WorldRecord | None:
        item = self.client.get(self.keys.world)
        return None if item is None else WorldRecord.from_bytes(item.value)

    def sealed(self, size: int, after: int = 0) -> WorldRecord:
        """Wait for a sealed world of a size."""

        def there() -> WorldRecord | None:
            world = self.world
            whole = world is not None and world.stage is Stage.SEALED and len(world.members) == size
            return world if world is not None and whole and world.membership_epoch > after else None

        world = wait_for(there, f"a sealed world of {size}, not {self.world}")
        assert isinstance(world, WorldRecord)
        return world

    def ask(self, action: str, **fields: Any) -> ControlAnswer:
        """Write a control request and wait for its answer."""
        request = ControlRequest(f"{action}-{self.store.revision}", action, **fields)
        self.client.commit([Put(self.keys.control + request.request_id, request.to_bytes())])
        item = wait_for(lambda: self.client.get(self.keys.answers + request.request_id), "an answer")
        assert self.client.get(self.keys.control + request.request_id) is None, "an answered request is still there"
        return ControlAnswer.from_bytes(item.value)


class LedController:
    """A controller in a thread, with a connection of its own."""

    def __init__(self, job: LedJob) -> None:
        self.coordination = MemoryCoordination(job.store)
        self.controller = Controller(
            coordination=self.coordination,
            keys=job.keys,
            launcher=job.launcher,
            journal=job.journal,
            bounds=job.bounds,
            name=f"controller-{len(job.controllers)}",
        )
        self.result: FinishJob | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="controller")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> FinishJob | BaseException | None:
        """Wait until the controller has returned or raised."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"the controller hangs in {self.controller.state}"
        return self.result

    def _run(self) -> None:
        try:
            self.result = self.controller.run()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.result = error


@contextmanager
def led_job(min_workers: int = 1, max_workers: int = 8, num_workers: int = 3, **limits: Any) -> Iterator[LedJob]:
    """Give a job to lead; end all that is left of it."""
    patient = {"ack_timeout_s": PATIENCE_S, "relaunch_delay_s": 0.001, "join_batch_s": 0.01, **limits}
    job = LedJob(Bounds(min_workers, max_workers, num_workers, **patient))
    try:
        yield job
    finally:
        for controller in job.controllers:
            controller.controller.abandon()
        for controller in job.controllers:
            controller.finish()
            controller.coordination.close()
        job.launcher.close()
        job.client.close()
