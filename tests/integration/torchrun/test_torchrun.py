"""Unmodified torchrun, an unmodified script, and a real etcd: only the backend's name is ours."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd

pytest.importorskip("torch")
pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
PATIENCE_S = 100.0


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EmbeddedEtcd]:
    with EmbeddedEtcd(tmp_path / "etcd") as etcd:
        yield etcd


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder that makes the entry points of pyproject.toml known, as an installed package does."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torchrun.handlers"]
    info = tmp_path / "site" / "elastic_train_checkout-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elastic-train-checkout\nVersion: 0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[torchrun.handlers]", *lines, ""]))
    return info.parent


def _torchrun(etcd: EmbeddedEtcd, site: Path, out: Path, number: int) -> subprocess.Popen[bytes]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--monitor-interval=0.1"),
        *("--rdzv-backend=elastic_train", f"--rdzv-endpoint={etcd.url.removeprefix('etcd://')}"),
        *("--rdzv-id=job", "--rdzv-conf=last_call_timeout=20", "--local-addr=localhost"),
        *(str(Path(__file__).with_name("train.py")), str(out)),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    with (out / f"agent-{number}.log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)


def test_two_agents_recover_from_the_loss_of_a_training_process(etcd: EmbeddedEtcd, site: Path, tmp_path: Path) -> None:
    agents = [_torchrun(etcd, site, tmp_path, number) for number in range(2)]
    try:
        codes = [agent.wait(PATIENCE_S) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    logs = "\n".join((tmp_path / f"agent-{number}.log").read_text()[-3000:] for number in range(2))
    assert codes == [0, 0], logs
    assert (tmp_path / "lost").exists()
    assert [(tmp_path / f"done-{rank}").read_text().split()[0] for rank in range(2)] == ["2", "2"], logs
    coordination = connect(etcd.url)
    try:
        assert not coordination.list("/elastic-train/").items, "the last agent cleans up"
    finally:
        coordination.close()
