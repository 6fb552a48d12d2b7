"""Users, tokens, TLS and a full database, on a real etcd of one member."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd.url import EtcdAddress, Tls
from elastic_train.errors import CoordinationDenied, CoordinationUnavailable
from elastic_train.ports import Guard, Put
from elastic_train.testing.certificates import make_certificates
from elastic_train.testing.etcd_cluster import EtcdCluster, wait_until
from tests.conformance.coordination.conftest import Watcher

ROOT_PASSWORD = "root-canary-7f3a"
PASSWORD = "job-canary-91bc"
JOB = "/elastic-train/job/"


@contextlib.contextmanager
def opened(address: EtcdAddress) -> Iterator[EtcdCoordination]:
    with contextlib.closing(EtcdCoordination.at(address)) as client:
        yield client


@pytest.fixture
def guarded(folder: Path) -> Iterator[EtcdCluster]:
    """Run an etcd that asks who one is, and knows a user `job` for the prefix of that job."""
    with EtcdCluster(folder, 1, root_password=ROOT_PASSWORD) as cluster:
        with cluster.client() as root:
            EtcdAdmin(root.transport).add_user("job", PASSWORD, prefix=JOB)
        yield cluster


def test_a_user_limited_to_a_job_can_do_all_the_port_offers_there_and_nothing_elsewhere(guarded: EtcdCluster) -> None:
    with opened(guarded.address(user="job", password=PASSWORD)) as client:
        lease = client.grant(30.0)
        revision = client.commit([Put(f"{JOB}a", b"1", lease.lease_id)], [Guard(f"{JOB}a", 0)])
        watcher = Watcher(client.watch(JOB))
        watcher.wait(lambda seen: seen.values() == {f"{JOB}a": b"1"})
        client.commit([Put(f"{JOB}a", b"2")], [Guard(f"{JOB}a", revision)])
        watcher.wait(lambda seen: seen.values() == {f"{JOB}a": b"2"})
        lease.renew()
        lease.revoke()
        watcher.close()
        for refused in (
            lambda: client.get("/elastic-train/other/a"),
            lambda: client.list("/elastic-train/"),
            lambda: client.commit([Put("/elastic-train/other/a", b"")]),
            lambda: next(iter(client.watch("/elastic-train/other/"))),
        ):
            with pytest.raises(CoordinationDenied, match="permission denied"):
                refused()


def test_a_token_that_runs_out_is_replaced_without_anybody_noticing(guarded: EtcdCluster) -> None:
    with opened(guarded.address(user="job", password=PASSWORD)) as client, guarded.client() as root:
        lease = client.grant(30.0)
        client.commit([Put(f"{JOB}a", b"1", lease.lease_id)])
        watcher = Watcher(client.watch(JOB))
        watcher.wait(lambda seen: bool(seen.batches))
        admin = EtcdAdmin(root.transport)
        for round_number in range(3):
            admin.change_password("job", PASSWORD)  # voids every token of the user at once
            lease.renew()
            admin.change_password("job", PASSWORD)
            second = Watcher(client.watch(JOB))
            second.wait(lambda seen: bool(seen.batches))
            second.close()
            admin.change_password("job", PASSWORD)
            client.commit([Put(f"{JOB}a", str(round_number).encode())])
        watcher.wait(lambda seen: seen.values() == {f"{JOB}a": b"2"})
        watcher.close()


def test_a_watch_gets_a_new_token_when_its_stream_is_cut(guarded: EtcdCluster) -> None:
    with opened(guarded.address(user="job", password=PASSWORD)) as client, guarded.client() as root:
        watcher = Watcher(client.watch(JOB))
        watcher.wait(lambda seen: bool(seen.batches))
        EtcdAdmin(root.transport).change_password("job", PASSWORD)
        guarded.members[0].kill()
        guarded.restart(0)
        client.commit([Put(f"{JOB}a", b"1")])
        watcher.wait(lambda seen: seen.values() == {f"{JOB}a": b"1"})
        watcher.close()


def test_a_watch_whose_user_lost_the_password_ends_with_an_error(guarded: EtcdCluster) -> None:
    with opened(guarded.address(user="job", password=PASSWORD)) as client, guarded.client() as root:
        batches = iter(client.watch(JOB))
        next(batches)
        EtcdAdmin(root.transport).change_password("job", "another")
        guarded.members[0].kill()
        guarded.restart(0)
        with pytest.raises(CoordinationDenied):
            next(batches)


@pytest.mark.parametrize("password", ["wrong-canary-55d1", ""])
def test_a_wrong_password_is_denied_at_once_without_repeating_it(guarded: EtcdCluster, password: str) -> None:
    address = guarded.address(user="job", password=password or "x")
    with pytest.raises(CoordinationDenied) as caught:
        connect(address.to_url())
    assert "wrong-canary" not in str(caught.value)


def test_a_client_without_credentials_is_told_what_is_missing(guarded: EtcdCluster) -> None:
    with pytest.raises(CoordinationDenied, match="user and password"):
        connect(f"etcd://{guarded.endpoints[0]}")


def test_credentials_are_unused_where_nobody_asks_for_them(folder: Path) -> None:
    with EtcdCluster(folder, 1) as cluster, opened(cluster.address(user="job", password=PASSWORD)) as client:
        client.commit([Put(f"{JOB}a", b"1")])


def test_no_secret_shows_in_a_repr_an_error_or_the_log(guarded: EtcdCluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    address = guarded.address(user="job", password=PASSWORD)
    with opened(address) as client:
        watcher = Watcher(client.watch(JOB))
        client.commit([Put(f"{JOB}a", b"1")])
        shown = [repr(address), str(address), repr(client), repr(client.transport), repr(vars(client))]
        guarded.members[0].kill()
        with pytest.raises(CoordinationUnavailable) as caught:
            client.check(0.3)
        shown += [str(caught.value), repr(caught.value)]
        watcher.close()
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if PASSWORD in text]


def test_tls_with_a_client_certificate_works_by_url(folder: Path) -> None:
    certificates = make_certificates(folder)
    with EtcdCluster(folder, 1, certificates=certificates, root_password=ROOT_PASSWORD) as cluster:
        with contextlib.closing(connect(cluster.address().to_url())) as client:
            client.commit([Put(f"{JOB}a", b"1")])
            assert client.get(f"{JOB}a") is not None
        other = folder / "other"
        other.mkdir()
        strangers = make_certificates(other)
        plain = dataclasses.replace(cluster.address(), tls=None)
        stranger = dataclasses.replace(cluster.address(), tls=Tls(strangers.ca, strangers.cert, strangers.key))
        for address in (plain, stranger):
            with opened(address) as client, pytest.raises(CoordinationUnavailable, match=cluster.endpoints[0]):
                client.check(0.5)


def test_a_full_database_is_reported_as_what_it_is_and_reads_and_renewals_go_on(folder: Path) -> None:
    with EtcdCluster(folder, 1) as cluster, cluster.client() as client:
        lease = client.grant(30.0)
        client.commit([Put(f"{JOB}a", b"1")])
        admin = EtcdAdmin(client.transport)
        admin.set_space_alarm(raised=True)
        assert admin.alarms() == ("NOSPACE",)
        with pytest.raises(CoordinationUnavailable, match=r"NOSPACE.*disarm"):
            client.commit([Put(f"{JOB}a", b"2")])
        assert client.get(f"{JOB}a") is not None
        lease.renew()
        admin.set_space_alarm(raised=False)
        client.commit([Put(f"{JOB}a", b"3")])


def test_a_database_that_fills_up_raises_the_same_alarm(folder: Path) -> None:
    with EtcdCluster(folder, 1, flags=["--quota-backend-bytes=4194304"]) as cluster, cluster.client() as client:
        with pytest.raises(CoordinationUnavailable, match="NOSPACE"):
            fill(client)
        wait_until(lambda: EtcdAdmin(client.transport).alarms() == ("NOSPACE",), 5.0)


def fill(client: EtcdCoordination) -> None:
    """Write more than the database may hold."""
    for number in range(20):
        client.commit([Put(f"{JOB}{number}", b"x" * (1 << 20))])
