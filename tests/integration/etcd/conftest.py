"""Real clusters on loopback, in a directory that goes away with them."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_train.testing.etcd_cluster import EtcdCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything below this directory."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="et-etcd-") as name:
        yield Path(name)


@pytest.fixture
def cluster(folder: Path) -> Iterator[EtcdCluster]:
    """Run three members for one test, which may break them as it likes."""
    with EtcdCluster(folder) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/faults/{uuid.uuid4().hex}/"
