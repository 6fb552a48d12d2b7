"""The job's own etcd: comes up by itself, keeps its data, and goes whichever way its owner does."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from elastic_train.adapters import coordination
from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd_process import EtcdProcess
from elastic_train.errors import ConfigurationError, CoordinationUnavailable, UsageError
from elastic_train.ports import Put
from elastic_train.testing.etcd_cluster import wait_until


def test_data_is_there_again_after_a_restart_and_after_a_kill(folder: Path) -> None:
    etcd = EmbeddedEtcd(folder / "etcd")
    for number, end in enumerate([signal.SIGTERM, signal.SIGKILL, signal.SIGTERM]):
        with etcd, contextlib.closing(connect(etcd.url)) as client:
            assert len(client.list("/job/one/").items) == number
            client.commit([Put(f"/job/one/{number}", b"1")])
            os.kill(etcd.pid, end)


def test_many_start_at_once_without_getting_into_each_others_way(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(EmbeddedEtcd(folder / str(number))).url for number in range(4)]
        assert len(set(urls)) == 4
        clients = [stack.enter_context(contextlib.closing(connect(url))) for url in urls]
        for number, client in enumerate(clients):
            client.commit([Put("/job/one/a", str(number).encode())])
        assert [client.list("/job/").items[0].value for client in clients] == [b"0", b"1", b"2", b"3"]


def test_it_listens_on_loopback_only(folder: Path) -> None:
    with EmbeddedEtcd(folder) as etcd:
        listening = [c.laddr.ip for c in psutil.Process(etcd.pid).net_connections("inet") if c.status == "LISTEN"]
    assert set(listening) == {"127.0.0.1"}


def test_it_does_not_end_with_the_thread_that_started_it(folder: Path) -> None:
    etcd = EmbeddedEtcd(folder)
    starter = threading.Thread(target=etcd.start)
    starter.start()
    starter.join()
    try:
        with contextlib.closing(connect(etcd.url)) as client:
            client.commit([Put("/job/one/a", b"1")])
    finally:
        etcd.stop()


_OWNER = """
import pathlib, sys, time
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
etcd = EmbeddedEtcd(pathlib.Path(sys.argv[1]))
etcd.start()
print(etcd.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_its_owner_is_killed(folder: Path, how: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with owner:
        assert owner.stdout is not None
        etcd = psutil.Process(int(owner.stdout.readline()))
        owner.send_signal(how)
        owner.wait(10.0)
    wait_until(lambda: not etcd.is_running() or etcd.status() == psutil.STATUS_ZOMBIE, 5.0)


def test_its_owner_hears_when_it_ends_by_itself_but_not_when_it_is_stopped(folder: Path) -> None:
    exits: queue.SimpleQueue[int] = queue.SimpleQueue()
    etcd = EmbeddedEtcd(folder, on_exit=exits.put)
    with etcd:
        os.kill(etcd.pid, signal.SIGKILL)
        assert exits.get(timeout=5.0) == -signal.SIGKILL
    with etcd:
        pass
    assert exits.empty()


def test_environment_variables_meant_for_another_etcd_do_not_reach_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETCD_NAME", "production-7")
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://0.0.0.0:2379")
    with EmbeddedEtcd(folder) as etcd:
        client = connect(etcd.url)
        assert isinstance(client, EtcdCoordination)
        with contextlib.closing(client):
            assert set(EtcdAdmin(client.transport).members()) == {"default"}


def test_a_directory_that_cannot_be_used_is_reported_with_the_reason(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="file"):
        EmbeddedEtcd(folder / "file").start()


def test_a_start_that_fails_carries_the_end_of_etcds_log(folder: Path) -> None:
    process = EtcdProcess(["--name=x", "--listen-client-urls=nonsense"], folder / "log")
    process.start()
    with pytest.raises(CoordinationUnavailable, match=r"URL.*log: "):
        process.wait_ready(10.0)
    process.kill()


def test_a_client_in_a_forked_child_says_that_it_cannot_be_used_there(folder: Path) -> None:
    with EmbeddedEtcd(folder) as etcd, contextlib.closing(connect(etcd.url)) as client:
        client.commit([Put("/job/one/a", b"1")])
        child = os.fork()
        if child == 0:
            outcome = 1
            try:
                client.get("/job/one/a")
            except UsageError as error:
                outcome = 0 if "fork" in str(error) else 2
            finally:
                client.close()  # must touch nothing of the parent's
                os._exit(outcome)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.get("/job/one/a") is not None


def test_an_etcd_that_is_not_there_is_reported_within_seconds_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert coordination._CHECK_S <= 5.0
    monkeypatch.setattr(coordination, "_CHECK_S", 1.0)
    began = time.monotonic()
    with pytest.raises(CoordinationUnavailable, match=r"127\.0\.0\.1:1 .*127\.0\.0\.1:2 ") as caught:
        connect("etcd://user:canary-0e5c@127.0.0.1:1,127.0.0.1:2")
    assert time.monotonic() - began < 3.0
    assert "canary" not in str(caught.value)


def test_closing_a_client_ends_all_its_threads(folder: Path) -> None:
    with EmbeddedEtcd(folder) as etcd:
        warm_up(etcd.url)  # gRPC keeps a few threads for the process from its first use
        before = psutil.Process().num_threads()
        for _ in range(5):
            warm_up(etcd.url)
        wait_until(lambda: psutil.Process().num_threads() <= before, 5.0)


def warm_up(url: str) -> None:
    """Open a client, use all of it, and close it."""
    client = connect(url)
    watch = client.watch("/job/")
    thread = threading.Thread(target=lambda: list(watch))
    thread.start()
    client.commit([Put("/job/one/a", b"1")])
    client.close()
    thread.join()
