"""What the unit tests show in memory, on a real S3 server: crashes, races, faults on the wire."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import pytest

from checkpointing import Checkpointer, KeepLast, NoCheckpoint, StaleFence
from checkpointing.repository import Repository
from checkpointing.retention import Collector
from storage import ObjectStore, open_store
from storage.testing import Corrupt, FaultProxy, LoseAnswer, MotoServer, Refuse, Reset, Truncate
from tests.integration.checkpointing.conftest import BUCKET, QUICK
from tests.unit.checkpointing.harness import FAST, Crash, WatchedStore, crash_at, load, same, save, state_of

pytestmark = [pytest.mark.integration, pytest.mark.s3]

Fresh = Callable[[], ObjectStore]
Work = Callable[[ObjectStore], None]


def save_third(store: ObjectStore) -> None:
    save(store, 3, fence=2, retention=KeepLast(1))


def collect(store: ObjectStore) -> None:
    catalog = Repository("store", store, "job", settings=FAST).catalog
    Collector(catalog, wall_clock=lambda: time.time() + 2 * 86400).sweep()


def read_newest(store: ObjectStore) -> None:
    load(store)


def copy_of(template: ObjectStore, fresh: Fresh) -> ObjectStore:
    store = fresh()
    for info in template.list():
        store.put(info.key, template.get(info.key))
    return store


@pytest.mark.timeout(300)
@pytest.mark.parametrize("applied", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("work", "allowed"),
    [(save_third, {2, 3}), (collect, {2}), (read_newest, {2})],
    ids=["save and retention", "collection", "load"],
)
def test_nothing_committed_is_lost_wherever_it_crashes(
    work: Work, allowed: set[int], fresh_s3: Fresh, *, applied: bool
) -> None:
    template = fresh_s3()
    save(template, 1)
    save(template, 2)
    template.put("job/shards/litter.safetensors", b"x")
    number = 0
    while True:
        inner = copy_of(template, fresh_s3)
        watched = WatchedStore(inner)
        crash_at(watched, number, applied=applied)
        died = False
        try:
            work(watched)
        except Crash:
            died = True
        found = load(inner)
        assert found is not None
        assert found[0] in allowed, f"after a crash at operation {number}"
        assert same(found[1], state_of(found[0]))
        save(inner, 9, fence=3)
        assert same(load(inner), (9, state_of(9)))
        if not died:
            break
        number += 1
    assert number >= 4


def test_of_many_writers_racing_the_newest_fence_stands(fresh_s3: Fresh) -> None:
    store = fresh_s3()

    def try_to_save(fence: int) -> None:
        with Checkpointer(store, job="job", retention=KeepLast(20), settings=FAST) as checkpointer:
            ticket = checkpointer.save(fence, state_of(fence), fence=fence)
            ticket.wait(60)
            assert isinstance(ticket.error, StaleFence | None)

    threads = [threading.Thread(target=try_to_save, args=(fence,)) for fence in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert same(load(store), (6, state_of(6)))
    with Checkpointer(store, job="job", settings=FAST) as checkpointer:
        record = checkpointer.pointer.read()
        assert record is not None
        fences = [ref.fence for ref in record.checkpoints]
        assert fences == sorted(fences)
        for ref in record.checkpoints:
            manifest = Repository("store", store, "job").reader.open(ref)
            assert same(Repository("store", store, "job").reader.load(manifest), state_of(ref.step))


WIRE_FAULTS = [
    Refuse(method="PUT", times=3),
    Refuse(method="GET", times=3),
    Reset(method="PUT", times=2),
    LoseAnswer(method="PUT", times=1, path_contains="pointer"),
    LoseAnswer(method="PUT", times=1, path_contains="manifests"),
    LoseAnswer(method="PUT", times=1, path_contains="shards"),
    Truncate(method="GET", times=2, after_nbytes=100),
    Corrupt(method="GET", times=1, path_contains="shards", at_byte=5000),
]


@pytest.mark.parametrize("fault", WIRE_FAULTS, ids=repr)
def test_faults_on_the_wire_cost_time_and_nothing_else(fault: object, moto: MotoServer, proxy: FaultProxy) -> None:
    options = {**moto.options, "endpoint_url": proxy.url}
    with open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}", retry=QUICK, **options) as store:
        save(store, 1)
        proxy.script([fault])  # type: ignore[list-item]  # they are faults, each of another class
        save(store, 2, fence=2)
        assert same(load(store), (2, state_of(2)))
        assert not proxy.unused


def test_what_was_changed_on_its_way_to_the_store_is_found_and_not_referred_to_again(
    moto: MotoServer, proxy: FaultProxy
) -> None:
    """This server does not check what it is sent."""
    options = {**moto.options, "endpoint_url": proxy.url}
    with open_store(f"s3://{BUCKET}/{uuid.uuid4().hex}", retry=QUICK, **options) as store:
        with Checkpointer(store, job="job", settings=FAST) as checkpointer:
            proxy.script([Corrupt(method="PUT", path_contains="shards", at_byte=90_000, in_request=True)])
            for step in (1, 2):
                checkpointer.save(step, state_of(step), fence=1)
                checkpointer.wait()
        with Checkpointer(store, job="job", settings=FAST) as checkpointer:
            with pytest.raises(NoCheckpoint, match="does not match its checksum"):
                checkpointer.load()
            checkpointer.save(3, state_of(3), fence=2)
            checkpointer.wait()
            assert same(checkpointer.load(), state_of(3))
