"""Real jobs in deterministic mode: one hash of weights, optimizer state and losses, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from elastic_train import ElasticTrainer
from elastic_train.testing.running_job import RunningJob
from tests.integration.jobs.deterministic_functions import train

SHARDS = 5


def trainer(tmp_path: Path, workers: int, program: str, **options: Any) -> ElasticTrainer:
    config = {"program": program, "outcome": str(tmp_path / "outcome.json"), **options.pop("config", {})}
    return ElasticTrainer(
        train,
        config=config,
        num_workers=workers,
        max_workers=options.pop("max_workers", SHARDS),
        logical_shards=SHARDS,
        deterministic=True,
        progress=False,
        work_dir=tmp_path / "job",
        **options,
    )


def hashes(result: Any, tmp_path: Path) -> tuple[str, str]:
    """Return those of the state and of the loss history."""
    losses = [(each.step, each.metrics["loss"].hex()) for each in result.metrics_history]
    state = json.loads((tmp_path / "outcome.json").read_text())["state"]
    return state, hashlib.sha256(repr(losses).encode()).hexdigest()


@pytest.mark.parametrize("program", ["mlp", "cnn", "transformer"])
def test_one_hash_at_every_world_size(tmp_path: Path, program: str) -> None:
    found = {}
    for workers in (1, 2, 3):
        place = tmp_path / str(workers)
        place.mkdir()
        with RunningJob(trainer(place, workers, program)) as job:
            found[workers] = hashes(job.result(), place)
            assert job.findings() == []
    assert len(set(found.values())) == 1, found
