"""Leases on a scripted wire and clock: the local deadline is never later than the server's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from elastic_train.adapters.coordination.etcd import rpc_pb2 as pb
from elastic_train.adapters.coordination.etcd.endpoints import GRANT, Method
from elastic_train.adapters.coordination.etcd.failures import Failure
from elastic_train.adapters.coordination.etcd.leases import EtcdLease, grant_lease
from elastic_train.adapters.coordination.etcd.transport import Refused, Timing, Transport
from elastic_train.errors import CoordinationUnavailable, LeaseExpired

Handler = Callable[[Method, Any, float], object]


class ScriptedWire:
    """Stands in for `Transport`; each call takes the time that its handler says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timing = Timing()
        self.handler: Handler = self.granting
        self.deadlines_s: list[float | None] = []

    def clock(self) -> float:
        return self.now

    def call(self, method: Method, request: Any, *, deadline_s: float | None = None) -> object:
        self.deadlines_s.append(deadline_s)
        return self.handler(method, request, deadline_s or 10.0)

    def check_usable(self) -> None:
        """Be usable."""

    def granting(self, method: Method, request: Any, _deadline_s: float) -> object:
        """Answer after one second."""
        self.now += 1.0
        if method is GRANT:
            return pb.LeaseGrantResponse(ID=request.ID, TTL=request.TTL)
        return pb.LeaseKeepAliveResponse(ID=request.ID, TTL=12)

    def silent(self, _method: Method, _request: Any, deadline_s: float) -> object:
        """Let every deadline pass."""
        self.now += deadline_s
        raise CoordinationUnavailable("no answer")


@pytest.fixture
def wire() -> ScriptedWire:
    return ScriptedWire()


@pytest.fixture
def lease(wire: ScriptedWire) -> EtcdLease:
    return grant_lease(cast("Transport", wire), 11.2, wire.clock)


def test_a_grant_counts_from_before_it_was_sent_and_rounds_up(wire: ScriptedWire, lease: EtcdLease) -> None:
    assert (lease.ttl_s, lease.expires_at) == (12.0, 112.0)


def test_a_renewal_counts_from_before_it_was_sent(wire: ScriptedWire, lease: EtcdLease) -> None:
    wire.now = 105.0
    lease.renew()
    assert lease.expires_at == 117.0


def test_ttl_zero_means_that_the_lease_is_gone(wire: ScriptedWire, lease: EtcdLease) -> None:
    wire.handler = lambda *_: pb.LeaseKeepAliveResponse(TTL=0)
    with pytest.raises(LeaseExpired, match="TTL 0"):
        lease.renew()
    assert lease.expires_at < wire.now


def test_a_lease_past_its_local_deadline_is_gone_without_asking(wire: ScriptedWire, lease: EtcdLease) -> None:
    wire.now, asked = 112.0, len(wire.deadlines_s)
    with pytest.raises(LeaseExpired, match="local deadline"):
        lease.renew()
    assert len(wire.deadlines_s) == asked


def test_a_renewal_that_nobody_answers_ends_no_later_than_the_lease(wire: ScriptedWire, lease: EtcdLease) -> None:
    wire.now, wire.handler = 108.0, wire.silent
    with pytest.raises(LeaseExpired, match="local deadline"):
        lease.renew()
    assert wire.now == pytest.approx(112.0)


def test_a_renewal_that_nobody_answers_while_the_lease_lives_is_reported_as_that(wire: ScriptedWire) -> None:
    lease = grant_lease(cast("Transport", wire), 60.0, wire.clock)
    wire.handler = wire.silent
    with pytest.raises(CoordinationUnavailable):
        lease.renew()
    assert wire.now < lease.expires_at == 160.0


def test_a_short_lease_leaves_time_to_ask_several_members(wire: ScriptedWire) -> None:
    lease = grant_lease(cast("Transport", wire), 2.0, wire.clock)
    wire.now, wire.handler, wire.deadlines_s = 100.0, wire.silent, []
    with pytest.raises(LeaseExpired):
        lease.renew()
    assert len(wire.deadlines_s) >= 4


def test_a_grant_that_was_carried_out_already_is_renewed_before_it_counts(wire: ScriptedWire) -> None:
    def granted_before(method: Method, request: Any, deadline_s: float) -> object:
        if method is GRANT:
            wire.now += 8.0  # tries whose answers were lost
            raise Refused(Failure.LEASE_EXISTS, "m:1", "lease already exists", tries=3)
        return wire.granting(method, request, deadline_s)

    wire.handler = granted_before
    lease = grant_lease(cast("Transport", wire), 12.0, wire.clock)
    assert lease.expires_at == 120.0


def test_a_lease_that_the_server_forgot_is_as_good_as_revoked(wire: ScriptedWire, lease: EtcdLease) -> None:
    def forgotten(*_: object) -> object:
        raise Refused(Failure.LEASE_NOT_FOUND, "m:1", "requested lease not found", tries=1)

    wire.handler = forgotten
    lease.revoke()
    assert lease.expires_at < wire.now
