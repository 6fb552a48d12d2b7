"""Everything that one job is run with, after arguments, environment variables and defaults were put together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elastic_train.config import CheckpointConfig, DataConfig, FailureConfig, ScaleConfig, TimeoutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """The checked settings of one job.

    Attributes:
        coordination: URL of the coordination service; None: the job starts an etcd of its own.
        storage: URL below which the job's checkpoints lie; None: in the job's directory.
        scale, data: As the user gave them; `ScaleConfig.resolve` and `DataConfig.resolve` fill in the rest.
        progress: Whether to show a live view or plain lines; False: logs only.
    """

    name: str
    scale: ScaleConfig
    data: DataConfig
    failure: FailureConfig
    checkpoint: CheckpointConfig
    timeouts: TimeoutConfig
    coordination: str | None
    storage: str | None
    framework: str
    preload: tuple[str, ...]
    progress: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker process is told when it starts: the argument of ``trainer.worker_process:main``, as a plain dict.

    Attributes:
        job: Name of the job. What all must agree on (bounds, shards, seed) is in its JobRecord.
        coordination: URL of the coordination service, or the path of a file that holds it by the time a worker starts
            (so the warm pool can import while the service comes up, and no password is in a process's arguments).
        payload: File with the pickled train function (``payload.load_payload``).
        journal: Directory in which the worker writes its own journal.
        storage: URL below which the job's checkpoints lie.
        fence_base: Added to a world's fence (an etcd revision) for durable writes, so that fences rise from run to run
            though every run may have a fresh etcd.
        framework: Name of the adapter below ``adapters.framework``.
        checkpoint: Fields of CheckpointConfig. timeouts: of TimeoutConfig.
    """

    job: str
    coordination: str
    payload: str
    journal: str
    storage: str
    fence_base: int
    framework: str
    checkpoint: dict[str, Any]
    timeouts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, as launchers carry it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> WorkerSpec:
        """Read it back; unknown fields are left out."""
        return cls(**{name: value for name, value in raw.items() if name in cls.__dataclass_fields__})

    def coordination_url(self) -> str:
        """Return where the coordination service is."""
        return self.coordination if "://" in self.coordination else Path(self.coordination).read_text()

    def checkpoint_config(self) -> CheckpointConfig:
        """Return when to checkpoint."""
        return CheckpointConfig(**self.checkpoint)

    def timeout_config(self) -> TimeoutConfig:
        """Return how long to wait for what."""
        return TimeoutConfig(**self.timeouts)


def worker_spec(settings: JobSettings, *, coordination: str, storage: str, payload: Path, journal: Path) -> WorkerSpec:
    """Return what the workers of a job are told."""
    return WorkerSpec(
        job=settings.name,
        coordination=coordination,
        payload=str(payload),
        journal=str(journal),
        storage=storage,
        fence_base=time.time_ns() // 1_000_000,
        framework=settings.framework,
        checkpoint=asdict(settings.checkpoint),
        timeouts=asdict(settings.timeouts),
    )


def default_name(train: Callable[..., Any]) -> str:
    """Return a name for a job that was given none: readable, sortable and never used before."""
    function = getattr(train, "__name__", "") or type(train).__name__
    stem = "".join(character if character.isalnum() and character.isascii() else "-" for character in function)
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime())
    return f"{stem.strip('-')[:32] or 'job'}-{moment}-{uuid.uuid4().hex[:4]}"
