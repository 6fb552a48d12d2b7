"""Connect the members of a world with each other.

Every member listens, publishes where and a secret through the exchange, connects to those of lower rank and accepts
those of higher rank. A connection begins with who connects and the secret of whom it wants, so that a stranger, or a
late member of another membership epoch that meets a re-used port, is turned away.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

from elastic_train.adapters.framework.torch.mesh import Mesh, Wakeup
from elastic_train.errors import GroupBroken
from elastic_train.ports import Formation

_HELLO = struct.Struct("<4sIQ16s")  # magic, rank, membership epoch, the secret of the one who is called
_MAGIC = b"etm1"

Fetch = Callable[[Sequence[str], float], list[bytes]]


def connect(formation: Formation, wakeup: Wakeup, fetch: Fetch) -> Mesh:
    """Connect with all other members.

    Args:
        formation: The world to connect.
        wakeup: Ends the attempt when set.
        fetch: Waits for values of the exchange, and ends when `wakeup` is set.

    Raises:
        GroupBroken: A member did not come in time or is gone, or `wakeup` was set.
    """
    if formation.world_size == 1:
        return Mesh(formation.rank, {}, wakeup)
    with _Connecting(formation, wakeup) as connecting:
        return connecting.run(fetch)


class _Connecting:
    def __init__(self, formation: Formation, wakeup: Wakeup) -> None:
        self._formation = formation
        self._wakeup = wakeup
        self._deadline = time.monotonic() + formation.timeout_s
        self._secret = secrets.token_bytes(16)
        self._listener = _listen(formation.address, formation.world_size)
        self._greeting: dict[socket.socket, bytes] = {}  # accepted, and what of their hello has come
        self._calling: dict[socket.socket, int] = {}  # to which rank
        self._connected: dict[int, socket.socket] = {}
        self._members: list[dict[str, Any]] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup.fileno(), selectors.EVENT_READ, wakeup.raise_if_set)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._selector.close()
        self._listener.close()
        for unfinished in (*self._greeting, *self._calling, *self._connected.values()):
            unfinished.close()

    def run(self, fetch: Fetch) -> Mesh:
        formation = self._formation
        mine = {
            "host": formation.address,
            "port": self._listener.getsockname()[1],
            "secret": self._secret.hex(),
        }
        formation.exchange.set(f"mesh/{formation.rank}", json.dumps(mine).encode())
        published = fetch([f"mesh/{rank}" for rank in range(formation.world_size)], formation.timeout_s)
        self._members = [json.loads(data) for data in published]
        for rank in range(formation.rank):
            self._call(rank)
        while len(self._connected) < formation.world_size - 1:
            self._advance()
        connected, self._connected = self._connected, {}
        for peer in connected.values():
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return Mesh(formation.rank, connected, self._wakeup)

    def _advance(self) -> None:
        """Wait for the next things to happen, and handle them."""
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            missing = sorted(set(range(self._formation.world_size)) - {*self._connected, self._formation.rank})
            members = ", ".join(self._describe(rank) for rank in missing)
            raise GroupBroken(f"not connected within {self._formation.timeout_s:g} s: {members}")
        for key, _ in self._selector.select(remaining_s):
            key.data()

    def _call(self, rank: int) -> None:
        member = self._members[rank]
        family, kind, _, _, address = socket.getaddrinfo(member["host"], member["port"], type=socket.SOCK_STREAM)[0]
        caller = socket.socket(family, kind)
        caller.setblocking(False)
        self._calling[caller] = rank
        self._selector.register(caller, selectors.EVENT_WRITE, partial(self._greet, caller))
        caller.connect_ex(address)

    def _greet(self, caller: socket.socket) -> None:
        """Say who we are, once connected. The hello fits any socket's buffer."""
        rank = self._calling[caller]
        secret = bytes.fromhex(self._members[rank]["secret"])
        try:
            code = caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            caller.sendall(_HELLO.pack(_MAGIC, self._formation.rank, self._formation.world.membership_epoch, secret))
        except OSError as error:  # it listened before it published the address: refused means that it is gone
            raise GroupBroken(f"cannot connect to {self._describe(rank)}: {error.strerror}") from error
        self._selector.unregister(caller)
        self._connected[rank] = caller
        del self._calling[caller]

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it went away again
            return
        accepted.setblocking(False)
        self._greeting[accepted] = b""
        self._selector.register(accepted, selectors.EVENT_READ, partial(self._read_hello, accepted))

    def _read_hello(self, accepted: socket.socket) -> None:
        hello = self._greeting[accepted]
        try:
            data = accepted.recv(_HELLO.size - len(hello))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        hello += data
        self._greeting[accepted] = hello
        if data and len(hello) < _HELLO.size:
            return
        self._selector.unregister(accepted)
        del self._greeting[accepted]
        if data:
            self._admit(accepted, hello)
        else:
            accepted.close()

    def _admit(self, accepted: socket.socket, hello: bytes) -> None:
        magic, rank, membership_epoch, secret = _HELLO.unpack(hello)
        ours = (
            magic == _MAGIC
            and membership_epoch == self._formation.world.membership_epoch
            and secrets.compare_digest(secret, self._secret)
            and self._formation.rank < rank < self._formation.world_size
            and rank not in self._connected
        )
        if ours:
            self._connected[rank] = accepted
        else:
            accepted.close()

    def _describe(self, rank: int) -> str:
        member = self._members[rank]
        return f"{self._formation.world.members[rank]} (rank {rank}) at {member['host']}:{member['port']}"


def _listen(address: str, world_size: int) -> socket.socket:
    """Listen on the worker's own address; on all of them where that one is not this machine's (behind a NAT)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for host in (address, ""):
        try:
            listener = socket.create_server((host, 0), family=family, backlog=max(16, world_size))
        except OSError as error:
            if host == "" or error.errno != errno.EADDRNOTAVAIL:
                raise GroupBroken(f"cannot listen on {address}: {error}") from error
            continue
        listener.setblocking(False)
        return listener
    raise AssertionError("unreachable")
