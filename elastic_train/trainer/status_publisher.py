"""Writes the job's progress under its ``status`` key, for ``elastic-train status``, at most once a second."""

from __future__ import annotations

import json
import logging
import threading
import time
from types import TracebackType
from typing import Any, Self

from elastic_train.core.records import Keys
from elastic_train.errors import CoordinationError
from elastic_train.ports import Coordination, Put
from elastic_train.trainer.progress_model import ProgressModel

_log = logging.getLogger(__name__)

_EVERY_S = 1.0


class StatusPublisher:
    """A thread that writes what it was given last, so that a slow coordination service never holds up the screen."""

    def __init__(self, coordination: Coordination, job: str) -> None:
        self._coordination = coordination
        self._key = Keys(job).status
        self._newest: dict[str, Any] | None = None
        self._published_at = float("-inf")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="elastic-status", daemon=True)

    def publish(self, model: ProgressModel) -> None:
        """Take the present state for the next write."""
        now = time.monotonic()
        if now - self._published_at >= _EVERY_S / 2:
            self._published_at = now
            self._newest = status_of(model, now)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        written: dict[str, Any] | None = None
        while not self._closing.wait(_EVERY_S):
            newest = self._newest
            if newest is None or newest == written:
                continue
            try:
                self._coordination.commit([Put(self._key, json.dumps(newest).encode())])
                written = newest
            except CoordinationError as error:
                _log.debug("the job's status was not written: %s", error)


def status_of(model: ProgressModel, now: float) -> dict[str, Any]:
    """Return what is worth telling as plain values."""
    eta_s = model.eta_s(now)
    return {
        "phase": model.phase,
        "step": model.step,
        "total_steps": model.total_steps,
        "metrics": dict(model.metrics),
        "samples_per_s": round(model.samples_per_s(now), 1),
        "eta_s": None if eta_s is None else round(eta_s),
    }
