"""What torch's agents expect of a rendezvous handler, modelled on torch's own tests of its handlers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("torch")

from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousInfo,
    RendezvousTimeoutError,
)

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.adapters.rendezvous.board import Board
from elastic_train.adapters.rendezvous.torchrun import ElasticRendezvous, NodeLimits
from elastic_train.trainer.torchrun_backend import coordination_url

PATIENCE_S = 30.0


class Meeting:
    """Handlers of one job, and threads in which they meet."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self._pool = ThreadPoolExecutor(8)
        self._names = itertools.count(1)
        self.handlers: list[ElasticRendezvous] = []

    def node(
        self, least: int = 2, most: int = 4, *, join_s: float = 60.0, last_call_s: float = 0.05
    ) -> ElasticRendezvous:
        board = Board(MemoryCoordination(self.store), "job", f"node-{next(self._names)}", 60.0)
        limits = NodeLimits(least, most, join_s, last_call_s)
        self.handlers.append(ElasticRendezvous(board, "job", limits, "localhost"))
        return self.handlers[-1]

    def arrive(self, handler: ElasticRendezvous) -> Future[RendezvousInfo]:
        return self._pool.submit(handler.next_rendezvous)

    def form(self, *handlers: ElasticRendezvous) -> list[RendezvousInfo]:
        return [future.result(PATIENCE_S) for future in [self.arrive(handler) for handler in handlers]]

    def until(self, handler: ElasticRendezvous, condition: Callable[[], bool]) -> None:
        """Wait until a handler sees the board so that a condition holds."""
        assert handler._board.wait_for(lambda _: condition(), PATIENCE_S)

    def lose(self, handler: ElasticRendezvous) -> None:
        """Let a node's lease end, as when its machine is gone."""
        self.handlers.remove(handler)
        lease = handler._board._lease
        assert lease is not None
        handler._board._closing.set()
        with self.store.changed:
            self.store.end_lease(lease.lease_id)
        handler._board.leave()

    def close(self) -> None:
        for handler in self.handlers:
            handler.shutdown()
        self._pool.shutdown()


def _port(info: RendezvousInfo) -> int:
    assert info.bootstrap_store_info is not None
    return info.bootstrap_store_info.master_port


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    meeting = Meeting()
    yield meeting
    meeting.close()


def test_all_nodes_get_ranks_of_their_own_and_one_store(meeting: Meeting) -> None:
    infos = meeting.form(*(meeting.node(3, 3) for _ in range(3)))
    assert sorted(info.rank for info in infos) == [0, 1, 2]
    assert {info.world_size for info in infos} == {3}
    infos[0].store.set("key", "value")
    assert all(info.store.get("key") == b"value" for info in infos)
    assert len({_port(info) for info in infos}) == 1


def test_a_restarted_round_keeps_the_ranks_and_reads_nothing_of_the_one_before(meeting: Meeting) -> None:
    """torch's c10d backend as shipped lets restarted workers read their predecessors' keys (pytorch #135712)."""
    nodes = [meeting.node(2, 2) for _ in range(2)]
    before = meeting.form(*nodes)
    before[0].store.set("address", "stale")
    after = meeting.form(*nodes)
    assert [info.rank for info in after] == [info.rank for info in before]
    assert not after[1].store.check(["address"])
    assert _port(before[0]) != _port(after[0])


def test_fewer_than_the_minimum_time_out(meeting: Meeting) -> None:
    with pytest.raises(RendezvousTimeoutError, match="1 of at least 2 nodes"):
        meeting.node(join_s=0.2).next_rendezvous()


def test_whoever_comes_later_is_counted_as_waiting_and_admitted_by_the_next_round(meeting: Meeting) -> None:
    nodes = [meeting.node() for _ in range(2)]
    meeting.form(*nodes)
    assert nodes[0].num_nodes_waiting() == 0
    late = meeting.node()
    coming = meeting.arrive(late)
    for node in nodes:
        meeting.until(node, lambda node=node: node.num_nodes_waiting() == 1)  # type: ignore[misc]
    assert not coming.done(), "a second round beside one that works"
    infos = meeting.form(*nodes)
    assert {info.world_size for info in (*infos, coming.result(PATIENCE_S))} == {3}
    assert coming.result().rank == 2, "seniority orders ranks"


def test_nobody_is_disturbed_for_a_node_that_has_no_place(meeting: Meeting) -> None:
    nodes = [meeting.node(1, 2) for _ in range(2)]
    meeting.form(*nodes)
    surplus = meeting.node(1, 2)
    coming = meeting.arrive(surplus)
    meeting.until(nodes[0], lambda: surplus._board.node in nodes[0]._board.view.waiting)
    assert nodes[0].num_nodes_waiting() == 0
    meeting.lose(nodes[1])
    meeting.until(nodes[0], lambda: nodes[0].num_nodes_waiting() == 1)
    meeting.form(nodes[0])
    assert coming.result(PATIENCE_S).rank == 1


@pytest.mark.parametrize("lost", [0, 1])
def test_the_others_go_on_without_a_lost_node(meeting: Meeting, lost: int) -> None:
    nodes = [meeting.node(1, 2) for _ in range(2)]
    infos = meeting.form(*nodes)
    victim = nodes[[info.rank for info in infos].index(lost)]
    survivor = next(node for node in nodes if node is not victim)
    meeting.lose(victim)
    (info,) = meeting.form(survivor)
    assert (info.rank, info.world_size) == (0, 1)


def test_a_closed_rendezvous_admits_nobody(meeting: Meeting) -> None:
    nodes = [meeting.node() for _ in range(2)]
    meeting.form(*nodes)
    nodes[0].set_closed()
    meeting.until(nodes[1], nodes[1].is_closed)
    with pytest.raises(RendezvousClosedError):
        nodes[1].next_rendezvous()


def test_closing_ends_a_wait(meeting: Meeting) -> None:
    alone = meeting.node()
    coming = meeting.arrive(alone)
    meeting.until(alone, lambda: bool(alone._board.view.waiting))
    meeting.node().set_closed()
    with pytest.raises(RendezvousClosedError):
        coming.result(PATIENCE_S)


def test_the_last_node_leaves_nothing_behind_so_that_the_run_id_can_be_used_again(meeting: Meeting) -> None:
    nodes = [meeting.node(1, 2) for _ in range(2)]
    meeting.form(*nodes)
    assert all(node.shutdown() for node in nodes)
    assert nodes[0].shutdown(), "shutdown is idempotent"
    with meeting.store.changed:
        assert not meeting.store.below("/elastic-train/").items
    (info,) = meeting.form(meeting.node(1, 1))
    assert info.rank == 0


def test_it_says_who_it_is(meeting: Meeting) -> None:
    node = meeting.node()
    assert (node.get_backend(), node.get_run_id(), node.use_agent_store) == ("elastic_train", "job", True)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("etcd-host:2379", "etcd://etcd-host:2379"),
        ("etcd-host", "etcd://etcd-host:2379"),
        ("a:1,b", "etcd://a:1,b:2379"),
        ("etcd://user:secret@a:1", "etcd://user:secret@a:1"),
    ],
)
def test_an_endpoint_of_torchruns_names_etcd(endpoint: str, url: str) -> None:
    assert coordination_url(endpoint) == url
