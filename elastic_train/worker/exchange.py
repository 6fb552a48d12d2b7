"""The members of one world exchange addresses through the coordination service while they form their group."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Self

from elastic_train.errors import GroupBroken
from elastic_train.ports import Coordination, Put, Snapshot


class CoordinationExchange:
    """An `Exchange` under one key prefix. One watch serves all waits, so a wait costs no requests.

    Use as a context manager: leaving it, or `abort` from any thread, ends every wait.
    """

    def __init__(self, coordination: Coordination, prefix: str) -> None:
        self._coordination = coordination
        self._prefix = prefix
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._aborted = False
        self._watch = coordination.watch(prefix)
        self._thread = threading.Thread(target=self._collect, name="elastic-exchange", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()
        self._watch.close()
        self._thread.join()

    def set(self, key: str, value: bytes) -> None:
        """Show a value to the other members."""
        self._coordination.commit([Put(self._prefix + key, value)])

    def get(self, keys: Sequence[str], timeout_s: float) -> list[bytes]:
        """Wait until all keys are there and return their values.

        Raises:
            GroupBroken: The timeout passed or the formation was aborted.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not all(key in self._values for key in keys):
                remaining_s = deadline - time.monotonic()
                if self._aborted or remaining_s <= 0:
                    missing = [key for key in keys if key not in self._values]
                    why = "aborted" if self._aborted else f"timed out after {timeout_s:g} s"
                    raise GroupBroken(f"forming the group {why}; still missing: {', '.join(missing)}")
                self._changed.wait(remaining_s)
            return [self._values[key] for key in keys]

    def abort(self) -> None:
        """End every wait with GroupBroken. From any thread."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def _collect(self) -> None:
        for batch in self._watch:
            with self._changed:
                if isinstance(batch, Snapshot):
                    for item in batch.items:
                        self._values[item.key.removeprefix(self._prefix)] = item.value
                else:
                    for change in batch.changes:
                        if change.value is not None:
                            self._values[change.key.removeprefix(self._prefix)] = change.value
                self._changed.notify_all()
