"""Reading, writing and guarding keys, on every adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from elastic_train.errors import ConfigurationError, CoordinationUnavailable, GuardFailed
from elastic_train.ports import Coordination, Delete, Guard, KeyValue, Put


def test_a_key_that_was_never_written_is_none(client: Coordination, prefix: str) -> None:
    assert client.get(f"{prefix}a") is None


def test_a_written_key_is_read_with_its_revisions(client: Coordination, prefix: str) -> None:
    first = client.commit([Put(f"{prefix}a", b"1")])
    second = client.commit([Put(f"{prefix}a", b"2")])
    assert second > first
    assert client.get(f"{prefix}a") == KeyValue(f"{prefix}a", b"2", create_revision=first, mod_revision=second)


def test_another_client_reads_what_was_committed(new_client: Callable[[], Coordination], prefix: str) -> None:
    new_client().commit([Put(f"{prefix}a", b"1")])
    seen = new_client().get(f"{prefix}a")
    assert seen is not None
    assert seen.value == b"1"


def test_a_list_holds_the_keys_below_the_prefix_and_no_others(client: Coordination, prefix: str) -> None:
    client.commit([Put(f"{prefix}in/a", b"1"), Put(f"{prefix}in/b", b"2"), Put(f"{prefix}inn", b"3")])
    snapshot = client.list(f"{prefix}in/")
    assert {item.key: item.value for item in snapshot.items} == {f"{prefix}in/a": b"1", f"{prefix}in/b": b"2"}
    assert snapshot.revision >= max(item.mod_revision for item in snapshot.items)


def test_all_operations_of_a_commit_get_the_same_revision(client: Coordination, prefix: str) -> None:
    revision = client.commit([Put(f"{prefix}a", b"1"), Put(f"{prefix}b", b"2")])
    assert [item.mod_revision for item in client.list(prefix).items] == [revision, revision]


def test_a_deleted_key_is_gone_and_its_next_life_has_a_new_create_revision(client: Coordination, prefix: str) -> None:
    first = client.commit([Put(f"{prefix}a", b"1")])
    client.commit([Delete(f"{prefix}a")])
    assert client.get(f"{prefix}a") is None
    again = client.commit([Put(f"{prefix}a", b"1")])
    seen = client.get(f"{prefix}a")
    assert seen is not None
    assert seen.create_revision == again > first


def test_deleting_an_absent_key_is_no_error(client: Coordination, prefix: str) -> None:
    client.commit([Delete(f"{prefix}a")])
    assert client.list(prefix).items == ()


def test_deleting_a_prefix_takes_all_below_it_and_nothing_else(client: Coordination, prefix: str) -> None:
    client.commit([Put(f"{prefix}groups/1/a", b""), Put(f"{prefix}groups/1/b", b""), Put(f"{prefix}groups/10/a", b"")])
    client.commit([Delete(f"{prefix}groups/1/", prefix=True)])
    assert [item.key for item in client.list(prefix).items] == [f"{prefix}groups/10/a"]


@pytest.mark.parametrize("cut", ["", "part", "slash"])
def test_deleting_a_whole_job_works_and_the_client_goes_on(client: Coordination, prefix: str, cut: str) -> None:
    client.commit([Put(f"{prefix}a", b"1"), Put(f"{prefix}b/c", b"1")])
    client.commit([Delete({"": prefix, "part": prefix[:-4], "slash": prefix.rstrip("/")}[cut], prefix=True)])
    assert client.list(prefix).items == ()
    client.commit([Put(f"{prefix}a", b"2")], [Guard(f"{prefix}a", 0)])
    assert [item.value for item in client.list(prefix).items] == [b"2"]


def test_a_mod_guard_lets_only_the_writer_of_the_newest_value_pass(client: Coordination, prefix: str) -> None:
    key = f"{prefix}a"
    old = client.commit([Put(key, b"1")])
    new = client.commit([Put(key, b"2")], [Guard(key, old)])
    with pytest.raises(GuardFailed, match=str(new)):
        client.commit([Put(key, b"3")], [Guard(key, old)])
    seen = client.get(key)
    assert seen is not None
    assert seen.value == b"2"


def test_a_create_guard_holds_through_writes_and_fails_after_a_new_life(client: Coordination, prefix: str) -> None:
    leader, key = f"{prefix}leader", f"{prefix}world"
    created = client.commit([Put(leader, b"me")])
    client.commit([Put(leader, b"me again")])
    client.commit([Put(key, b"1")], [Guard(leader, created, of="create")])
    client.commit([Delete(leader)])
    client.commit([Put(leader, b"another")])
    with pytest.raises(GuardFailed, match="leader"):
        client.commit([Put(key, b"2")], [Guard(leader, created, of="create")])


def test_an_absence_guard_lets_one_of_two_creators_pass(client: Coordination, prefix: str) -> None:
    client.commit([Put(f"{prefix}a", b"1")], [Guard(f"{prefix}a", 0)])
    with pytest.raises(GuardFailed):
        client.commit([Put(f"{prefix}a", b"2")], [Guard(f"{prefix}a", 0)])


def test_one_failed_guard_of_several_writes_nothing(client: Coordination, prefix: str) -> None:
    revision = client.commit([Put(f"{prefix}a", b"1")])
    with pytest.raises(GuardFailed, match=f"{prefix}b"):
        client.commit(
            [Put(f"{prefix}a", b"2"), Put(f"{prefix}c", b"2")],
            [Guard(f"{prefix}a", revision), Guard(f"{prefix}b", revision)],
        )
    assert [item.value for item in client.list(prefix).items] == [b"1"]


def test_a_commit_of_guards_alone_checks_them(client: Coordination, prefix: str) -> None:
    revision = client.commit([Put(f"{prefix}a", b"1")])
    assert client.commit([], [Guard(f"{prefix}a", revision)]) >= revision
    with pytest.raises(GuardFailed):
        client.commit([], [Guard(f"{prefix}a", revision + 1000)])


def test_a_failed_guard_does_not_spoil_the_next_commit(client: Coordination, prefix: str) -> None:
    for number in range(3):
        with pytest.raises(GuardFailed):
            client.commit([Put(f"{prefix}a", b"1")], [Guard(f"{prefix}a", 99)])
        client.commit([Put(f"{prefix}b", str(number).encode())])
    assert [item.value for item in client.list(prefix).items] == [b"2"]


def test_two_operations_on_one_key_are_refused(client: Coordination, prefix: str) -> None:
    with pytest.raises(ConfigurationError):
        client.commit([Put(f"{prefix}a", b"1"), Put(f"{prefix}a", b"2")])
    with pytest.raises(ConfigurationError):
        client.commit([Put(f"{prefix}b/a", b"1"), Delete(f"{prefix}b/", prefix=True)])
    assert client.list(prefix).items == ()


def test_increments_guarded_by_the_revision_read_lose_and_double_none(
    new_client: Callable[[], Coordination], prefix: str
) -> None:
    key, threads, each = f"{prefix}counter", 4, 15
    new_client().commit([Put(key, b"0")])

    def count_up(client: Coordination) -> None:
        done = 0
        while done < each:
            seen = client.get(key)
            assert seen is not None
            try:
                client.commit([Put(key, str(int(seen.value) + 1).encode())], [Guard(key, seen.mod_revision)])
            except GuardFailed:
                continue
            done += 1

    shared = new_client()
    workers = [threading.Thread(target=count_up, args=(shared if n % 2 else new_client(),)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    final = shared.get(key)
    assert final is not None
    assert int(final.value) == threads * each


def test_a_closed_client_says_so(new_client: Callable[[], Coordination], prefix: str) -> None:
    client = new_client()
    client.commit([Put(f"{prefix}a", b"1")])
    client.close()
    client.close()
    with pytest.raises(CoordinationUnavailable, match="closed"):
        client.get(f"{prefix}a")
    with pytest.raises(CoordinationUnavailable, match="closed"):
        client.commit([Put(f"{prefix}a", b"1")])
    with pytest.raises(CoordinationUnavailable, match="closed"):
        client.watch(prefix)
