"""TCP connections between all members of a world, and the pattern all collectives are made of: all exchange with all.

Why not gloo's collectives: gloo has no abort (pytorch #130345), and where a connection breaks while an operation is
half-way through it, the thread that waits is never told (`Pair::signalException` forgets the operations it has begun
to write or read), so neither the loss of a peer nor a shutdown of the sockets from outside ends the wait. Here every
wait also waits for `abort`. And it is faster where workers share cores: two rounds of messages instead of gloo's ring
of 2 (n - 1) dependent hops.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import weakref
from collections.abc import Callable, Mapping

from elastic_train.errors import GroupBroken

_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
_EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_EMPTY = memoryview(b"")


class Mesh:
    """Connected, non-blocking sockets by rank (`None` at the own rank).

    One thread at a time may exchange; `abort` may be called from any thread at any time.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket], wakeup: Wakeup) -> None:
        self.rank = rank
        self.world_size = len(peers) + 1
        self._peers = dict(peers)
        self._by_descriptor = {peer.fileno(): other for other, peer in peers.items()}
        self._wakeup = wakeup
        self._lock = threading.Lock()  # orders `abort` and `close`
        self._poll = select.epoll()
        self._poll.register(wakeup.fileno(), select.EPOLLIN)
        for peer in peers.values():
            self._poll.register(peer.fileno(), _EDGES)
        _close_in_children.add(self)

    def exchange(
        self,
        outgoing: Mapping[int, memoryview],
        incoming: Mapping[int, memoryview],
        received: Callable[[int], None] | None = None,
    ) -> None:
        """Send to and receive from peers at the same time; return when all bytes have been handed over and have come.

        Args:
            outgoing: What goes to which rank.
            incoming: Where the bytes from which rank go; their number must be known.
            received: Called with the rank whose bytes are complete, in the order of completion.

        Raises:
            GroupBroken: A peer is gone, or `abort` was called.
        """
        self._wakeup.raise_if_set()
        transfer = _Transfer(self._peers, outgoing, incoming, received)
        for rank in {*outgoing, *incoming}:  # edges may have passed before this exchange began
            transfer.write(rank)
            transfer.read(rank)
        while transfer.pending:
            for descriptor, events in self._poll.poll():
                rank = self._by_descriptor.get(descriptor, -1)
                if rank < 0:
                    self._wakeup.raise_if_set()
                if events & _WRITE:
                    transfer.write(rank)
                if events & _READ:
                    transfer.read(rank)

    def abort(self, reason: str) -> None:
        """End the exchange under way, and every later one; peers see the end of the stream at once. From any thread."""
        with self._lock:
            self._wakeup.set(reason)
            for peer in self._peers.values():
                try:
                    peer.shutdown(socket.SHUT_RDWR)
                except OSError:  # gone already
                    continue

    def close(self) -> None:
        """Close the connections. What was handed over still reaches the peers, unless the mesh was aborted."""
        _close_in_children.discard(self)
        with self._lock:
            self._wakeup.set("the group is closed")
            self._wakeup.close()
            self._poll.close()
            for peer in self._peers.values():
                peer.close()
            self._peers.clear()

    def close_in_child(self) -> None:
        """Give up the descriptors in a forked child, where they would keep the connections of a dead parent open."""
        for peer in self._peers.values():
            peer.close()


class Wakeup:
    """A flag, set once and for all with a reason, that a poll can wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Return why it was set; None if it was not."""
        return self._reason

    def fileno(self) -> int:
        """Return the descriptor; readable once the flag is set."""
        return self._descriptor

    def set(self, reason: str) -> None:
        """Set the flag; the first reason stays. From any thread."""
        with self._lock:
            self._reason = self._reason or reason
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def raise_if_set(self) -> None:
        """Do nothing if the flag is not set.

        Raises:
            GroupBroken: It is; with the reason.
        """
        if self._reason is not None:
            raise GroupBroken(self._reason)

    def close(self) -> None:
        """Free the descriptor."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class _Transfer:
    """What of one exchange is still to be sent and received."""

    def __init__(
        self,
        peers: Mapping[int, socket.socket],
        outgoing: Mapping[int, memoryview],
        incoming: Mapping[int, memoryview],
        received: Callable[[int], None] | None,
    ) -> None:
        self._peers = peers
        self._outgoing = {rank: data for rank, data in outgoing.items() if len(data)}
        self._incoming = {rank: data for rank, data in incoming.items() if len(data)}
        self._received = received
        if received is not None:
            for rank in incoming.keys() - self._incoming.keys():
                received(rank)

    @property
    def pending(self) -> bool:
        return bool(self._outgoing or self._incoming)

    def write(self, rank: int) -> None:
        data = self._outgoing.get(rank, _EMPTY)
        if not len(data):
            return
        try:
            while len(data):
                data = data[self._peers[rank].send(data) :]
        except BlockingIOError:
            self._outgoing[rank] = data
            return
        except OSError as error:
            raise _broken(rank, error) from None
        del self._outgoing[rank]

    def read(self, rank: int) -> None:
        data = self._incoming.get(rank, _EMPTY)
        if not len(data):
            return
        try:
            while len(data):
                count = self._peers[rank].recv_into(data)
                if count == 0:
                    raise _broken(rank, None)
                data = data[count:]
        except BlockingIOError:
            self._incoming[rank] = data
            return
        except OSError as error:
            raise _broken(rank, error) from None
        del self._incoming[rank]
        if self._received is not None:
            self._received(rank)


def _broken(rank: int, error: Exception | None) -> GroupBroken:
    cause = "it closed the connection" if error is None else f"{type(error).__name__}: {error}"
    return GroupBroken(f"the connection to rank {rank} broke: {cause}")


_close_in_children: weakref.WeakSet[Mesh] = weakref.WeakSet()


def _close_all_in_child() -> None:
    for mesh in list(_close_in_children):
        mesh.close_in_child()


os.register_at_fork(after_in_child=_close_all_in_child)
