"""SIGKILL or SIGSTOP of one of 4 workers until the next committed step, beside torchrun and the floor.

    python -m benchmarks.recovery [--repeats 30] [--peer-repeats 10]

The floor is what cannot be avoided with the same means: noticing a reset connection and re-making a gloo process group
of the survivors in the same processes, measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
from typing import Any

from benchmarks.common import finish, parse_arguments, summarize
from benchmarks.elastic_job import elastic_job
from benchmarks.floors import reform_floor
from benchmarks.peers.torchrun import measure_recovery
from elastic_train.testing.running_job import RunningJob

_WORKERS = 4


def recover_once(job: RunningJob, number: signal.Signals, rank: int) -> dict[str, float]:
    """Signal the worker of a rank; return the seconds to the next committed step and what it cost."""
    job.wait_for("a full world", lambda: len(job.ranks()) == _WORKERS)
    settled = job.wait_for_step(job.newest_step() + 10, world_size=_WORKERS)
    victim = job.ranks()[rank]
    at = job.signal(victim, number)
    recovered = job.wait_for_step(settled["step"], world_size=_WORKERS - 1, after=at)
    committed = [r for r in job.of("step_committed") if r["membership_epoch"] == recovered["membership_epoch"]]
    first = min(record.t for record in committed)
    last_before = max(r["version"] for r in job.of("step_committed") if r.t <= at)
    redone = sum(1 for r in committed if r["version"] <= last_before and r.source == committed[0].source)
    job.wait_for_step(settled["step"], world_size=_WORKERS, after=first)  # the replacement is in: as at first again
    return {"recovery_s": first - at, "steps_redone": redone}


def measure(number: signal.Signals, repeats: int) -> dict[str, Any]:
    """Break a running job again and again, every rank in turn."""
    ranks = random.Random(0)
    with elastic_job(_WORKERS, max_workers=_WORKERS) as job:
        samples = [recover_once(job, number, ranks.randrange(_WORKERS)) for _ in range(repeats)]
    return {
        "recovery_s": summarize(sample["recovery_s"] for sample in samples),
        "steps_redone": sum(sample["steps_redone"] for sample in samples),
    }


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--peer-repeats", type=int, default=10, help="measurements of torchrun (%(default)s)")
        parser.add_argument("--stop-repeats", type=int, default=10, help="SIGSTOPs (%(default)s)")

    arguments = parse_arguments(__doc__ or "", repeats=30, extend=extend)
    quick = arguments.quick
    figures: dict[str, Any] = {"workers": _WORKERS, "pid": os.getpid()}
    figures["sigkill"] = measure(signal.SIGKILL, arguments.repeats)
    print("sigkill", figures["sigkill"], flush=True)
    figures["sigstop"] = measure(signal.SIGSTOP, 2 if quick else arguments.stop_repeats)
    print("sigstop", figures["sigstop"], flush=True)
    figures["floor_s"] = summarize(reform_floor(_WORKERS, 2 if quick else 10))
    peers = [
        measure_recovery(workers=_WORKERS, agents=1, after_step=21 + 7 * index % 20)
        for index in range(2 if quick else arguments.peer_repeats)
    ]
    figures["torchrun"] = {
        "recovery_s": summarize(peer.recovery_s for peer in peers),
        "steps_redone": summarize(peer.steps_redone for peer in peers),
    }
    figures["times_faster_than_torchrun"] = (
        figures["torchrun"]["recovery_s"]["median"] / figures["sigkill"]["recovery_s"]["median"]
    )
    finish("recovery", figures, arguments)


if __name__ == "__main__":
    main()
