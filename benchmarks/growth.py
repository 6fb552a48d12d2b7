"""Growth 3 to 4 and shrinkage 4 to 3 of a running job: stall, time to the larger world, transfer of a 400 MB state.

    python -m benchmarks.growth [--repeats 10]

The floor of the state transfer is a plain gloo broadcast of as many bytes between two processes, measured in the same
run.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from typing import Any

from benchmarks.common import finish, median, parse_arguments, summarize
from benchmarks.elastic_job import elastic_job
from benchmarks.floors import broadcast_floor
from benchmarks.peers.torchrun import measure_growth
from elastic_train import ElasticTrainer
from elastic_train.journal import Record
from elastic_train.testing.running_job import RunningJob

_SMALL, _LARGE = 3, 4
_STATE_MB = 400


def commits_of(job: RunningJob, worker_id: str) -> list[Record]:
    """Return the steps that one worker committed, in order."""
    return [record for record in job.of("step_committed") if record.source == worker_id]


def resize_once(job: RunningJob, trainer: ElasticTrainer, workers: int) -> dict[str, float]:
    """Resize; return seconds to the first step of the new world, and the stall of rank 0 beyond a typical step."""
    witness = job.ranks()[0]
    at = time.monotonic()
    trainer.resize(workers)
    changed = job.wait_for_step(0, world_size=workers, after=at)
    job.wait_for_step(changed["step"] + 10, world_size=workers)
    times = [record.t for record in commits_of(job, witness)]
    gaps = [after - before for before, after in pairwise(times) if after > at]
    typical = median(after - before for before, after in pairwise(times) if after <= at)
    received = [record for record in job.of("state_received") if record.t > at]
    return {
        "to_first_step_s": min(r.t for r in job.of("step_committed") if r.t > at and _size(job, r) == workers) - at,
        "stall_s": max(gaps) - typical,
        "transfer_s": max((record["seconds"] for record in received), default=0.0),
    }


def _size(job: RunningJob, record: Record) -> int:
    return job.world_size(record["membership_epoch"])


def measure(repeats: int, **config: Any) -> dict[str, Any]:
    """Grow and shrink a running job again and again."""
    grown, shrunk = [], []
    with elastic_job(_SMALL, max_workers=_LARGE, **config) as job:
        trainer: Any = job.trainer
        job.wait_for_step(30, world_size=_SMALL)
        for _ in range(repeats):
            grown.append(resize_once(job, trainer, _LARGE))
            shrunk.append(resize_once(job, trainer, _SMALL))
    figures = {"grow": {name: summarize(g[name] for g in grown) for name in grown[0]}}
    figures["shrink"] = {"stall_s": summarize(s["stall_s"] for s in shrunk)}
    return figures


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--peer-repeats", type=int, default=5, help="measurements of torchrun (%(default)s)")

    arguments = parse_arguments(__doc__ or "", repeats=10, extend=extend)
    repeats = arguments.repeats
    figures: dict[str, Any] = {"small_state": measure(repeats)}
    print("small_state", figures["small_state"], flush=True)
    large = measure(repeats, ballast_mb=_STATE_MB)
    floor = broadcast_floor(int(_STATE_MB * 1e6), repeats)
    large["state_mb"] = _STATE_MB
    large["broadcast_floor_s"] = summarize(floor)
    large["share_of_broadcast_speed"] = median(floor) / large["grow"]["transfer_s"]["median"]
    figures["large_state"] = large
    print("large_state", large, flush=True)
    peers = [measure_growth(_SMALL) for _ in range(min(repeats, arguments.peer_repeats))]
    figures["torchrun"] = {
        "to_first_step_s": summarize(peer.grow_s for peer in peers),
        "stall_s": summarize(peer.stall_s for peer in peers),
        "steps_redone": summarize(peer.steps_redone for peer in peers),
    }
    finish("growth", figures, arguments)


if __name__ == "__main__":
    main()
