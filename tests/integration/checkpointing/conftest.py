"""An S3 server of this session, and fresh stores on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from storage import ObjectStore, RetryPolicy, open_store
from storage.testing import FaultProxy, MotoServer

BUCKET = "checkpointing"
QUICK = RetryPolicy(deadline_s=20.0, base_delay_s=0.01, max_delay_s=0.05)


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def proxy(moto: MotoServer) -> Iterator[FaultProxy]:
    with FaultProxy(moto.url) as proxy:
        yield proxy


@pytest.fixture
def fresh_s3(moto: MotoServer) -> Iterator[Callable[[], ObjectStore]]:
    """Open stores, each at a prefix of its own."""
    opened: list[ObjectStore] = []

    def open_fresh() -> ObjectStore:
        store = open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}", retry=QUICK, **moto.options)
        opened.append(store)
        return store

    yield open_fresh
    for store in opened:
        store.close()
