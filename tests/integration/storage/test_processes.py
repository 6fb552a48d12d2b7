"""Stores across processes: forks, crashes, races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import ObjectStore, open_store
from storage.keys import TEMP_SEGMENT
from storage.testing import MotoServer
from tests.integration.storage.conftest import BUCKET, OpenS3

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]


def in_child(work: Callable[[], object]) -> None:
    """Run ``work`` in a forked child; fail if it fails or hangs."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            work()
            os.write(writes, b"done")
        except BaseException as error:  # noqa: BLE001  # the child ends here; the parent reports it
            os.write(writes, repr(error).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert said == "done", said or f"the child ended with status {status}"


def use(store: ObjectStore, key: str) -> None:
    store.put(key, b"from here", if_absent=True)
    assert store.get(key) == b"from here"
    assert [info.key for info in store.list(key)] == [key]


@pytest.mark.s3
def test_an_s3_store_used_before_a_fork_works_in_the_child_and_after_in_the_parent(open_s3: OpenS3) -> None:
    store = open_s3(request_timeout_s=20.0)
    use(store, "before")
    in_child(lambda: use(store, "in-child"))
    use(store, "after")
    assert store.get("in-child") == b"from here"


@pytest.mark.s3
def test_a_child_says_which_client_it_uses_after_obstore_was_used_before_the_fork(moto: MotoServer) -> None:
    with open_store(f"s3://{BUCKET}/fork", **moto.options) as store:
        assert store.client == "obstore"

        def check() -> None:
            with open_store(f"s3://{BUCKET}/fork", **moto.options) as fresh:
                assert fresh.client == "s3fs"
                fresh.put("key", b"x")

        in_child(check)


_ZYGOTE = textwrap.dedent(
    """
    import json, os, sys
    from storage import open_store
    store = open_store(sys.argv[1], **json.loads(sys.argv[2]))  # opened, and not used
    pid = os.fork()
    if pid == 0:
        store.put("key", b"child")
        print(store.client, store.get("key").decode(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    store.put("key", b"parent")
    print(store.client, store.get("key").decode(), flush=True)
    """
)


@pytest.mark.s3
def test_a_store_that_was_only_opened_before_a_fork_keeps_the_faster_client_in_the_child(moto: MotoServer) -> None:
    zygote = _start(_ZYGOTE, f"s3://{BUCKET}/zygote", json.dumps(moto.options))
    try:
        assert zygote.communicate(timeout=60)[0].split("\n")[:2] == ["obstore child", "obstore parent"]
    finally:
        zygote.kill()
        zygote.communicate()


def test_a_file_store_works_in_forked_children_also_while_threads_write(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            store.put(f"thread/{number % 10}", b"x" * 1000)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(5):
            in_child(lambda number=number: use(store, f"child-{number}"))  # type: ignore[misc]  # a default binds it
    finally:
        done.set()
        thread.join()
    store.close()


def test_a_memory_store_is_copied_into_a_child(tmp_path: Path) -> None:
    store = open_store(f"memory://{tmp_path.name}")
    store.put("key", b"parent's")

    def change() -> None:
        assert store.get("key") == b"parent's"
        store.put("key", b"child's")

    in_child(change)
    assert store.get("key") == b"parent's"


_CREATOR = textwrap.dedent(
    """
    import sys
    from storage import AlreadyExists, open_store
    store = open_store(sys.argv[1])
    for number in range(40):
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            store.put(f"folder{number}/key", sys.argv[2].encode(), if_absent=True)
        except AlreadyExists:
            print("lost", flush=True)
        else:
            print("won", flush=True)
    """
)


def test_of_creators_in_several_processes_exactly_one_wins(tmp_path: Path) -> None:
    root = tmp_path / "root"
    racers = [_start(_CREATOR, str(root), name) for name in ("a", "b", "c", "d")]
    try:
        for number in range(40):
            for racer in racers:
                assert _line(racer) == "ready"
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
            outcomes = [_line(racer) for racer in racers]
            assert outcomes.count("won") == 1
            winner = "abcd"[outcomes.index("won")]
            assert open_store(root).get(f"folder{number}/key") == winner.encode()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


_COUNTER = textwrap.dedent(
    """
    import sys
    from storage import PreconditionFailed, open_store
    store = open_store(sys.argv[1])
    print("ready", flush=True)
    for _ in range(25):
        while True:
            info = store.head("count")
            value = int(store.get("count"))
            try:
                store.put("count", str(value + 1).encode(), if_match=info.etag)
            except PreconditionFailed:
                continue
            break
    print("done", flush=True)
    """
)


def test_no_increment_is_lost_between_processes(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root")
    store.put("count", b"0")
    counters = [_start(_COUNTER, str(tmp_path / "root")) for _ in range(3)]
    try:
        for counter in counters:
            assert [_line(counter), _line(counter)] == ["ready", "done"]
    finally:
        for counter in counters:
            counter.kill()
            counter.communicate()
    assert store.get("count") == b"75"


_WRITER = textwrap.dedent(
    """
    import sys
    from storage import open_store
    store = open_store(sys.argv[1])
    def stream():
        for _ in range(3):
            yield bytes(2**20)
        print("half", flush=True)
        sys.stdin.readline()
    store.put("folder/key", stream())
    """
)


def test_a_writer_killed_half_way_leaves_no_object_and_its_file_is_removed_later(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = _start(_WRITER, str(root))
    try:
        assert _line(writer) == "half"
        assert len(list((root / TEMP_SEGMENT).iterdir())) == 1
        # One that is being written is left alone.
        store = open_store(root)
        assert len(list((root / TEMP_SEGMENT).iterdir())) == 1
        assert list(store.list()) == []
    finally:
        writer.kill()
        writer.communicate()
    assert list(open_store(root).list()) == []
    assert list((root / TEMP_SEGMENT).iterdir()) == []


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
