"""How many faults a minute the deterministic simulation tries on one core, and what they show."""

from __future__ import annotations

import argparse
import logging
import time

from benchmarks.common import finish, parse_arguments
from elastic_train.testing.simulation import scenario
from elastic_train.testing.simulation.job import setting_for
from elastic_train.testing.simulation.tally import Tally

TARGET_PER_MINUTE = 100_000
_SEEDS_EACH = 60


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(__doc__ or "", argv=argv, extend=_extend)
    logging.disable(logging.CRITICAL)
    tally = Tally()
    began_s = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.repeats * _SEEDS_EACH):
        report = scenario.play(setting_for(seed))
        tally.add(report)
        if report.violation is not None:
            print(f"seed {seed}: {report.violation}")
    results = {**tally.as_dict(), "wall_s": round(time.monotonic() - began_s, 2), "target": TARGET_PER_MINUTE}
    finish("simulation", results, arguments)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="the first seed (%(default)s)")


if __name__ == "__main__":
    main()
