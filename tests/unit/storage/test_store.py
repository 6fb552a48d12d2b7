"""What the store adds to a backend: recognising its own puts, parallel reads, forks, locations in errors."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from storage import (
    AlreadyExists,
    Capabilities,
    NotFound,
    ObjectInfo,
    ObjectStore,
    PreconditionFailed,
    StoreClosed,
    reading,
)
from storage.backends import memory
from storage.backends.memory import MemoryBackend
from storage.base import Condition
from storage.errors import ConnectionLost, TransientError, TruncatedBody
from storage.payload import Payload
from storage.retry import Retrier, RetryPolicy


class NoWaiting:
    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        pass


class Remote(MemoryBackend):
    """A memory backend that behaves as one behind a network, with answers that get lost."""

    client = "remote"
    is_remote = True

    def __init__(self, name: str, *, records_tokens: bool) -> None:
        super().__init__(name)
        self.records_tokens = records_tokens
        self.tokens: dict[str, str] = {}
        self.lose_answers = 0
        self.fail_reads: list[TransientError] = []
        self.before_answer: Callable[[], object] = lambda: None
        self.reads: list[tuple[int, int]] = []
        self.lock = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return memory.CAPABILITIES

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        info = super().put(key, payload, condition)
        self.tokens[key] = condition.token
        if self.lose_answers:
            self.lose_answers -= 1
            self.before_answer()
            raise ConnectionLost("the answer was lost")
        return info

    def put_token(self, key: str) -> str | None:
        self.head(key)
        return self.tokens.get(key)

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        with self.lock:
            self.reads.append((start, out.nbytes))
            failure = self.fail_reads.pop() if self.fail_reads else None
        if failure is not None:
            raise failure
        super().get_range_into(key, start, out)


@pytest.fixture(params=[True, False], ids=["tokens", "no-tokens"])
def remote(request: pytest.FixtureRequest) -> Iterator[Remote]:
    yield Remote("unit-store", records_tokens=request.param)
    memory.forget("unit-store")


@pytest.fixture
def store(remote: Remote) -> Iterator[ObjectStore]:
    with ObjectStore(remote, url="remote://x", retrier=Retrier(RetryPolicy(), clock=NoWaiting())) as store:
        yield store


def test_a_create_whose_answer_was_lost_succeeds(store: ObjectStore, remote: Remote) -> None:
    remote.lose_answers = 1
    info = store.put("key", b"mine", if_absent=True)
    assert info == store.head("key")


def test_a_create_is_not_ours_if_another_writer_came_first(store: ObjectStore, remote: Remote) -> None:
    store.put("key", b"theirs", if_absent=True)
    with pytest.raises(AlreadyExists) as caught:
        store.put("key", b"mine", if_absent=True)
    assert not caught.value.maybe_applied


def test_a_create_whose_object_was_replaced_meanwhile_is_reported_as_lost(store: ObjectStore, remote: Remote) -> None:
    remote.lose_answers = 1
    remote.before_answer = lambda: MemoryBackend.put(remote, "key", Payload(b"theirs"), Condition())
    remote.before_answer = _chain(remote.before_answer, lambda: remote.tokens.pop("key"))
    with pytest.raises(AlreadyExists) as caught:
        store.put("key", b"mine", if_absent=True)
    assert caught.value.maybe_applied
    assert store.get("key") == b"theirs"


def test_a_swap_whose_answer_was_lost_succeeds(store: ObjectStore, remote: Remote) -> None:
    first = store.put("key", b"one")
    remote.lose_answers = 1
    second = store.put("key", b"two", if_match=first.etag)
    assert second.etag == store.head("key").etag
    with pytest.raises(PreconditionFailed):
        store.put("key", b"three", if_match=first.etag)


def test_a_swap_whose_object_was_deleted_meanwhile_is_reported_as_lost(store: ObjectStore, remote: Remote) -> None:
    first = store.put("key", b"one")
    remote.lose_answers = 1
    remote.before_answer = lambda: remote.delete("key")
    with pytest.raises(PreconditionFailed) as caught:
        store.put("key", b"two", if_match=first.etag)
    assert caught.value.maybe_applied


def test_each_conditional_put_has_a_token_of_its_own(store: ObjectStore, remote: Remote) -> None:
    tokens = set()
    for number in range(5):
        store.put(f"key{number}", b"same", if_absent=True)
        tokens.add(remote.tokens[f"key{number}"])
    store.put("plain", b"")
    assert len(tokens) == 5
    assert remote.tokens["plain"] == ""


def test_a_stream_is_sent_again_after_a_lost_answer(store: ObjectStore, remote: Remote) -> None:
    remote.lose_answers = 2
    store.put("key", (bytes([n]) for n in range(10)))
    assert store.get("key") == bytes(range(10))


def test_a_large_range_is_read_in_parts_each_retried_by_itself(
    store: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PART_NBYTES", 100)
    data = random.Random(1).randbytes(1050)
    store.put("key", data)
    remote.fail_reads = [TruncatedBody(), ConnectionLost()]
    out = bytearray(1000)
    store.get_range_into("key", 7, out)
    assert out == data[7:1007]
    assert len(remote.reads) == 12
    assert {size for _, size in remote.reads} == {100}
    assert store.get_range("key", 0, 1050) == data


def test_a_failed_part_fails_the_read_after_all_parts_have_ended(
    store: ObjectStore, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PART_NBYTES", 10)
    with pytest.raises(NotFound) as caught:
        store.get_range_into("missing", 0, bytearray(1000))
    assert caught.value.key == "missing"


def test_a_read_only_or_scattered_buffer_is_refused(store: ObjectStore) -> None:
    store.put("key", b"0123456789")
    for bad in (bytes(4), memoryview(bytearray(8))[::2]):
        with pytest.raises(ValueError, match="writable contiguous"):
            store.get_range_into("key", 0, bad)
    with pytest.raises(ValueError, match="start >= 0"):
        store.get_range_into("key", -1, bytearray(4))
    with pytest.raises(ValueError, match="not a range"):
        store.get_range("key", 3, 2)


def test_an_error_names_operation_store_and_key(store: ObjectStore) -> None:
    with pytest.raises(NotFound) as caught:
        store.get("a/missing")
    assert str(caught.value) == "get 'a/missing' in remote://x: no such object"


def test_a_store_in_a_child_makes_its_backend_anew_and_leaves_the_parents_alone() -> None:
    made: list[MemoryBackend] = []
    closed: list[str] = []

    class Closing(MemoryBackend):
        def close(self) -> None:
            closed.append(self.client)

    def make() -> MemoryBackend:
        made.append(Closing("unit-fork"))
        return made[-1]

    store = ObjectStore(Closing("unit-fork"), url="x", remake=make)
    store.put("key", b"parent")
    store.reset_after_fork()
    assert made == []
    store.put("key", b"child")
    store.get("key")
    assert len(made) == 1
    store.close()
    assert closed == ["memory"]
    unused = ObjectStore(Closing("unit-fork"), url="x", remake=make)
    unused.reset_after_fork()
    unused.close()
    assert closed == ["memory"]
    memory.forget("unit-fork")


def test_a_closed_store_refuses_every_operation(store: ObjectStore) -> None:
    store.close()
    uses: list[Callable[[], object]] = [
        lambda: store.get("k"),
        lambda: store.put("k", b""),
        lambda: store.head("k"),
        lambda: store.delete("k"),
        store.list,
        lambda: store.copy("k", "l"),
        lambda: store.get_range("k", 0, 1),
        lambda: store.get_range_into("k", 0, bytearray(1)),
        lambda: store.delete_many(["k"]),
        lambda: store.exists("k"),
    ]
    for use in uses:
        with pytest.raises(StoreClosed):
            use()


def _chain(*calls: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()

    return run
