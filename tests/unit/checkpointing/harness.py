"""Stores that crash and fail on command, and states to save."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from checkpointing import Checkpointer, Settings
from storage import open_store
from storage.store import ObjectStore

FAST = Settings(first_retry_s=0.001, last_retry_s=0.01, retry_for_s=5.0, chunk_nbytes=4096, gather_timeout_s=20.0)

_names = itertools.count()


def memory_store() -> ObjectStore:
    """Open a fresh store in memory."""
    return open_store(f"memory://checkpointing-test-{next(_names)}")


class Crash(BaseException):
    """The process is gone."""


class WatchedStore(ObjectStore):
    """Pass every operation to a store, after asking `before` and telling `after`.

    `before(number, operation, key)` and `after(...)` may raise; the number counts the operations.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.log: list[tuple[str, str]] = []
        self.before: Callable[[int, str, str], None] = lambda *_: None
        self.after: Callable[[int, str, str], None] = lambda *_: None

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Any:
        return self._inner.capabilities

    def _do(self, operation: str, key: str, *args: Any, **options: Any) -> Any:
        with self._lock:
            number = next(self._numbers)
            self.log.append((operation, key))
            self.before(number, operation, key)
        result = getattr(self._inner, operation)(*args, **options)
        with self._lock:
            self.after(number, operation, key)
        return result

    def put(self, key: str, data: Any, **options: Any) -> Any:
        return self._do("put", key, key, data, **options)

    def get(self, key: str) -> Any:
        return self._do("get", key, key)

    def get_range(self, key: str, start: int, stop: int) -> Any:
        return self._do("get_range", key, key, start, stop)

    def get_range_into(self, key: str, start: int, out: Any) -> Any:
        return self._do("get_range_into", key, key, start, out)

    def head(self, key: str) -> Any:
        return self._do("head", key, key)

    def list(self, prefix: str = "") -> Iterator[Any]:
        return iter(self._do("list", prefix, prefix))

    def delete(self, key: str) -> Any:
        return self._do("delete", key, key)

    def delete_many(self, keys: Any) -> Any:
        # One operation a key: a bulk request may die half-way.
        for key in keys:
            self.delete(key)

    def copy(self, src: str, dst: str) -> Any:
        return self._do("copy", src, src, dst)

    def close(self) -> None:
        return


def crash_at(store: WatchedStore, number: int, *, applied: bool) -> None:
    """Let operation `number` crash the process, after it was applied or before; and so every later one."""

    def before(current: int, _operation: str, _key: str) -> None:
        if current > number or (current == number and not applied):
            raise Crash(f"operation {current}")

    def after(current: int, _operation: str, _key: str) -> None:
        if current >= number:
            raise Crash(f"operation {current}, applied")

    store.before, store.after = before, after


def state_of(step: int, *, size: int = 5000) -> dict[str, Any]:
    """Return a state that is different at every step, part of which never changes."""
    rng = np.random.default_rng(step)
    return {
        "model": {
            "frozen": np.arange(4 * size, dtype=np.float32),
            "head": rng.standard_normal((size // 10, 10)).astype("f4"),
        },
        "optimizer": {"state": {0: {"m": rng.standard_normal(size)}}, "lr": 0.1 / (step + 1)},
        "position": step * 256,
        "rng": (step, [1, 2, 3], None, b"\x00\xff"),
    }


def same(a: Any, b: Any) -> bool:
    """Tell whether two states are equal bit for bit, types included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def save(store: ObjectStore, step: int, fence: int = 1, *, job: str = "job", **options: Any) -> None:
    """Commit `state_of(step)`."""
    with Checkpointer(store, job=job, settings=FAST, **options) as checkpointer:
        checkpointer.save(step, state_of(step), fence=fence)
        checkpointer.wait()


def load(store: ObjectStore, *, job: str = "job") -> tuple[int, Any] | None:
    """Return the newest checkpoint that is good to the last byte, and its step."""
    with Checkpointer(store, job=job, settings=FAST) as checkpointer:
        found = checkpointer.latest()
        return None if found is None else (found.step, checkpointer.load())


def hold_until(event: threading.Event) -> Callable[[int, str, str], None]:
    """Return a hook that lets no operation pass before the event."""

    def hold(_number: int, _operation: str, _key: str) -> None:
        assert event.wait(20)

    return hold
