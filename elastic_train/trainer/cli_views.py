"""What the command line prints, as rich renderables and as JSON values."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from elastic_train.core.records import Stage, WorkerRecord, WorldRecord
from elastic_train.trainer.controls import JobStatus
from elastic_train.trainer.job_directory import JobFile
from elastic_train.trainer.journal_diff import Difference
from elastic_train.trainer.live_view import duration

_STATUS_STYLES = {"ready": "green", "starting": "dim", "leaving": "yellow", "finished": "green", "failed": "bold red"}


def jobs_table(jobs: Iterable[JobFile]) -> Table:
    """Return the running jobs of this machine."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("JOB", "SINCE", "DRIVER", "COORDINATION", "JOURNAL"):
        table.add_column(heading, overflow="fold")
    for job in jobs:
        coordination = job.coordination.rpartition("@")[2]  # without user and password
        table.add_row(
            job.job,
            duration(time.time() - job.started_at),
            f"{job.driver_pid} on {job.node}",
            coordination,
            job.journal,
        )
    return table


def status_view(status: JobStatus) -> RenderableType:
    """Return how a job stands: a headline, what it does, and its workers."""
    return Group(_headline(status), *_progress(status.progress), Text(), _workers(status))


def status_as_json(status: JobStatus) -> dict[str, Any]:
    """Return how a job stands as plain values."""
    return {
        "job": status.job.job,
        "has_controller": status.has_controller,
        "world": asdict(status.world) if status.world is not None else None,
        "workers": [asdict(worker) for worker in status.workers],
        "progress": status.progress,
    }


def _headline(status: JobStatus) -> Text:
    job, world = status.job, status.world
    size = len(world.members) if world is not None else 0
    line = Text.assemble(
        (job.job, "bold cyan"),
        "  ",
        _condition(status),
        ("   world ", "dim"),
        (str(size), "bold"),
        (f" in {job.min_workers}..{job.max_workers}", "dim"),
    )
    if world is not None:
        line.append("   membership epoch ", style="dim").append(str(world.membership_epoch))
        line.append(f"   {world.cause.value}: {world.reason}" if world.reason else "", style="dim")
    return line


def _condition(status: JobStatus) -> tuple[str, str]:
    phase = status.progress.get("phase")
    if not status.has_controller:
        return "no controller", "bold red"
    if isinstance(phase, str):
        return phase, "green" if phase == "running" else "yellow"
    return _stage(status.world)


def _stage(world: WorldRecord | None) -> tuple[str, str]:
    if world is None:
        return "gathering", "yellow"
    return {
        Stage.PROPOSED: ("changing", "yellow"),
        Stage.SEALED: ("running", "green"),
        Stage.ENDED: ("ended", "dim"),
    }[world.stage]


def _progress(progress: Mapping[str, object]) -> Iterable[Text]:
    shown = {name: value for name, value in progress.items() if name != "phase" and value not in (None, "", {}, [])}
    if shown:
        yield Text("  ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in shown.items()))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_value(part)}" for name, part in value.items())
    return str(value)


def _workers(status: JobStatus) -> Table:
    ranks = {worker: rank for rank, worker in enumerate(status.world.members)} if status.world is not None else {}
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading, justify in (
        ("RANK", "right"),
        ("WORKER", "left"),
        ("STATUS", "left"),
        ("NODE", "left"),
        ("PID", "right"),
    ):
        table.add_column(heading, justify="right" if justify == "right" else "left")
    table.add_column("VERSION", justify="right")

    def by_rank(worker: WorkerRecord) -> tuple[int, str]:
        return ranks.get(worker.worker_id, len(ranks)), worker.worker_id

    for worker in sorted(status.workers, key=by_rank):
        rank = ranks.get(worker.worker_id)
        table.add_row(
            "" if rank is None else str(rank),
            worker.worker_id,
            Text(worker.status.value, style=_STATUS_STYLES[worker.status.value]),
            worker.node,
            str(worker.pid),
            str(worker.version),
        )
    return table


def difference_view(found: Difference) -> str:
    """Return in words what two runs differ in."""
    if not found.compared:
        return "Nothing to compare: the journals have no state digests of the same steps (see digest_every_steps)."
    if found.first_different is None or found.last_same is None:
        since = "from the first digest on"
    else:
        since = f"the same after {_step(found.last_same)}"
    if found.first_different is None:
        last = "" if found.last_same is None else f", the last after {_step(found.last_same)}"
        return f"The same in all {found.compared} digests{last}."
    names = "\n".join(f"  {name}" for name in found.tensors)
    return f"Different after {_step(found.first_different)} ({since}), in {len(found.tensors)} tensors:\n{names}"


def _step(place: tuple[str, int]) -> str:
    return f"step {place[1]} of {place[0]}"
