"""A real etcd cluster on loopback whose members can be killed, paused and restarted one by one.

Fixed ports are needed here, because members must find each other again; they lie below the range from which the kernel
gives out ports by itself, and a cluster that loses the race for one starts again on others.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from elastic_train.adapters.coordination.etcd.admin import EtcdAdmin
from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd.transport import Timing
from elastic_train.adapters.coordination.etcd.url import EtcdAddress, Tls
from elastic_train.adapters.coordination.etcd_process import EtcdProcess
from elastic_train.errors import CoordinationUnavailable
from elastic_train.testing.certificates import Certificates

_PORTS = range(20_000, 30_000)
_ATTEMPTS = 4
_READY_S = 30.0
_POLL_S = 0.02


class EtcdCluster:
    """Members on loopback, numbered from 0, with all their files in one directory.

    Args:
        folder: An existing directory of its own.
        size: How many members: 1, 3 or 5.
        certificates: With them, clients connect over TLS and must show a certificate of the same authority.
        root_password: With it, authentication is on.
        flags: More flags for each member.
    """

    def __init__(
        self,
        folder: Path,
        size: int = 3,
        *,
        certificates: Certificates | None = None,
        root_password: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._size = size
        self._certificates = certificates
        self._root_password = root_password
        self._flags = tuple(flags)
        self._ports: list[tuple[int, int]] = []
        self.members: list[EtcdProcess] = []

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Start all members and wait until they serve.

        Raises:
            CoordinationUnavailable: They do not come up.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            self._lay_out(attempt)
            try:
                self._bring_up()
            except CoordinationUnavailable as error:
                self.stop()
                if "address already in use" not in str(error) or attempt == _ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                return

    def stop(self) -> None:
        """End all members, also paused ones."""
        for member in self.members:
            member.kill()

    def restart(self, index: int) -> None:
        """Start a member that was killed, on its old data, and wait until it serves.

        Raises:
            CoordinationUnavailable: It does not come up.
        """
        self.members[index].start()
        self.members[index].wait_ready(_READY_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------ clients

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Return each member's ``host:port``, by index."""
        return tuple(f"127.0.0.1:{client}" for client, _ in self._ports)

    def address(
        self, *, members: Sequence[int] | None = None, user: str | None = None, password: str = ""
    ) -> EtcdAddress:
        """Return the address of some members (default: all), as root unless another user is named."""
        endpoints = tuple(self.endpoints[index] for index in (range(self._size) if members is None else members))
        if user is None and self._root_password is not None:
            user, password = "root", self._root_password
        files = self._certificates
        tls = Tls(files.ca, files.cert, files.key) if files else None
        return EtcdAddress(endpoints, user, password if user is not None else None, tls)

    @contextlib.contextmanager
    def client(self, members: Sequence[int] | None = None, timing: Timing | None = None) -> Iterator[EtcdCoordination]:
        """Open a client of some members (default: all) for a block."""
        client = EtcdCoordination.at(self.address(members=members), timing)
        try:
            yield client
        finally:
            client.close()

    def leader(self) -> int:
        """Wait until a running member leads, and return its index.

        Raises:
            CoordinationUnavailable: None does for too long.
        """
        with self.client() as client:
            admin = EtcdAdmin(client.transport)
            deadline = time.monotonic() + _READY_S
            while time.monotonic() < deadline:
                for index, endpoint in enumerate(self.endpoints):
                    if self.members[index].is_running and _leads(admin, endpoint):
                        return index
                time.sleep(_POLL_S)
        raise CoordinationUnavailable(f"no member of {self.endpoints} leads")

    # ------------------------------------------------------------------ inside

    def _lay_out(self, attempt: int) -> None:
        """Choose ports and directories for this attempt."""
        chosen = iter(_free_ports(2 * self._size))
        self._ports = [(next(chosen), next(chosen)) for _ in range(self._size)]
        folder = self._folder / f"attempt-{attempt}"
        self.members = [
            EtcdProcess(self._arguments(index, folder), folder / f"{index}.log") for index in range(self._size)
        ]

    def _arguments(self, index: int, folder: Path) -> list[str]:
        client, peer = self._ports[index]
        scheme = "https" if self._certificates else "http"
        cluster = ",".join(f"m{other}=http://127.0.0.1:{port}" for other, (_, port) in enumerate(self._ports))
        arguments = [
            f"--name=m{index}",
            f"--data-dir={folder / f'{index}.data'}",
            f"--listen-client-urls={scheme}://127.0.0.1:{client}",
            f"--advertise-client-urls={scheme}://127.0.0.1:{client}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster={cluster}",
            "--heartbeat-interval=50",  # half of etcd's defaults: a leader is missed in half a second
            "--election-timeout=500",
            "--enable-grpc-gateway=false",
        ]
        if self._certificates:
            arguments += [
                f"--cert-file={self._certificates.cert}",
                f"--key-file={self._certificates.key}",
                f"--trusted-ca-file={self._certificates.ca}",
                "--client-cert-auth",
            ]
        return [*arguments, *self._flags]

    def _bring_up(self) -> None:
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait_ready(_READY_S)
        if self._root_password is not None:
            anonymous = EtcdCoordination.at(EtcdAddress(self.endpoints, tls=self.address().tls))
            try:
                EtcdAdmin(anonymous.transport).enable_authentication(self._root_password)
            finally:
                anonymous.close()


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: It did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {condition}")
        time.sleep(_POLL_S)


def _leads(admin: EtcdAdmin, endpoint: str) -> bool:
    try:
        return admin.status(endpoint).leads
    except CoordinationUnavailable:
        return False


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at this moment."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
