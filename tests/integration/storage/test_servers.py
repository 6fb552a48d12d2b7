"""The store against a second S3 server, which checks signatures and is odd in other ways than the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage import CapabilityError, PermissionDenied, RangeNotSatisfiable, open_store
from storage.testing import FaultProxy, MotoServer, RcloneServer
from tests.integration.storage.conftest import BUCKET

pytestmark = [pytest.mark.integration, pytest.mark.s3]


@pytest.fixture(scope="module")
def rclone() -> Iterator[RcloneServer]:
    with RcloneServer() as server:
        server.make_bucket("bucket")
        yield server


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
@pytest.mark.parametrize("unsigned", [True, False])
def test_objects_and_ranges_are_right_though_ranges_are_answered_with_200(
    rclone: RcloneServer, client: str, unsigned: bool
) -> None:
    data = bytes(range(256)) * 2**18  # 64 MiB
    with open_store(
        f"s3://bucket/{client}-{unsigned}", client=client, unsigned_payload=unsigned, **rclone.options
    ) as store:
        store.put("a/key", data)
        assert store.get("a/key") == data
        assert store.get_range("a/key", 1000, 1300) == data[1000:1300]
        out = bytearray(len(data))
        store.get_range_into("a/key", 0, out)
        assert out == data
        with pytest.raises(RangeNotSatisfiable):
            store.get_range("a/key", len(data) - 5, len(data) + 1)
        assert [info.nbytes for info in store.list()] == [len(data)]
        store.delete("a/key")
        assert not store.exists("a/key")


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_a_wrong_secret_is_no_permission(rclone: RcloneServer, client: str) -> None:
    options = {**rclone.options, "secret_access_key": "wrong"}
    with open_store("s3://bucket/p", client=client, **options) as store:
        for use in (lambda: store.get("key"), lambda: store.put("key", b"x"), lambda: list(store.list())):
            with pytest.raises(PermissionDenied):
                use()


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_a_server_that_ignores_conditions_is_found_out_before_anything_depends_on_them(
    rclone: RcloneServer, client: str
) -> None:
    options = {**rclone.options, "trust_conditions": False}
    with open_store(f"s3://bucket/ignoring-{client}", client=client, **options) as store:
        with pytest.raises(CapabilityError, match="ignores the conditions"):
            store.put("key", b"x", if_absent=True)
        assert not store.capabilities.put_if_absent
        assert not store.capabilities.put_if_match
        assert list(store.list()) == []
        store.put("key", b"x")


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_a_server_that_keeps_conditions_is_tried_once(proxy: FaultProxy, moto: MotoServer, client: str) -> None:
    options = {**moto.options, "endpoint_url": proxy.url}
    with open_store(f"s3://{BUCKET}/keeping-{client}", client=client, **options) as store:
        assert store.probe().put_if_absent
        assert list(store.list()) == []
        proxy.script([])
        store.put("key", b"x", if_absent=True)
        assert [seen.method for seen in proxy.seen] == ["PUT"]
