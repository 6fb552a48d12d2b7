"""Find and shut down exactly the sockets of one gloo group.

gloo has no abort (pytorch #130345): a member that waits for a dead peer's data waits for its time-out. What does wake
it is shutdown(2) on its TCP connections, from any thread. Which sockets are the group's is known from the addresses
that the members exchange through the store: a connection belongs to the group if its local end is this process's
listener or its remote end a peer's listener. Nothing else of the process is touched.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Endpoint = tuple[str, int]
"""Numeric host and port."""

_DESCRIPTORS = Path("/proc/self/fd")
_LENGTH = struct.Struct("=Q")
_SEQUENCE = struct.Struct("=q")
_SOCKADDR_BYTES = 128  # sizeof(struct sockaddr_storage)


@dataclass(frozen=True, slots=True)
class RankAddress:
    """Where one member of a gloo group listens, and by which numbers its peers announce themselves there.

    `sequences[r]` is what the member of rank r sends as its first 8 bytes if it is the one that connects.
    """

    listener: Endpoint
    sequences: tuple[int, ...]

    @classmethod
    def parse(cls, blob: bytes) -> RankAddress | None:
        """Read what gloo publishes for a rank; None if it is something else.

        Layout (`Rank::bytes` in gloo/transport/tcp/context.cc): length-prefixed host name, length-prefixed
        {sockaddr_storage, sequence number}, one sequence number per rank.
        """
        try:
            (name_bytes,) = _LENGTH.unpack_from(blob, 0)
            offset = _LENGTH.size + name_bytes
            (address_bytes,) = _LENGTH.unpack_from(blob, offset)
            offset += _LENGTH.size
            address = blob[offset : offset + address_bytes]
            sequences = blob[offset + address_bytes :]
            if address_bytes < _SOCKADDR_BYTES or len(address) < address_bytes or len(sequences) % _SEQUENCE.size:
                return None
            return cls(_endpoint(address), tuple(number for (number,) in _SEQUENCE.iter_unpack(sequences)))
        except (struct.error, ValueError, OverflowError):
            return None


def _endpoint(sockaddr: bytes) -> Endpoint:
    (family,) = struct.unpack_from("=H", sockaddr, 0)
    (port,) = struct.unpack_from("!H", sockaddr, 2)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8]), port
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24]), port
    raise ValueError(f"address family {family}")


@dataclass(eq=False)
class GroupSockets:
    """The addresses of one group's members, filled in while it forms; later also those of its subgroups."""

    own: list[RankAddress] = field(default_factory=list)
    peers: list[RankAddress] = field(default_factory=list)

    def shut_down(self) -> int:
        """Shut down every connection of the group; return how many there were. From any thread.

        The listening sockets are left alone: gloo's event loop ends the process when accept(2) fails on one.
        """
        count = 0
        for _, duplicate in self._scan(listening=False):  # a number could be given to another socket meanwhile
            with duplicate:
                try:
                    duplicate.shutdown(socket.SHUT_RDWR)
                    count += 1
                except OSError:  # not connected any more
                    continue
        return count

    def stand_in_for_missing_peers(self) -> None:
        """Connect to this process's own listeners in the place of peers that never did.

        The side that listens has no socket yet that could be shut down: it waits for the peer to connect and send its
        sequence number, for as long as the group's time-out. A connection of our own that sends the number, and is
        closed then, ends the wait at once. For a peer that did connect it is an extra number that gloo puts aside.
        """
        for address in tuple(self.own):
            for number in address.sequences:
                try:
                    with socket.create_connection(address.listener, timeout=0.5) as connection:
                        connection.sendall(_SEQUENCE.pack(number))
                except OSError:  # the listener is gone: then nobody waits at it
                    break

    def detach_in_child(self) -> None:
        """In a forked child: put /dev/null in the place of the group's sockets.

        A data loader's process inherits them (gloo does not set CLOEXEC) and would keep the connections of its dead
        parent open, so that no peer sees a reset.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            for number, duplicate in list(self._scan(listening=True)):
                duplicate.close()
                os.dup2(null, number, inheritable=False)
        finally:
            os.close(null)

    def _scan(self, *, listening: bool) -> Iterator[tuple[int, socket.socket]]:
        own = {address.listener for address in tuple(self.own)}
        peers = {address.listener for address in tuple(self.peers)} - own
        for number in _socket_numbers():
            duplicate = _duplicate(number)
            if duplicate is None:
                continue
            if _belongs(duplicate, own, peers, listening=listening):
                yield number, duplicate
            else:
                duplicate.close()


def _socket_numbers() -> Iterator[int]:
    for name in os.listdir(_DESCRIPTORS):  # noqa: PTH208  a Path per descriptor would double the cost of an abort
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except OSError:  # closed meanwhile, or the listing's own descriptor
            continue


def _duplicate(number: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(number))
    except OSError:
        return None


def _belongs(
    candidate: socket.socket, own: Collection[Endpoint], peers: Collection[Endpoint], *, listening: bool
) -> bool:
    if candidate.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    try:
        if candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return listening and candidate.getsockname()[:2] in own
        if candidate.getsockname()[:2] in own:
            return True
        return candidate.getpeername()[:2] in peers
    except OSError:  # not connected
        return False
