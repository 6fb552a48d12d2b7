"""An etcd of the job's own: a child on loopback, its data in the job's directory, gone when its owner is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from elastic_train.adapters.coordination.etcd_process import EtcdProcess

logger = logging.getLogger(__name__)

_ANY_PORT = "http://127.0.0.1:0"
"""The kernel chooses the port and etcd logs it: there is no moment in which somebody else could take it."""

_FLAGS = (
    "--name=default",
    f"--listen-client-urls={_ANY_PORT}",
    f"--advertise-client-urls={_ANY_PORT}",  # only ever read back by `etcdctl member list`
    f"--listen-peer-urls={_ANY_PORT}",
    f"--initial-advertise-peer-urls={_ANY_PORT}",  # a single member has no peers to find it
    f"--initial-cluster=default={_ANY_PORT}",
    # A single member waits for one election time-out before it elects itself, and nobody can contest it: of the
    # default second, a quarter is enough. Shorter costs processor time: raft ticks with the heartbeat, all the time.
    "--heartbeat-interval=50",
    "--election-timeout=250",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=10m",  # longer than any watch is away
    f"--quota-backend-bytes={1 << 30}",
    "--enable-grpc-gateway=false",
)


class EmbeddedEtcd:
    """Starts and ends an etcd for one job.

    Started again on the same directory it has all it had before. Should the owner be killed, the kernel kills etcd.

    Args:
        data_dir: Directory of its own, made if missing; ``etcd.log`` lies beside the data.
        on_exit: Called from another thread with the exit code, if etcd ends by itself.
        ready_timeout_s: How long it may take to serve.
    """

    def __init__(
        self, data_dir: Path, on_exit: Callable[[int], None] | None = None, ready_timeout_s: float = 20.0
    ) -> None:
        self._ready_timeout_s = ready_timeout_s
        self._process = EtcdProcess([f"--data-dir={data_dir / 'data'}", *_FLAGS], data_dir / "etcd.log", on_exit)
        self._address: str | None = None

    def start(self) -> str:
        """Start it, wait until it answers, and return its URL.

        Raises:
            ConfigurationError: There is no etcd binary, or the directory cannot be used.
            CoordinationUnavailable: It did not come up; the message carries the end of its log.
        """
        self._process.start()
        import elastic_train.adapters.coordination.etcd.client  # noqa: F401 -- takes as long as etcd does: load it meanwhile

        try:
            self._address = self._process.wait_ready(self._ready_timeout_s)
        except BaseException:
            self._process.kill()
            raise
        logger.info("etcd (pid %d) serves at %s", self._process.pid, self._address)
        return self.url

    @property
    def url(self) -> str:
        """Return the URL to connect to."""
        assert self._address is not None, "not started"
        return f"etcd://{self._address}"

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    def stop(self) -> None:
        """End it; its data stays. Idempotent."""
        self._process.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
