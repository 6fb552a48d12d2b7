"""From the start of the user's script to the first committed step, beside torchrun, in turns.

python -m benchmarks.cold_start [--repeats 10]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.common import ROOT, finish, parse_arguments, summarize
from benchmarks.peers.torchrun import measure_cold_start

_WORKERS = 4

_SCRIPT = f"""
import time
from benchmarks.elastic_job import elastic_job

if __name__ == "__main__":
    with elastic_job({_WORKERS}, max_workers={_WORKERS}) as job:
        job.wait_for_step(0, world_size={_WORKERS})
        print(min(record.t for record in job.of("step_committed")))
"""


def our_cold_start() -> float:
    """Start a fresh interpreter that runs the job; return the seconds to its first committed step."""
    at = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1]) - at


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__ or "", repeats=10)
    ours, peer = [], []
    for _ in range(arguments.repeats):
        ours.append(our_cold_start())
        peer.append(measure_cold_start(_WORKERS))
        print(f"ours {ours[-1]:.2f} s, torchrun {peer[-1]:.2f} s", flush=True)
    figures = {
        "ours_s": summarize(ours),
        "torchrun_s": summarize(peer),
        "ratio": summarize(mine / theirs for mine, theirs in zip(ours, peer, strict=True)),
    }
    finish("cold_start", figures, arguments)


if __name__ == "__main__":
    main()
