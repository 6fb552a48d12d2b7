"""Watches, on every adapter."""

from __future__ import annotations

import threading
from collections.abc import Callable

from elastic_train.ports import Changes, Coordination, Delete, Put, Snapshot
from tests.conformance.coordination.conftest import Service, Watcher, put


def test_a_watch_begins_with_all_there_is(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    revision = put(client, f"{prefix}a", b"1")
    first = watching(prefix).batches[0]
    assert isinstance(first, Snapshot)
    assert [(item.key, item.value, item.mod_revision) for item in first.items] == [(f"{prefix}a", b"1", revision)]


def test_a_watch_of_an_empty_prefix_begins_with_an_empty_snapshot(
    prefix: str, watching: Callable[[str], Watcher]
) -> None:
    first = watching(prefix).batches[0]
    assert isinstance(first, Snapshot)
    assert first.items == ()


def test_changes_come_with_their_values_and_revisions(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher = watching(prefix)
    created = put(client, f"{prefix}a", b"1")
    changed = put(client, f"{prefix}a", b"2")
    deleted = client.commit([Delete(f"{prefix}a")])
    watcher.wait(lambda seen: len(seen.changes()) == 3)
    assert [(change.value, change.mod_revision) for change in watcher.changes()] == [
        (b"1", created),
        (b"2", changed),
        (None, deleted),
    ]
    assert [change.create_revision for change in watcher.changes()] == [created, created, 0]


def test_a_commit_of_several_operations_arrives_in_one_batch(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher = watching(prefix)
    client.commit([Put(f"{prefix}{name}", b"1") for name in "abcd"])
    watcher.wait(lambda seen: len(seen.changes()) == 4)
    assert len(watcher.batches) == 2


def test_a_watch_hears_of_its_own_prefix_only(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher = watching(f"{prefix}in/")
    put(client, f"{prefix}out")
    put(client, f"{prefix}inn")
    put(client, f"{prefix}in/a")
    watcher.wait(lambda seen: bool(seen.changes()))
    assert [change.key for change in watcher.changes()] == [f"{prefix}in/a"]


def test_the_whole_tree_can_be_watched_without_seeing_what_is_not_the_users(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher = watching(prefix)
    for number in range(5):
        put(client, f"{prefix}a", str(number).encode())
    watcher.wait(lambda seen: seen.values().get(f"{prefix}a") == b"4")
    assert {change.key for change in watcher.changes()} == {f"{prefix}a"}
    assert [item.key for item in client.list(prefix).items] == [f"{prefix}a"]


def test_concurrent_writers_are_seen_completely_and_in_revision_order(
    new_client: Callable[[], Coordination], prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher, writers, each = watching(prefix), 4, 40
    revisions: list[int] = []

    def write(name: int) -> None:
        client = new_client()
        revisions.extend(put(client, f"{prefix}{name}", str(number).encode()) for number in range(each))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    watcher.wait(lambda seen: len(seen.changes()) == writers * each)
    assert watcher.changed_revisions() == sorted(revisions)
    changes = [batch for batch in watcher.batches if isinstance(batch, Changes)]
    assert [batch.revision for batch in changes] == sorted(batch.revision for batch in changes)
    assert all(change.mod_revision <= batch.revision for batch in changes for change in batch.changes)


def test_a_watch_that_was_held_up_across_a_compaction_ends_up_with_the_truth(
    service: Service, client: Coordination, prefix: str
) -> None:
    watch = client.watch(prefix)
    batches = iter(watch)
    assert isinstance(next(batches), Snapshot)
    last = [put(client, f"{prefix}a", str(number).encode()) for number in range(20)][-1]
    client.commit([Put(f"{prefix}b", b"1"), Delete(f"{prefix}a")])
    service.compact(last)
    end = put(client, f"{prefix}end")
    state: dict[str, bytes | None] = {}
    for batch in batches:
        if isinstance(batch, Snapshot):
            state = {item.key: item.value for item in batch.items}
        else:
            state.update({change.key: change.value for change in batch.changes})
        if batch.revision >= end:
            watch.close()
    assert {key for key, value in state.items() if value is not None} == {f"{prefix}b", f"{prefix}end"}


def test_closing_a_watch_from_another_thread_ends_its_iteration(
    prefix: str, watching: Callable[[str], Watcher]
) -> None:
    watcher = watching(prefix)
    watcher.close()
    assert watcher.ended


def test_a_watch_closed_before_it_is_iterated_brings_nothing(client: Coordination, prefix: str) -> None:
    watch = client.watch(prefix)
    watch.close()
    assert list(watch) == []


def test_closing_the_client_ends_its_watches(new_client: Callable[[], Coordination], prefix: str) -> None:
    client = new_client()
    watchers = [Watcher(client.watch(f"{prefix}{number}/")) for number in range(3)]
    for watcher in watchers:
        watcher.wait(lambda seen: bool(seen.batches))
    client.close()
    for watcher in watchers:
        watcher.wait(lambda seen: seen.ended)
        watcher.close()


def test_closing_a_watch_leaves_the_others_and_the_client_alone(
    client: Coordination, prefix: str, watching: Callable[[str], Watcher]
) -> None:
    closed, kept = watching(prefix), watching(prefix)
    closed.close()
    put(client, f"{prefix}a")
    kept.wait(lambda seen: bool(seen.changes()))
    assert len(closed.batches) == 1
