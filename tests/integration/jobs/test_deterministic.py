"""Real jobs in deterministic mode: one hash of weights, optimizer state and losses, whatever happens to the workers."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from elastic_train import CheckpointConfig, ElasticTrainer, TrainingFailed
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


@pytest.mark.parametrize(("program", "seed"), [("mlp", 1), ("cnn", 2), ("transformer", 3)])
def test_one_hash_through_kills_drains_joins_and_a_total_loss(tmp_path: Path, program: str, seed: int) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    options: dict[str, Any] = {"config": {"data_epochs": 16, "micro_batch_size": 3}}
    with RunningJob(trainer(undisturbed, 2, program, **options)) as job:
        expected = hashes(job.result(), undisturbed)

    rng = random.Random(seed)
    options = {
        "config": options["config"] | {"pause_s": 0.01},
        "checkpoint_config": CheckpointConfig(every_steps=4),
        "digest_every_steps": 7,
    }
    running = trainer(tmp_path, 3, program, **options)
    with RunningJob(running) as job:
        for target in (4, 11, 18, 25):
            job.wait_for_step(target)
            disturb(job, running, rng)
        job.wait_for_step(32)
        for worker in job.ranks():
            job.signal(worker)
        found = hashes(job.result(), tmp_path)
        assert job.findings() == []
        assert job.of("checkpoint_restored")
        assert not job.of("state_diverged")
    assert found == expected


def disturb(job: RunningJob, running: ElasticTrainer, rng: random.Random) -> None:
    """Kill a worker or two, drain one, or change their number."""
    ranks = job.ranks()
    what = rng.choice(["kill", "kill two", "drain", "resize"])
    if what == "resize":
        running.resize(rng.choice([size for size in range(1, SHARDS + 1) if size != len(ranks)]))
    elif what == "drain":
        running.drain(rng.choice(ranks))
    else:
        for worker in rng.sample(ranks, min(len(ranks) - 1, 1 + (what == "kill two")) or 1):
            job.signal(worker)


def test_a_worker_with_a_corrupted_state_is_named_left_out_and_replaced(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    with RunningJob(trainer(undisturbed, 2, "mlp", config={"data_epochs": 8})) as job:
        expected = hashes(job.result(), undisturbed)
    config = {"data_epochs": 8, "pause_s": 0.02, "corrupt": {"worker": "w0002", "step": 8}}
    with RunningJob(trainer(tmp_path, 3, "mlp", config=config, digest_every_steps=3)) as job:
        job.wait_for("a successor", lambda: len(job.of("worker_launched")) > 3)
        found = hashes(job.result(), tmp_path)
        diverged = job.of("state_diverged")
        assert {tuple(record["workers"]) for record in diverged} == {("w0002",)}
        assert all("model.tensors.0.weight" in record["tensors"] for record in diverged)
        assert min(job.of("worker_left"), key=lambda record: record.t).source == "w0002"
        finished = {record.source for record in job.of("worker_finished")}
        assert {"w0001", "w0003"} <= finished <= {"w0001", "w0003", "w0004"}
    assert found == expected, "it was found before it took another step"


def test_without_a_majority_the_job_fails_and_names_both(tmp_path: Path) -> None:
    config = {"corrupt": {"worker": "w0002", "step": 4}}
    with pytest.raises(TrainingFailed, match=r"after 6 steps the states of w000[12], w000[12] differ in .*model"):
        trainer(tmp_path, 2, "mlp", config=config, digest_every_steps=3).fit()


def test_workers_with_different_numbers_of_threads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match=r"w0003 differ from the others .*w0003 with [^;]*2 threads"):
        trainer(tmp_path, 3, "mlp", config={"threads": {"w0003": 2}}).fit()
