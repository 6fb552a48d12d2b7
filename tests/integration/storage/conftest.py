"""An S3 server of this session and a proxy in front of it that misbehaves by script."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from storage import ObjectStore, RetryPolicy, open_store
from storage.testing import FaultProxy, MotoServer

BUCKET = "integration"
QUICK = RetryPolicy(deadline_s=20.0, base_delay_s=0.01, max_delay_s=0.05)

OpenS3 = Callable[..., ObjectStore]


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def running_proxy(moto: MotoServer) -> Iterator[FaultProxy]:
    with FaultProxy(moto.url) as proxy:
        yield proxy


@pytest.fixture
def proxy(running_proxy: FaultProxy) -> Iterator[FaultProxy]:
    running_proxy.script([])
    yield running_proxy
    running_proxy.script([])


@pytest.fixture(params=["obstore", "fsspec"])
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_s3(moto: MotoServer, proxy: FaultProxy, client: str) -> Iterator[OpenS3]:
    """Open stores at one fresh prefix, through the proxy."""
    place = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    opened: list[ObjectStore] = []

    def open_one(url: str = place, **options: Any) -> ObjectStore:
        # Conditions are not tried first: the tests count requests.
        quick = {"endpoint_url": proxy.url, "retry": QUICK, "request_timeout_s": 1.0, "trust_conditions": True}
        settings = {**moto.options, **quick, **options}
        store = open_store(url, client=client, **{name: value for name, value in settings.items() if value is not None})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()
