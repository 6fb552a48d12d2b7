"""Members of a real cluster of three are killed, paused and restarted under commits, leases and watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd.endpoints import WATCH
from elastic_train.adapters.coordination.etcd.transport import Timing
from elastic_train.errors import CoordinationUnavailable, GuardFailed
from elastic_train.ports import Delete, Guard, Put, Snapshot
from elastic_train.testing.etcd_cluster import EtcdCluster, wait_until
from tests.conformance.coordination.conftest import Watcher

SILENCE_S = 1.0
PAUSED_BOUND_S = SILENCE_S + 2.0
"""What a watch may be late by when its member is paused: the silence it allows, and the way to another member."""


class Counter:
    """Counts up a key under guards from several threads until told to stop, and knows what it did."""

    def __init__(self, clients: list[EtcdCoordination], key: str) -> None:
        self._clients = clients
        self._key = key
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.committed = 0
        self.unknown = 0
        clients[0].commit([Put(key, b"0")])
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]
        for thread in self._threads:
            thread.start()

    def _run(self, client: EtcdCoordination) -> None:
        while not self._stop.is_set():
            try:
                seen = client.get(self._key)
                assert seen is not None
                guard = Guard(self._key, seen.mod_revision)
            except CoordinationUnavailable:
                continue
            try:
                client.commit([Put(self._key, str(int(seen.value) + 1).encode())], [guard])
            except GuardFailed:
                continue
            except CoordinationUnavailable:
                with self._lock:
                    self.unknown += 1
                continue
            with self._lock:
                self.committed += 1

    def wait_for_progress(self, timeout_s: float = 15.0) -> None:
        goal = self.committed + 20
        wait_until(lambda: self.committed >= goal, timeout_s)

    def stop(self) -> int:
        """Return what the key says when all threads have ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        final = self._clients[0].get(self._key)
        assert final is not None
        return int(final.value)


class WatchWire:
    """Counts what the watches of a client send."""

    def __init__(self, client: EtcdCoordination) -> None:
        self.streams = 0
        self.progress_requests = 0
        (endpoint,) = client.transport.pool.endpoints
        self._open = endpoint.stream(WATCH)
        vars(endpoint)["stream"] = lambda _: self._stream

    def _stream(self, requests: Iterator[Any], **options: object) -> object:
        self.streams += 1
        return self._open(map(self._count, requests), **options)

    def _count(self, request: Any) -> Any:
        self.progress_requests += request.HasField("progress_request")
        return request


def test_killing_the_leader_under_commits_loses_and_doubles_none(cluster: EtcdCluster, prefix: str) -> None:
    with cluster.client() as one, cluster.client() as two, cluster.client() as three:
        counter = Counter([one, two, three], f"{prefix}counter")
        counter.wait_for_progress()
        cluster.members[cluster.leader()].kill()
        counter.wait_for_progress()
        assert counter.stop() == counter.committed
        assert counter.unknown == 0, "a leader's death is over well within the deadline of a call"


def test_pausing_the_leader_and_waking_it_later_loses_and_doubles_none(cluster: EtcdCluster, prefix: str) -> None:
    timing = Timing(try_s=0.5)
    with cluster.client(timing=timing) as one, cluster.client(timing=timing) as two:
        counter = Counter([one, two], f"{prefix}counter")
        counter.wait_for_progress()
        leader = cluster.leader()
        cluster.members[leader].pause()
        counter.wait_for_progress()
        cluster.members[leader].resume()  # what lay in its buffers comes to light now
        counter.wait_for_progress()
        assert counter.stop() == counter.committed
        assert counter.unknown == 0


def test_restarting_every_member_in_turn_is_not_noticed(cluster: EtcdCluster, prefix: str) -> None:
    with cluster.client() as one, cluster.client() as watched:
        watcher = Watcher(watched.watch(prefix))
        counter = Counter([one], f"{prefix}counter")
        for index in range(3):
            cluster.members[index].kill()
            counter.wait_for_progress()
            cluster.restart(index)
            counter.wait_for_progress()
        final = counter.stop()
        assert final == counter.committed
        watcher.wait(lambda seen: seen.values().get(f"{prefix}counter") == str(final).encode())
        values = [int(change.value or b"0") for change in watcher.changes()]
        assert values == sorted(set(values)), "an event was seen twice or out of order"
        watcher.close()


def test_a_watch_through_a_paused_member_goes_on_through_another(cluster: EtcdCluster, prefix: str) -> None:
    follower = next(index for index in range(3) if index != cluster.leader())
    others = [index for index in range(3) if index != follower]
    with cluster.client(timing=Timing(watch_silence_s=SILENCE_S)) as watching, cluster.client(others) as writing:
        watching.transport.pool.prefer(cluster.endpoints[follower])
        watcher = Watcher(watching.watch(prefix))
        watcher.wait(lambda seen: bool(seen.batches))
        writing.commit([Put(f"{prefix}a", b"1")])
        watcher.wait(lambda seen: seen.values() == {f"{prefix}a": b"1"})
        cluster.members[follower].pause()
        paused = time.monotonic()
        writing.commit([Put(f"{prefix}a", b"2")])
        watcher.wait(lambda seen: seen.values() == {f"{prefix}a": b"2"})
        assert time.monotonic() - paused < PAUSED_BOUND_S
        watcher.close()


def test_a_quiet_watch_asks_for_progress_and_stays_where_it_is(cluster: EtcdCluster, prefix: str) -> None:
    with cluster.client([0], Timing(watch_silence_s=2.0)) as client:
        wire = WatchWire(client)
        watcher = Watcher(client.watch(prefix))
        wait_until(lambda: wire.progress_requests >= 2, 10.0)
        client.commit([Put(f"{prefix}a", b"1")])
        watcher.wait(lambda seen: bool(seen.changes()))
        assert wire.streams == 1
        assert len(watcher.batches) == 2, "answers about progress are not for the user"
        watcher.close()


def test_a_watch_that_was_away_during_a_compaction_lists_again(cluster: EtcdCluster, prefix: str) -> None:
    follower = next(index for index in range(3) if index != cluster.leader())
    others = [index for index in range(3) if index != follower]
    with cluster.client([follower]) as watching, cluster.client(others) as writing:
        watcher = Watcher(watching.watch(prefix))
        writing.commit([Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"1")])
        watcher.wait(lambda seen: len(seen.values()) == 2)
        cluster.members[follower].kill()
        writing.commit([Delete(f"{prefix}a")])
        EtcdAdmin(writing.transport).compact(writing.commit([Put(f"{prefix}b", b"2")]))
        cluster.restart(follower)
        watcher.wait(lambda seen: seen.values() == {f"{prefix}b": b"2"})
        assert isinstance(watcher.batches[-1], Snapshot)
        writing.commit([Put(f"{prefix}b", b"3")])
        watcher.wait(lambda seen: seen.values() == {f"{prefix}b": b"3"})
        watcher.close()


def test_a_short_lease_outlives_the_pause_of_a_member(cluster: EtcdCluster, prefix: str) -> None:
    follower = next(index for index in range(3) if index != cluster.leader())
    with cluster.client() as client:
        client.transport.pool.prefer(cluster.endpoints[follower])
        lease = client.grant(3.0)
        cluster.members[follower].pause()
        lease.renew()
        assert lease.expires_at > time.monotonic() + 1.0
        lease.revoke()


def test_without_a_quorum_calls_end_at_their_deadline_and_work_again_afterwards(
    cluster: EtcdCluster, prefix: str
) -> None:
    with cluster.client(timing=Timing(deadline_s=2.0, try_s=0.5)) as client:
        client.commit([Put(f"{prefix}a", b"1")])
        watcher = Watcher(client.watch(prefix))
        watcher.wait(lambda seen: bool(seen.batches))
        for index in (0, 1):
            cluster.members[index].kill()
        for call in (lambda: client.commit([Put(f"{prefix}a", b"2")]), lambda: client.get(f"{prefix}a")):
            began = time.monotonic()
            with pytest.raises(CoordinationUnavailable, match=cluster.endpoints[0]):
                call()
            assert time.monotonic() - began < 2.0 + 1.0
        for index in (0, 1):
            cluster.members[index].start()
        for index in (0, 1):
            cluster.members[index].wait_ready(30.0)
        wait_until(_succeeds(lambda: client.commit([Put(f"{prefix}a", b"3")])), 20.0)
        watcher.wait(lambda seen: seen.values() == {f"{prefix}a": b"3"})
        watcher.close()


def test_closing_a_client_that_waits_for_a_dead_cluster_ends_its_waiting(cluster: EtcdCluster, prefix: str) -> None:
    with cluster.client() as client:
        watcher = Watcher(client.watch(prefix))
        watcher.wait(lambda seen: bool(seen.batches))
        for member in cluster.members:
            member.pause()
        outcomes: list[type[BaseException]] = []

        def wait_for_an_answer() -> None:
            try:
                client.get(f"{prefix}a")
            except CoordinationUnavailable as error:
                outcomes.append(type(error))

        thread = threading.Thread(target=wait_for_an_answer)
        thread.start()
        began = time.monotonic()
        client.close()
        thread.join()
        watcher.close()
        assert outcomes == [CoordinationUnavailable]
        assert time.monotonic() - began < 3.0


def _succeeds(action: Callable[[], object]) -> Callable[[], bool]:
    def attempt() -> bool:
        try:
            action()
        except CoordinationUnavailable:
            return False
        return True

    return attempt
