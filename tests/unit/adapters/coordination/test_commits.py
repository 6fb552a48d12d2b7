"""Commits over a wire that loses, holds back and repeats: each applied once or not at all, and truthfully reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from elastic_train.adapters.coordination.etcd.commits import MARKER_TTL_S, Committer
from elastic_train.adapters.coordination.etcd.transport import Transport
from elastic_train.errors import CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Delete, Guard, Put
from tests.unit.adapters.coordination.etcd_model import TRIES, ModelEtcd, UnreliableTransport, then_ok

KEYS = ("/job/one/a", "/job/one/b")
Step = tuple[int, str, str, str, float, list[str]]
words = st.sampled_from(["ok", "ok", "lose", "drop", "hold", "late"])
steps = st.tuples(
    st.integers(0, 1),  # which client
    st.sampled_from(KEYS),
    st.sampled_from(["put", "put", "delete"]),
    st.sampled_from(["free", "unchanged", "absent", "stale"]),  # which guard
    st.sampled_from([0.0, 0.0, MARKER_TTL_S / 3, MARKER_TTL_S * 1.1]),  # time that passes before
    st.lists(words, max_size=6),  # what happens to its tries
)


def committer(server: ModelEtcd, fate: Sequence[str] = ()) -> tuple[Committer, UnreliableTransport]:
    transport = UnreliableTransport(server, then_ok(fate))
    return Committer(cast("Transport", transport), clock=lambda: server.now), transport


def guards_for(kind: str, server: ModelEtcd, key: str) -> list[Guard]:
    item = server.items.get(key.encode())
    current = item.mod_revision if item else 0
    return {
        "free": [],
        "unchanged": [Guard(key, current)],
        "absent": [Guard(key, 0)],
        "stale": [Guard(key, max(current - 1, 1))],
    }[kind]


def refused_late(fate: list[str]) -> list[Step]:
    """Have one commit refused by a guard that holds again when its held-back first try comes."""
    return [
        (0, KEYS[0], "put", "free", 0.0, []),
        (1, KEYS[0], "put", "absent", 0.0, fate),
        (0, KEYS[0], "delete", "free", 0.0, []),
    ]


@example(refused_late(["hold"]))
@example(refused_late(["hold", "ok", "lose"]))
@example(refused_late(["hold", "ok", "late"]))
@given(st.lists(steps, max_size=12))
def test_each_commit_is_applied_at_most_once_and_reported_truthfully(history: list[Step]) -> None:
    server = ModelEtcd()
    fates: list[list[str]] = [[], []]
    transports = [UnreliableTransport(server, _from(fates[index])) for index in range(2)]
    clients = [Committer(cast("Transport", transport), clock=lambda: server.now) for transport in transports]
    committed: dict[bytes, int] = {}
    refused: set[bytes] = set()
    for number, (which, key, kind, guard, passed_s, fate) in enumerate(history):
        value = str(number).encode()
        server.now += passed_s
        fates[which][:] = fate
        operations = [Put(f"{key}/log", value), Put(key, value) if kind == "put" else Delete(key)]
        try:
            committed[value] = clients[which].commit(operations, guards_for(guard, server, key))
        except GuardFailed:
            refused.add(value)
        except CoordinationUnavailable:
            assert _longest_silence(fate) >= TRIES, "gave up although it was answered"
    for transport in transports:
        transport.deliver_late()
    applied = [(value, revision) for key, value, revision in server.applied if key.endswith(b"/log")]
    values = [value for value, _ in applied]
    assert len(values) == len(set(values)), "applied twice"
    assert refused.isdisjoint(values), "applied after it was reported refused"
    assert committed.items() <= set(applied), "reported committed, but not applied there"


def _longest_silence(fate: list[str]) -> int:
    silences = "".join("." if word == "ok" else "x" for word in fate).split(".")
    return max(map(len, silences))


def _from(fate: list[str]) -> Iterator[str]:
    while True:
        yield fate.pop(0) if fate else "ok"


def test_a_marker_is_used_again_and_again() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    for number in range(50):
        client.commit([Put(KEYS[0], str(number).encode())], [])
    assert len(server.items) == 2
    assert len(server.leases) == 1


def test_markers_end_with_the_client() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    client.commit([Put(KEYS[0], b"1")], [])
    client.close()
    assert set(server.items) == {KEYS[0].encode()}
    assert not server.leases


def test_a_marker_is_replaced_long_before_its_lease_ends() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    client.commit([Put(KEYS[0], b"1")], [])
    server.now += MARKER_TTL_S / 2 + 1
    client.commit([Put(KEYS[0], b"2")], [])
    assert len(server.leases) == 2
    assert len(server.items) == 3


def test_a_lease_named_in_an_operation_that_is_gone_is_not_taken_for_the_markers() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    client.commit([Put(KEYS[0], b"1")], [])
    with pytest.raises(LeaseExpired):
        client.commit([Put(KEYS[0], b"2", lease_id=77)], [])
    assert [value for _, value, _ in server.applied] == [b"1"]
    client.commit([Put(KEYS[0], b"3")], [])


def test_a_marker_lease_revoked_by_an_operator_is_replaced() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    client.commit([Put(KEYS[0], b"1")], [])
    (lease,) = server.leases
    server.leases[lease] = server.now
    client.commit([Put(KEYS[0], b"2")], [])
    assert [value for _, value, _ in server.applied] == [b"1", b"2"]


def test_the_message_of_a_refused_commit_names_the_guard_and_what_was_found() -> None:
    server = ModelEtcd()
    client, _ = committer(server)
    revision = client.commit([Put(KEYS[0], b"1")], [])
    with pytest.raises(GuardFailed, match=f"{KEYS[1]} has create_revision 0 and not {revision}"):
        client.commit([Put(KEYS[0], b"2")], [Guard(KEYS[0], revision), Guard(KEYS[1], revision, of="create")])
