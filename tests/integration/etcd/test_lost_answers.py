"""Answers of a real etcd are thrown away, or requests held back and delivered late: nothing may be applied twice."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd.endpoints import GRANT, TXN, Method
from elastic_train.adapters.coordination.etcd.transport import Timing
from elastic_train.adapters.coordination.etcd.url import parse_etcd_url
from elastic_train.errors import CoordinationUnavailable, GuardFailed
from elastic_train.ports import Changes, Delete, Guard, Put, Snapshot

_TIMING = Timing(deadline_s=1.0, try_s=0.5)


class LostError(grpc.RpcError):  # type: ignore[misc]  # gRPC ships no types
    """What the client sees of a call whose answer does not come."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "the connection was cut (by the test)"


class Wire:
    """Stands between a client and etcd, and mistreats the calls of one procedure as told, one word a call.

    ``lose``: deliver it and throw the answer away. ``hold``: keep the request, to be delivered by `release`.
    ``drop``: never deliver it. Calls after the last word pass.
    """

    def __init__(self, client: EtcdCoordination, method: Method) -> None:
        self.plan: list[str] = []
        self._held: list[Callable[[], object]] = []
        (endpoint,) = client.transport.pool.endpoints
        self._pass = endpoint.unary
        self._method = method
        vars(endpoint)["unary"] = self._unary

    def _unary(self, method: Method) -> Any:
        real = self._pass(method)
        if method is not self._method:
            return real

        def call(request: Any, **options: Any) -> Any:
            word = self.plan.pop(0) if self.plan else "pass"
            if word == "pass":
                return real(request, **options)
            if word == "lose":
                real(request, **options)
            elif word == "hold":
                self._held.append(lambda: real(request))
            raise LostError

        return call

    def release(self) -> None:
        """Deliver what was held back."""
        for deliver in self._held:
            deliver()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="et-etcd-") as folder, EmbeddedEtcd(Path(folder)) as etcd:
        yield etcd.url


@pytest.fixture
def client(url: str) -> Iterator[EtcdCoordination]:
    with contextlib.closing(EtcdCoordination.at(parse_etcd_url(url), _TIMING)) as client:
        yield client


@pytest.fixture
def witness(url: str) -> Iterator[EtcdCoordination]:
    """Give a second client, whose wire is sound."""
    with contextlib.closing(EtcdCoordination.at(parse_etcd_url(url))) as client:
        yield client


def value(client: EtcdCoordination, key: str) -> bytes | None:
    seen = client.get(key)
    return None if seen is None else seen.value


@pytest.mark.parametrize("plan", [["lose"], ["lose", "lose"], ["drop"], ["drop", "lose"], ["lose", "drop", "lose"]])
def test_a_lost_answer_is_found_out_and_the_write_stands_once(
    client: EtcdCoordination, witness: EtcdCoordination, prefix: str, plan: list[str]
) -> None:
    client.commit([Put(f"{prefix}warm", b"")])
    batches = iter(witness.watch(prefix))
    assert isinstance(next(batches), Snapshot)
    Wire(client, TXN).plan = list(plan)
    revision = client.commit([Put(f"{prefix}a", b"1")])
    client.commit([Put(f"{prefix}end", b"")])
    changes: list[tuple[str, int]] = []
    while not any(key.endswith("end") for key, _ in changes):
        batch = next(batches)
        assert isinstance(batch, Changes)
        changes += [(change.key, change.mod_revision) for change in batch.changes]
    assert changes == [(f"{prefix}a", revision), (f"{prefix}end", revision + 1)]


@pytest.mark.parametrize("plan", [["lose"], ["lose", "drop"]])
def test_a_guarded_write_whose_answer_was_lost_is_not_taken_for_somebody_elses(
    client: EtcdCoordination, prefix: str, plan: list[str]
) -> None:
    before = client.commit([Put(f"{prefix}a", b"5")])
    Wire(client, TXN).plan = plan
    revision = client.commit([Put(f"{prefix}a", b"6")], [Guard(f"{prefix}a", before)])
    seen = client.get(f"{prefix}a")
    assert seen is not None
    assert seen.mod_revision == revision


def test_a_rivals_equal_value_is_not_taken_for_ours(
    client: EtcdCoordination, witness: EtcdCoordination, prefix: str
) -> None:
    before = client.commit([Put(f"{prefix}a", b"5")])
    wire = Wire(client, TXN)
    wire.plan = ["hold"]
    witness.commit([Put(f"{prefix}a", b"6")], [Guard(f"{prefix}a", before)])
    with pytest.raises(GuardFailed):
        client.commit([Put(f"{prefix}a", b"6")], [Guard(f"{prefix}a", before)])


def test_a_request_delivered_after_its_repetition_has_no_effect(client: EtcdCoordination, prefix: str) -> None:
    client.commit([Put(f"{prefix}warm", b"")])
    wire = Wire(client, TXN)
    wire.plan = ["hold"]
    client.commit([Put(f"{prefix}a", b"1")])
    client.commit([Put(f"{prefix}a", b"2")])
    wire.release()
    assert value(client, f"{prefix}a") == b"2"


def test_a_request_delivered_after_its_guard_was_seen_broken_has_no_effect(
    client: EtcdCoordination, witness: EtcdCoordination, prefix: str
) -> None:
    client.commit([Put(f"{prefix}warm", b"")])
    witness.commit([Put(f"{prefix}lock", b"taken")])
    wire = Wire(client, TXN)
    wire.plan = ["hold"]
    with pytest.raises(GuardFailed):
        client.commit([Put(f"{prefix}a", b"mine")], [Guard(f"{prefix}lock", 0)])
    witness.commit([Delete(f"{prefix}lock")])  # now the guard would hold again
    wire.release()
    assert value(witness, f"{prefix}a") is None
    client.commit([Put(f"{prefix}a", b"next")])
    assert value(witness, f"{prefix}a") == b"next"


def test_a_request_delivered_after_its_client_was_closed_has_no_effect(
    client: EtcdCoordination, witness: EtcdCoordination, prefix: str
) -> None:
    wire = Wire(client, TXN)
    wire.plan = ["hold"] + ["drop"] * 100
    with pytest.raises(CoordinationUnavailable):
        client.commit([Put(f"{prefix}a", b"1")])
    wire.plan = []
    client._committer.close()  # its connection stays open, for the late request
    with pytest.raises(grpc.RpcError, match="lease not found"):
        wire.release()
    assert value(witness, f"{prefix}a") is None


def test_an_outcome_that_cannot_be_found_out_is_reported_and_the_next_commit_works(
    client: EtcdCoordination, prefix: str
) -> None:
    wire = Wire(client, TXN)
    wire.plan = ["lose"] + ["drop"] * 100
    with pytest.raises(CoordinationUnavailable, match="cut \\(by the test\\)"):
        client.commit([Put(f"{prefix}a", b"1")])
    wire.plan = []
    client.commit([Put(f"{prefix}b", b"2")])
    assert (value(client, f"{prefix}a"), value(client, f"{prefix}b")) == (b"1", b"2")


def test_a_lease_whose_grant_was_not_answered_is_granted_once_and_alive(client: EtcdCoordination, prefix: str) -> None:
    wire = Wire(client, GRANT)
    wire.plan = ["lose"]
    lease = client.grant(30.0)
    client.commit([Put(f"{prefix}a", b"1", lease.lease_id)])
    lease.renew()
    lease.revoke()
    assert value(client, f"{prefix}a") is None


def test_markers_deleted_by_an_operator_do_not_stop_a_client(
    client: EtcdCoordination, witness: EtcdCoordination, prefix: str
) -> None:
    for number in range(3):
        client.commit([Put(f"{prefix}a", str(number).encode())])
        witness.commit([Delete("/faults/", prefix=True)])
    client.commit([Put(f"{prefix}a", b"end")])
    assert value(client, f"{prefix}a") == b"end"


def test_a_client_leaves_no_marker_behind(url: str, witness: EtcdCoordination, prefix: str) -> None:
    client = EtcdCoordination.at(parse_etcd_url(url), _TIMING)
    client.commit([Put(f"{prefix}a", b"1")])
    assert EtcdAdmin(witness.transport).count(f"{prefix}.commits/") == 1
    client.close()
    assert EtcdAdmin(witness.transport).count(f"{prefix}.commits/") == 0
