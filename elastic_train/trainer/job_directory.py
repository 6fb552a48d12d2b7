"""The directory of one job on the driver's machine: what lies where, who holds it, what stays behind.

<work_dir>/
├── .lock            held (flock) by the driver that runs the job
├── job.json         while it runs: where the tools find it (mode 0600)
├── etcd/            while it runs: data of the job's own coordination service
├── payload/         while it runs: the pickled train function
├── journal/run-N/   what happened in the N-th run of this name
├── logs/run-N/      one file per worker
└── checkpoints/     the default storage
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from elastic_train.config import Environment
from elastic_train.errors import ConfigurationError, JobAlreadyRunning, JobNotFound

_TEMPORARY = ("etcd", "payload")
_OWNER_ONLY_DIRECTORY = 0o700
_OWNER_ONLY_FILE = 0o600


@dataclass(frozen=True, slots=True)
class JobFile:
    """What ``job.json`` says: enough for a tool on the same machine to reach the running job."""

    job: str
    coordination: str
    storage: str
    node: str
    driver_pid: int
    driver_started_at: float  # wall clock; with the pid it names one process for good
    journal: str
    logs: str
    started_at: float

    def is_running(self) -> bool:
        """Return whether the driver that wrote it still runs (only its own machine can tell)."""
        if self.node != socket.gethostname():
            return True
        try:
            created_at: float = psutil.Process(self.driver_pid).create_time()
        except psutil.NoSuchProcess:
            return False
        return abs(created_at - self.driver_started_at) < 1.0


class JobDirectory:
    """One job's directory. `acquire` before writing into it, `release` at the end."""

    def __init__(self, job: str, path: Path) -> None:
        self.job = job
        self.path = path.expanduser().absolute()
        self.run_number = 0
        self._lock_fd: int | None = None

    # ------------------------------------------------------------------ places

    @property
    def journal(self) -> Path:
        """Directory of this run's journals."""
        return self.path / "journal" / self._run_name

    @property
    def logs(self) -> Path:
        """Directory of this run's worker logs."""
        return self.path / "logs" / self._run_name

    @property
    def etcd(self) -> Path:
        """Data directory of the job's own coordination service."""
        return self.path / "etcd"

    @property
    def payload(self) -> Path:
        """File with the pickled train function."""
        return self.path / "payload" / "train.pickle"

    @property
    def coordination_file(self) -> Path:
        """File with the URL of the coordination service, for the workers."""
        return self.path / "payload" / "coordination"

    @property
    def default_storage(self) -> str:
        """URL of the storage used where the user names none."""
        return (self.path / "checkpoints").as_uri()

    @property
    def _run_name(self) -> str:
        return f"run-{self.run_number}"

    # ------------------------------------------------------------------ life

    def acquire(self) -> None:
        """Create the directory, lock it for this driver and begin a new run in it.

        Raises:
            ConfigurationError: The directory cannot be created or written.
            JobAlreadyRunning: Another driver holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=_OWNER_ONLY_DIRECTORY)
            self._lock_fd = self._lock()
            self._remove_temporary()
            self.run_number = 1 + max((number for number, _ in self._runs()), default=0)
            for directory in (self.journal, self.logs, self.payload.parent):
                directory.mkdir(parents=True, exist_ok=True, mode=_OWNER_ONLY_DIRECTORY)
        except OSError as error:
            self.release()
            raise ConfigurationError(
                "work_dir",
                f"{self.path} cannot be used for the job's files ({error.strerror})",
                "Pass a work_dir on a file system where this user may write, or set ELASTIC_TRAIN_HOME",
            ) from error

    def publish(self, coordination: str, storage: str) -> None:
        """Write ``job.json``, by which tools find the running job."""
        me = psutil.Process()
        record = JobFile(
            job=self.job,
            coordination=coordination,
            storage=storage,
            node=socket.gethostname(),
            driver_pid=me.pid,
            driver_started_at=me.create_time(),
            journal=str(self.journal),
            logs=str(self.logs),
            started_at=time.time(),
        )
        new = self.path / "job.json.new"
        _write_privately(new, json.dumps(asdict(record), indent=2).encode())
        new.replace(self.path / "job.json")

    def release(self) -> None:
        """Remove everything temporary and unlock; idempotent."""
        if self._lock_fd is None:
            return
        try:
            self._remove_temporary()
        finally:
            # unlinked while still held: who waits for it finds out that its file is no longer the one on disk
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = None

    def write_payload(self, data: bytes) -> None:
        """Write the pickled train function, readable by the owner only."""
        _write_privately(self.payload, data)

    def write_coordination(self, url: str) -> None:
        """Write where the coordination service is, readable by the owner only: the URL may hold a password."""
        _write_privately(self.coordination_file, url.encode())

    def _lock(self) -> int:
        path = self.path / ".lock"
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY_FILE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise JobAlreadyRunning(self.job, self._who_holds_it()) from None
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)  # its last holder has just removed it: try again with the file that is there now

    def _who_holds_it(self) -> str:
        with suppress(JobNotFound):
            holder = read_job_file(self.path)
            return (
                f"is already running (process {holder.driver_pid} on {holder.node}, directory {self.path}). "
                f"Wait for it, stop it with 'elastic-train stop {self.job}', or choose another name"
            )
        return f"is already starting or ending (directory {self.path}). Wait a moment, or choose another name"

    def _remove_temporary(self) -> None:
        for name in ("job.json", "job.json.new"):
            (self.path / name).unlink(missing_ok=True)
        for name in _TEMPORARY:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _runs(self) -> Iterator[tuple[int, Path]]:
        for directory in (self.path / "journal").glob("run-*"):
            number = directory.name.removeprefix("run-")
            if number.isdecimal():
                yield int(number), directory


def _write_privately(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _OWNER_ONLY_FILE), "wb") as file:
        file.write(data)


def locate(name: str, work_dir: str | Path | None, environment: Environment) -> JobDirectory:
    """Return the directory of the job `name`: `work_dir` where given, else one below the home of all jobs."""
    return JobDirectory(name, Path(work_dir) if work_dir is not None else environment.home / name)


def read_job_file(directory: Path) -> JobFile:
    """Read ``job.json``.

    Raises:
        JobNotFound: There is none, so no job runs there.
    """
    try:
        raw = json.loads((directory / "job.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise JobNotFound(
            directory.name, f"does not run (no job.json in {directory}). Name its directory, or give --coordination URL"
        ) from None
    except ValueError as error:
        raise JobNotFound(directory.name, f"{directory / 'job.json'} cannot be read ({error}). Remove it") from error
    return JobFile(**{name: raw[name] for name in JobFile.__dataclass_fields__})


def list_jobs(home: Path) -> list[JobFile]:
    """Return all jobs whose driver runs, below `home`, oldest first."""
    found = []
    for path in sorted(home.glob("*/job.json")):
        with suppress(JobNotFound, KeyError):
            job = read_job_file(path.parent)
            if job.is_running():
                found.append(job)
    return sorted(found, key=lambda job: job.started_at)
