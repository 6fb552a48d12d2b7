"""Many workers' agents in few processes: real agents, real etcd connections, no training threads.

Every agent has its own lease and record. Those of one process share its connection, its watch (one stream, handed to
each), and a limit on the calls under way: hundreds of threads in one interpreter would measure the interpreter.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Self, cast

from elastic_train.adapters.coordination import connect
from elastic_train.core.records import Keys, Stage, WorkerId, WorkerRecord, WorkerStatus, WorldRecord
from elastic_train.ports import Changes, Coordination, Delete, Guard, KeyValue, Lease, Put, Snapshot, Watch
from elastic_train.worker.agent import Agent

_STARTERS = 8  # threads of one process that bring its agents up
_CALLS = 32  # of one process, under way at once
_PATIENCE_S = 120.0
LEASE_TTL_S = 10.0


class SharedConnection:
    """One client for many agents: the Coordination port, as far as an agent needs it."""

    def __init__(self, coordination: Coordination) -> None:
        self._coordination = coordination
        self._under_way = threading.BoundedSemaphore(_CALLS)
        self._lock = threading.Lock()
        self._items: dict[str, KeyValue] = {}
        self._revision = 0
        self._queues: list[SimpleQueue[Snapshot | Changes | None]] = []
        self._watch: Watch | None = None
        self._listed = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def follow(self, prefix: str) -> None:
        """Open the one watch."""
        self._watch = self._coordination.watch(prefix)
        self._thread.start()
        self._listed.wait(_PATIENCE_S)

    def watch(self, prefix: str) -> _SharedWatch:
        """Return an agent's part of the one watch."""
        del prefix
        queue: SimpleQueue[Snapshot | Changes | None] = SimpleQueue()
        with self._lock:
            queue.put(Snapshot(tuple(self._items.values()), self._revision))
            self._queues.append(queue)
        return _SharedWatch(queue)

    def grant(self, ttl_s: float) -> Lease:
        """Grant a lease."""
        with self._under_way:
            return self._coordination.grant(ttl_s)

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard] = ()) -> int:
        """Commit."""
        with self._under_way:
            return self._coordination.commit(operations, guards)

    def close(self) -> None:
        """End the watch and the connection."""
        assert self._watch is not None
        self._watch.close()
        self._thread.join()
        self._coordination.close()

    def _follow(self) -> None:
        assert self._watch is not None
        for batch in self._watch:
            with self._lock:
                self._revision = batch.revision
                if isinstance(batch, Snapshot):
                    self._items = {item.key: item for item in batch.items}
                else:
                    for change in batch.changes:
                        if change.value is not None:
                            self._items[change.key] = KeyValue(change.key, change.value, 0, change.mod_revision)
                for queue in self._queues:
                    queue.put(batch)
            self._listed.set()


class _SharedWatch:
    def __init__(self, queue: SimpleQueue[Snapshot | Changes | None]) -> None:
        self._queue = queue

    def __iter__(self) -> Iterator[Snapshot | Changes]:
        return iter(self._queue.get, None)

    def close(self) -> None:
        self._queue.put(None)


class FleetAgent(Agent):
    """An agent that notes when it knows a sealed world, its rank in it, and takes its place at once."""

    def __init__(self, connection: SharedConnection, keys: Keys, worker_id: WorkerId) -> None:
        self.known: tuple[int, int, float] = (0, 0, 0.0)  # membership epoch, world size, since when
        self.worker_id = worker_id
        record = WorkerRecord(worker_id, WorkerStatus.STARTING)
        super().__init__(cast("Coordination", connection), keys, record, LEASE_TTL_S)

    def _apply_world(self, world: WorldRecord, revision: int) -> None:
        super()._apply_world(world, revision)
        if world.stage is Stage.SEALED and self.worker_id in world.members:
            self._view.membership_epoch = world.membership_epoch
            self.known = (world.membership_epoch, len(world.members), time.monotonic())


class _Crew:
    """The agents of one process, at the command of another."""

    def __init__(self, url: str, job: str, names: Sequence[str]) -> None:
        self._keys = Keys(job)
        self._connection = SharedConnection(connect(url))
        self._connection.follow(self._keys.world)
        self._names = names
        self._agents: dict[str, FleetAgent] = {}
        self._pool = ThreadPoolExecutor(_STARTERS)

    def register(self) -> None:
        """Bring all agents up: lease and first record, as at the start of a process."""
        names = (WorkerId(name) for name in self._names)
        for agent in self._pool.map(lambda name: FleetAgent(self._connection, self._keys, name), names):
            self._agents[agent.worker_id] = agent

    def ready(self) -> None:
        """Let all of them stand at their first step."""
        list(self._pool.map(FleetAgent.ready, self._agents.values()))

    def known(self, after: int, size: int) -> tuple[int, float]:
        """Wait until all agents know a sealed world of this size newer than `after`; return its epoch and when."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            known = [agent.known for agent in self._agents.values()]
            if all(number > after and members == size for number, members, _ in known):
                return max(known, default=(after, size, 0.0))[0], max((when for *_, when in known), default=0.0)
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"waited for a world of {size} after {after}; known: {sorted(set(known))[:3]}")
            time.sleep(0.005)

    def lose(self, names: Iterable[str]) -> None:
        """End agents: their leases, and so their records, are gone at once."""
        lost = [self._agents.pop(name) for name in names]
        list(self._pool.map(Agent.close, lost))

    def close(self) -> None:
        """End all, leaving the leases to the server's end."""
        threads = [threading.Thread(target=agent.close) for agent in self._agents.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._pool.shutdown()
        self._connection.close()


def _serve(connection: Connection, url: str, job: str, names: Sequence[str]) -> None:
    threading.stack_size(256 << 10)  # two threads an agent
    crew = _Crew(url, job, names)
    connection.send(None)
    while (command := connection.recv()) is not None:
        method, arguments = command
        connection.send(getattr(crew, method)(*arguments))
    crew.close()
    connection.send(None)


class Fleet:
    """`count` agents, spread over `processes`. Use as a context manager."""

    def __init__(self, url: str, job: str, count: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.names = [f"x{number:04d}" for number in range(count)]
        self._shares = [self.names[first::processes] for first in range(processes)]
        self._connections: list[Any] = []
        self._processes: list[Any] = []
        for share in self._shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, url, job, share), daemon=True)
            process.start()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.send(None)
        for process in self._processes:
            process.join(60.0)
            if process.is_alive():
                process.kill()
                process.join()

    def register(self) -> None:
        """Bring all agents up."""
        self._all("register")

    def ready(self) -> None:
        """Let all stand at their first step."""
        self._all("ready")

    def known(self, after: int, size: int) -> tuple[int, float]:
        """Wait until all agents know their world; return its membership epoch, and when the last of them knew."""
        answers: list[tuple[int, float]] = self._all("known", after, size)
        return max(number for number, _ in answers), max(when for _, when in answers)

    def lose(self, names: Sequence[str]) -> None:
        """End some agents, all at once."""
        gone = set(names)
        for connection, share in zip(self._connections, self._shares, strict=True):
            connection.send(("lose", ([name for name in share if name in gone],)))
        for connection in self._connections:
            connection.recv()

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        for connection in self._connections:
            connection.send((method, arguments))
        return [connection.recv() for connection in self._connections]
