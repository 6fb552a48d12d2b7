"""The services under test: each hands out clients, and can do what only an operator can."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.ports import Change, Changes, Coordination, Put, Snapshot, Watch


class Service(Protocol):
    def client(self) -> Coordination: ...
    def compact(self, revision: int) -> None: ...


class MemoryService:
    def __init__(self) -> None:
        self.store = MemoryStore()

    def client(self) -> Coordination:
        return MemoryCoordination(self.store)

    def compact(self, revision: int) -> None:
        self.store.compact(revision)


class EtcdService:
    def __init__(self, url: str) -> None:
        self._url = url

    def client(self) -> Coordination:
        return connect(self._url)

    def compact(self, revision: int) -> None:
        client = connect(self._url)
        assert isinstance(client, EtcdCoordination)
        try:
            EtcdAdmin(client.transport).compact(revision)
        finally:
            client.close()


@pytest.fixture(scope="session", params=["memory", pytest.param("etcd", marks=pytest.mark.integration)])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """Start one service for all tests; each test has a prefix of its own."""
    if request.param == "memory":
        yield MemoryService()
        return
    with tempfile.TemporaryDirectory(prefix="et-etcd-") as folder, EmbeddedEtcd(Path(folder)) as etcd:
        yield EtcdService(etcd.url)


@pytest.fixture
def new_client(service: Service) -> Iterator[Callable[[], Coordination]]:
    """Return a factory of clients that are closed after the test."""
    with contextlib.ExitStack() as stack:

        def make() -> Coordination:
            client = service.client()
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def client(new_client: Callable[[], Coordination]) -> Coordination:
    return new_client()


@pytest.fixture
def prefix() -> str:
    return f"/conformance/{uuid.uuid4().hex}/"


class Watcher:
    """Iterates a watch in a thread and collects what it brings."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.batches: list[Snapshot | Changes] = []
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="elastic-test-watcher")
        self.ended = False
        self._thread.start()

    def _run(self) -> None:
        for batch in self.watch:
            with self._arrived:
                self.batches.append(batch)
                self._arrived.notify_all()
        with self._arrived:
            self.ended = True
            self._arrived.notify_all()

    def wait(self, condition: Callable[[Watcher], bool], timeout_s: float = 10.0) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: condition(self), timeout_s), f"only got {self.batches}"

    def close(self) -> None:
        self.watch.close()
        self._thread.join(10.0)
        assert not self._thread.is_alive(), "closing the watch did not end its iteration"

    def values(self) -> dict[str, bytes]:
        """Replay all batches into the state that they describe."""
        state: dict[str, bytes] = {}
        for batch in self.batches:
            if isinstance(batch, Snapshot):
                state = {item.key: item.value for item in batch.items}
                continue
            for change in batch.changes:
                if change.value is None:
                    state.pop(change.key, None)
                else:
                    state[change.key] = change.value
        return state

    def changed_revisions(self) -> list[int]:
        return [change.mod_revision for change in self.changes()]

    def changes(self) -> list[Change]:
        return list(
            itertools.chain.from_iterable(batch.changes for batch in self.batches if isinstance(batch, Changes))
        )


@pytest.fixture
def watching(client: Coordination) -> Iterator[Callable[[str], Watcher]]:
    """Return a function that watches a prefix in a thread until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(prefix: str) -> Watcher:
            watcher = Watcher(client.watch(prefix))
            stack.callback(watcher.close)
            watcher.wait(lambda seen: bool(seen.batches))
            return watcher

        yield start


def put(client: Coordination, key: str, value: bytes = b"x", lease_id: int = 0) -> int:
    return client.commit([Put(key, value, lease_id)])
