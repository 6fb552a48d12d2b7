"""The stores that the conformance suite runs on: each real, each opened as a user opens it."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage import ObjectStore, RetryPolicy, open_store
from storage.backends import memory
from storage.backends.fsspec_backend import open_fsspec
from storage.redaction import Scrubber
from storage.testing import Fault, FaultProxy, LoseAnswer, MotoServer, Refuse, Reset, SlowStart, Truncate

BUCKET = "conformance"
QUICK = RetryPolicy(deadline_s=60.0, base_delay_s=0.01, max_delay_s=0.05)

SUBJECTS = (
    "memory",
    "file",
    "file-buffered",
    "fsspec-memory",
    "fsspec-local",
    "s3-obstore",
    "s3-s3fs",
    "s3-obstore-through-faults",
    "s3-s3fs-through-faults",
)

# One in four requests meets one of these, in turn.
_MISFORTUNES: tuple[Fault, ...] = (
    Refuse(status=503, code="SlowDown"),
    Reset(),
    LoseAnswer(method="PUT"),
    Truncate(method="GET", after_nbytes=3),
    SlowStart(delay_s=0.05),
    Refuse(status=429, code="TooManyRequests"),
    Refuse(status=500, code="InternalError"),
    LoseAnswer(method="DELETE"),
)


def misfortunes(count: int) -> list[Fault]:
    """Return a script of mixed faults."""
    return [
        dataclasses.replace(fault, skip=number * 3)
        for number, fault in zip(range(count), itertools.cycle(_MISFORTUNES), strict=False)
    ]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A place to open stores at."""

    name: str
    open: Callable[[], ObjectStore]

    @property
    def is_faulty(self) -> bool:
        return self.name.endswith("faults")


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    with MotoServer() as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def proxy(moto: MotoServer) -> Iterator[FaultProxy]:
    with FaultProxy(moto.url) as proxy:
        yield proxy


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest, tmp_path: Path, moto: MotoServer, proxy: FaultProxy) -> Iterator[Subject]:
    name = request.param
    place = uuid.uuid4().hex
    opened: list[ObjectStore] = []
    proxy.script(misfortunes(60))
    endpoint = proxy.url if name.endswith("faults") else moto.url
    cloud: dict[str, Any] = {**moto.options, "endpoint_url": endpoint, "retry": QUICK, "request_timeout_s": 5.0}

    def open_one() -> ObjectStore:
        match name.removesuffix("-through-faults"):
            case "memory":
                store = open_store(f"memory://{place}/below")
            case "file":
                store = open_store(tmp_path / "root")
            case "file-buffered":
                store = open_store(f"file://{tmp_path}/root", direct_io=False, sync=False)
            case "fsspec-memory":
                backend = open_fsspec("memory", f"/{place}", {}, Scrubber())
                store = ObjectStore(backend, url=f"fsspec-memory://{place}")
            case "fsspec-local":
                store = open_store(f"local://{tmp_path}/root", retry=QUICK)
            case "s3-obstore":
                store = open_store(f"s3://{BUCKET}/{place}/below", client="obstore", **cloud)
            case _:
                store = open_store(f"s3://{BUCKET}/{place}/below", client="fsspec", **cloud)
        opened.append(store)
        return store

    yield Subject(name, open_one)
    proxy.script([])
    for store in opened:
        store.close()
    memory.forget(place)


@pytest.fixture
def store(subject: Subject) -> ObjectStore:
    return subject.open()
