"""A driver in a process of its own, as a person starts one: ``driver NAME CONFIG``; says how its job ended."""

from __future__ import annotations

import json
import sys

import elastic_train as et
from tests.integration.trainer.jobs import fit_line


def main() -> int:
    name, config = sys.argv[1], json.loads(sys.argv[2])
    trainer = et.ElasticTrainer(fit_line, config=config, name=name, min_workers=1, max_workers=4, num_workers=2)
    try:
        result = trainer.fit()
    except et.JobStopped as stopped:
        told = {"ended": "stopped", "steps": stopped.result.steps, "checkpoint": stopped.result.checkpoint is not None}
    else:
        told = {"ended": "finished", "sizes": [change.world_size for change in result.membership_history]}
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
