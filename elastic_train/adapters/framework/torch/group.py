"""The group of one membership epoch: collectives in the calling thread or behind it, an abort from any thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

import torch

from elastic_train.adapters.framework.torch.collectives import Collectives
from elastic_train.adapters.framework.torch.mesh import Mesh
from elastic_train.adapters.framework.torch.ordered_sum import OrderedSum
from elastic_train.errors import GroupBroken


class Companion(Protocol):
    """What is aborted and closed together with the group."""

    def abort(self, reason: str) -> None:
        """Make everything blocked in it fail now."""

    def close(self) -> None:
        """Free what it holds."""

    def calls(self) -> int:
        """Return how many collectives user code has begun in it."""
        ...


class TorchGroup:
    """The members of one world, connected.

    The training thread uses and closes it; `abort` may be called by any thread at any time. A member whose collective
    fails aborts its own connections, so that within a round trip the failure has reached everybody.
    """

    def __init__(self, mesh: Mesh, process_group: Companion | None) -> None:
        self._mesh = mesh
        self._process_group = process_group
        self._collectives = Collectives(mesh)
        self._ordered = OrderedSum(mesh)
        self._background = _Background(self._run)
        self._lock = threading.Lock()
        self._broken: str | None = None

    @property
    def rank(self) -> int:
        """Return this member's rank."""
        return self._mesh.rank

    @property
    def world_size(self) -> int:
        """Return the number of members."""
        return self._mesh.world_size

    @property
    def broken(self) -> bool:
        """Return whether a collective failed, or `abort` or `close` was called."""
        return self._broken is not None

    def user_collectives(self) -> int:
        """Return how many collectives user code has begun in this world."""
        return 0 if self._process_group is None else self._process_group.calls()

    # ---- collectives

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every member's payload, by rank (any sizes).

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()
        gathered: list[bytes] = []
        self._run(lambda: gathered.extend(self._collectives.all_gather(payload)))
        return gathered

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum a contiguous tensor over the members, in place, in the calling thread.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()
        self._run(lambda: self._collectives.all_reduce(tensor))

    def start_all_reduce(self, tensor: torch.Tensor) -> None:
        """Begin to sum a contiguous tensor over the members, in place; `wait` before using it.

        Raises:
            GroupBroken: The group is broken already.
        """
        self._raise_if_broken()
        self._background.submit(lambda: self._collectives.all_reduce(tensor))

    def ordered_sum(self, parts: Callable[[], Sequence[torch.Tensor]], out: torch.Tensor, shards: int) -> None:
        """Sum along the tree over logical shards, in the calling thread; see `OrderedSum.all_reduce`.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()
        self._run(lambda: self._ordered.all_reduce(parts(), out, shards))

    def start_ordered_sum(self, parts: Callable[[], Sequence[torch.Tensor]], out: torch.Tensor, shards: int) -> None:
        """Begin to sum along the tree over logical shards; `wait` before using `out`.

        Raises:
            GroupBroken: The group is broken already.
        """
        self._raise_if_broken()
        self._background.submit(lambda: self._ordered.all_reduce(parts(), out, shards))

    def wait(self) -> None:
        """Wait for all that was started.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()

    def send(self, data: memoryview, receiver: int) -> None:
        """Send bytes to one member.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()
        self._run(lambda: self._mesh.exchange({receiver: data}, {}))

    def receive(self, data: memoryview, sender: int) -> None:
        """Fill `data` with bytes from one member.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        self._background.wait()
        self._run(lambda: self._mesh.exchange({}, {sender: data}))

    def _run(self, collective: Callable[[], None]) -> None:
        self._raise_if_broken()
        with self._aborting_on_failure():
            collective()

    @contextmanager
    def _aborting_on_failure(self) -> Iterator[None]:
        try:
            yield
        except GroupBroken as error:
            self.abort(str(error))
            raise

    def _raise_if_broken(self) -> None:
        if self._broken is not None:
            raise GroupBroken(self._broken)

    # ---- life

    def abort(self, reason: str = "the group was aborted") -> None:
        """Make every collective of this group, under way or later, fail now. From any thread; idempotent."""
        with self._lock:
            if self._broken is not None:
                return
            self._broken = reason
        self._mesh.abort(reason)
        if self._process_group is not None:
            self._process_group.abort(reason)

    def close(self) -> None:
        """Free the group's sockets and threads. Never blocks on a broken group."""
        with self._lock:
            self._broken = self._broken or "the group is closed"
        if self._background.busy:
            self._mesh.abort(self._broken)  # nobody will wait for what was started
        self._background.close()
        self._mesh.close()
        if self._process_group is not None:
            self._process_group.close()


class _Background:
    """A thread that runs collectives in order; started when first needed."""

    def __init__(self, run: Callable[[Callable[[], None]], None]) -> None:
        self._run = run
        self._queue: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._open: list[Future[None]] = []
        self._thread: threading.Thread | None = None

    def submit(self, collective: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name="group-collectives", daemon=True)
            self._thread.start()
        done: Future[None] = Future()
        self._open.append(done)
        self._queue.put((collective, done))

    @property
    def busy(self) -> bool:
        return any(not done.done() for done in self._open)

    def wait(self) -> None:
        """Wait for all; raise the first failure."""
        if not self._open:
            return
        started, self._open = self._open, []
        for done in started:
            done.result()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            collective, done = item
            try:
                self._run(collective)
                done.set_result(None)
            except Exception as error:  # noqa: BLE001  whatever it is belongs to the thread that waits
                done.set_exception(error)
