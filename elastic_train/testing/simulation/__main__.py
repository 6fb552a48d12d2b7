"""Search seeds for a violated invariant: ``python -m elastic_train.testing.simulation --seeds 1000 --seed 0``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from elastic_train.testing.simulation import scenario
from elastic_train.testing.simulation.job import Report, setting_for
from elastic_train.testing.simulation.tally import Tally


def main(arguments: list[str] | None = None) -> int:
    """Simulate, print the tally as JSON, and save what fails as a scenario; return 1 if anything did."""
    parser = argparse.ArgumentParser(prog="python -m elastic_train.testing.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many jobs to simulate")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--save", type=Path, default=Path(), help="folder for the scenarios of failing seeds")
    parser.add_argument("--play", type=Path, help="play one saved scenario instead")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # what the controller warns of is what we do to it
    if options.play is not None:
        report = scenario.play(scenario.read(options.play.read_text()))
        _say(str(report.violation or "every invariant holds"))
        return int(report.violation is not None)
    tally = Tally()
    give_up_s = time.monotonic() + options.seconds
    for seed in range(options.seed, options.seed + options.seeds):
        report = scenario.play(setting_for(seed))
        tally.add(report)
        if report.violation is not None:
            _save(report, options.save)
        if time.monotonic() > give_up_s:
            break
    _say(json.dumps(tally.as_dict()))
    return int(tally.violations > 0)


def _save(report: Report, folder: Path) -> None:
    violation = report.violation
    assert violation is not None
    small, violation = scenario.minimise(setting_for(report.seed), violation)
    path = folder / f"seed-{report.seed}-{violation.invariant}.txt"
    path.write_text(scenario.write(small, violation))
    _say(f"seed {report.seed} violates {violation}\n  {len(small.faults or ())} faults suffice: {path}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
