"""The composition root of a worker process: builds the worker from its spec and runs the train function."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastic_train import context
from elastic_train.adapters.coordination import connect
from elastic_train.adapters.framework import load_framework
from elastic_train.core.records import JobRecord, Keys, WorkerId, WorkerRecord, WorkerStatus
from elastic_train.errors import JobNotFound
from elastic_train.journal import Journal
from elastic_train.ports import Coordination
from elastic_train.trainer.payload import load_payload
from elastic_train.trainer.settings import WorkerSpec
from elastic_train.worker.agent import Agent
from elastic_train.worker.process import run_train_function
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.saving import CheckpointSaver
from storage import open_store

_SWITCH_INTERVAL_S = 0.001  # the agent must get the interpreter soon when the world breaks, also from busy Python code


def main(raw_spec: dict[str, Any]) -> None:
    """Be a worker: the entry point that launchers call. Ends by SystemExit with the worker's exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    spec = WorkerSpec.from_dict(raw_spec)
    place = _Place(WorkerId(raw_spec["worker_id"]), int(raw_spec["worker_index"]))
    with _worker(spec, place) as runtime:

        def train() -> Any:
            return load_payload(Path(spec.payload))()  # what cannot be loaded here is the user's failure too

        exit_code = run_train_function(runtime, train, save_at_end=spec.checkpoint_config().at_end)
    sys.exit(exit_code)


@dataclass(frozen=True, slots=True)
class _Place:
    worker_id: WorkerId
    local_rank: int


@contextmanager
def _worker(spec: WorkerSpec, place: _Place) -> Iterator[Runtime]:
    node = socket.gethostname()
    timeouts = spec.timeout_config()
    journal = Journal(Path(spec.journal) / f"{place.worker_id}.jsonl", source=place.worker_id, node=node)
    journal.record("worker_started", worker_id=place.worker_id, pid=os.getpid(), node=node)
    coordination = connect(spec.coordination_url())
    record = WorkerRecord(worker_id=place.worker_id, status=WorkerStatus.STARTING, node=node, pid=os.getpid())
    agent = Agent(coordination, Keys(spec.job), record, timeouts.lease_ttl_s)
    framework = load_framework(spec.framework)
    framework.prepare_process(place.local_rank)
    runtime = Runtime(
        job=_job_record(coordination, spec.job),
        agent=agent,
        worker=record,
        local_rank=place.local_rank,
        coordination=coordination,
        framework=framework,
        journal=journal,
        checkpoints=CheckpointSaver(
            open_store(spec.storage),
            spec.job,
            spec.checkpoint_config(),
            fence_base=spec.fence_base,
            interrupted=lambda: agent.interrupted,
            journal=journal,
        ),
        formation_timeout_s=timeouts.formation_timeout_s,
    )
    context.install(runtime.context, runtime)
    try:
        yield runtime
    finally:
        context.install(None)
        runtime.close()
        agent.close()
        coordination.close()
        journal.close()


def _job_record(coordination: Coordination, job: str) -> JobRecord:
    found = coordination.get(Keys(job).job)
    if found is None:
        raise JobNotFound(job, "its record is not in the coordination service; was it ended meanwhile?")
    return JobRecord.from_bytes(found.value)
