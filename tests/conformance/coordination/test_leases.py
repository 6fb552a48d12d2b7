"""Leases, on every adapter."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from elastic_train.errors import LeaseExpired
from elastic_train.ports import Coordination, Put
from tests.conformance.coordination.conftest import Watcher, put


def test_a_key_on_a_lease_lives_as_long_as_it_is_renewed_and_then_goes(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    lease = client.grant(1.0)
    put(client, f"{prefix}a", lease_id=lease.lease_id)
    seen = client.get(f"{prefix}a")
    assert seen is not None
    assert seen.lease_id == lease.lease_id
    watcher = watching(prefix)
    first_deadline = lease.expires_at
    lease.renew()
    assert lease.expires_at > first_deadline
    last_deadline = lease.expires_at
    watcher.wait(lambda seen: seen.values() == {})
    assert time.monotonic() >= last_deadline, "the service let it run out before our own deadline"
    with pytest.raises(LeaseExpired):
        lease.renew()


def test_the_local_deadline_counts_from_before_the_request(client: Coordination) -> None:
    before = time.monotonic()
    lease = client.grant(5.0)
    assert before + lease.ttl_s <= lease.expires_at <= time.monotonic() + lease.ttl_s
    before = time.monotonic()
    lease.renew()
    assert before + lease.ttl_s <= lease.expires_at <= time.monotonic() + lease.ttl_s
    lease.revoke()


def test_a_grant_is_never_shorter_than_asked_for(client: Coordination) -> None:
    lease = client.grant(3.2)
    assert lease.ttl_s >= 3.2
    lease.revoke()


def test_revoking_deletes_all_keys_at_one_revision(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    lease = client.grant(30.0)
    client.commit([Put(f"{prefix}a", b"1", lease.lease_id), Put(f"{prefix}b", b"1", lease.lease_id)])
    put(client, f"{prefix}c")
    watcher = watching(prefix)
    lease.revoke()
    watcher.wait(lambda seen: set(seen.values()) == {f"{prefix}c"})
    assert len(set(watcher.changed_revisions())) == 1
    with pytest.raises(LeaseExpired):
        lease.renew()


def test_revoking_twice_is_no_error(client: Coordination) -> None:
    lease = client.grant(30.0)
    lease.revoke()
    lease.revoke()


def test_a_write_on_a_lease_that_is_gone_writes_nothing(client: Coordination, prefix: str) -> None:
    lease = client.grant(30.0)
    lease.revoke()
    with pytest.raises(LeaseExpired):
        client.commit([Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"1", lease.lease_id)])
    assert client.list(prefix).items == ()
    put(client, f"{prefix}a")


def test_a_key_rewritten_without_its_lease_outlives_it(client: Coordination, prefix: str) -> None:
    lease = client.grant(30.0)
    put(client, f"{prefix}a", lease_id=lease.lease_id)
    put(client, f"{prefix}a", b"free")
    lease.revoke()
    assert [item.value for item in client.list(prefix).items] == [b"free"]


def test_a_lease_belongs_to_the_service_and_not_to_the_client_that_granted_it(
    new_client: Callable[[], Coordination], prefix: str
) -> None:
    granter, other = new_client(), new_client()
    lease = granter.grant(30.0)
    put(other, f"{prefix}a", lease_id=lease.lease_id)
    lease.revoke()
    assert other.get(f"{prefix}a") is None
