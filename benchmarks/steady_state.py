"""Median step time beside plain DDP under torchrun, in turns within one run, with 4 and with 8 workers.

python -m benchmarks.steady_state [--repeats 10] [--steps 300]
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

from benchmarks.common import finish, median, parse_arguments, summarize
from benchmarks.elastic_job import elastic_job
from benchmarks.peers.torchrun import measure_step_times

_WARM_UP = 30
_COOL_DOWN = 16
_WORLDS = (4, 8)


def our_step_times(workers: int, steps: int) -> list[float]:
    """Return the seconds between rank 0's commits, after a warm-up."""
    with elastic_job(workers, max_workers=workers, steps=_WARM_UP + steps + _COOL_DOWN) as job:
        job.result()  # nobody looks at the journal meanwhile but the driver itself, as in a user's run
        first = job.ranks()[0]
        times = [record.t for record in job.of("step_committed") if record.source == first]
    return [after - before for before, after in pairwise(times)][_WARM_UP : _WARM_UP + steps]


def compare(workers: int, repeats: int, steps: int) -> dict[str, Any]:
    """Run ours and DDP in turns; the ratio is taken pair by pair, so that a drifting machine hurts both alike."""
    ours, ddp = [], []
    for _ in range(repeats):
        ours.append(median(our_step_times(workers, steps)))
        ddp.append(median(measure_step_times(workers, steps=steps)))
        print(f"{workers} workers: ours {ours[-1] * 1e3:.2f} ms, DDP {ddp[-1] * 1e3:.2f} ms", flush=True)
    return {
        "ours_median_s": summarize(ours),
        "ddp_median_s": summarize(ddp),
        "ratio": summarize(mine / theirs for mine, theirs in zip(ours, ddp, strict=True)),
    }


def main() -> None:
    """Measure and print."""

    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--steps", type=int, default=300, help="steps of each run (%(default)s)")

    arguments = parse_arguments(__doc__ or "", repeats=10, extend=extend)
    figures = {f"{workers}_workers": compare(workers, arguments.repeats, arguments.steps) for workers in _WORLDS}
    finish("steady_state", figures, arguments)


if __name__ == "__main__":
    main()
