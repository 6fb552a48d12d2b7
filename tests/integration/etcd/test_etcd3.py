"""The `etcd3` client as a source of connection and credentials, under today's protobuf."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from elastic_train.adapters.coordination import adopt
from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.etcd3_shim import load_etcd3
from elastic_train.errors import ConfigurationError, CoordinationDenied
from elastic_train.ports import Guard, Put
from elastic_train.testing.certificates import make_certificates
from elastic_train.testing.etcd_cluster import EtcdCluster
from tests.conformance.coordination.conftest import Watcher

KEY = "/elastic-train/job/a"


@pytest.mark.parametrize("secured", [False, True])
def test_a_job_can_be_coordinated_over_an_etcd3_client(folder: Path, secured: bool) -> None:
    certificates = make_certificates(folder) if secured else None
    password = "root-password" if secured else None
    with EtcdCluster(folder, 1, certificates=certificates, root_password=password) as cluster:
        host, _, port = cluster.endpoints[0].partition(":")
        options = {"user": "root", "password": password} if password else {}
        if certificates:
            options |= {
                "ca_cert": str(certificates.ca),
                "cert_cert": str(certificates.cert),
                "cert_key": str(certificates.key),
            }
        theirs = load_etcd3().client(host=host, port=int(port), **options)
        with contextlib.closing(theirs), contextlib.closing(adopt(theirs)) as ours:
            watcher = Watcher(ours.watch("/elastic-train/job/"))
            theirs.put(KEY, "from etcd3")
            watcher.wait(lambda seen: seen.values() == {KEY: b"from etcd3"})
            seen = ours.get(KEY)
            assert seen is not None
            ours.commit([Put(KEY, b"from us", ours.grant(30.0).lease_id)], [Guard(KEY, seen.mod_revision)])
            assert theirs.get(KEY)[0] == b"from us"
            watcher.close()
            ours.close()
            assert theirs.get(KEY)[0] == b"from us", "closing ours must leave the borrowed channel open"


def test_a_token_that_etcd3_cannot_renew_is_reported_with_what_to_do(folder: Path) -> None:
    with EtcdCluster(folder, 1, root_password="root-password") as cluster:
        host, _, port = cluster.endpoints[0].partition(":")
        theirs = load_etcd3().client(host=host, port=int(port), user="root", password="root-password")
        with contextlib.closing(theirs), contextlib.closing(adopt(theirs)) as ours, cluster.client() as root:
            EtcdAdmin(root.transport).change_password("root", "root-password")  # voids the tokens given out before
            with pytest.raises(CoordinationDenied, match="user and password"):
                ours.get(KEY)


def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Etcd3Client"):
        adopt(object())


def test_etcd3_loads_in_a_fresh_process_beside_our_own_messages() -> None:
    program = (
        "import elastic_train.adapters.coordination.etcd.rpc_pb2 as ours\n"
        "from elastic_train.adapters.coordination.etcd.etcd3_shim import load_etcd3\n"
        "etcd3 = load_etcd3()\n"
        "theirs, ours = (rpc.RangeRequest(key=b'a').SerializeToString() for rpc in (etcd3.etcdrpc, ours))\n"
        "assert theirs == ours\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
