"""Workers are lost in every way; the job finishes with the weights of an undisturbed run, every sample used once."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from elastic_train import ElasticTrainer, Result
from elastic_train.testing.running_job import RunningJob
from tests.integration.jobs.train_functions import reference_weights, train

SIZE, BATCH, DATA_EPOCHS = 960, 32, 3
STEPS = SIZE // BATCH * DATA_EPOCHS


def trainer(tmp_path: Path, workers: int, **options: Any) -> ElasticTrainer:
    """Return a trainer of the common run: 90 steps of about 15 ms."""
    config = {
        "size": SIZE,
        "batch": BATCH,
        "data_epochs": DATA_EPOCHS,
        "pause_s": 0.01,
        "weights": str(tmp_path / "weights.pt"),
        **options.pop("config", {}),
    }
    options.setdefault("min_workers", 1)
    return ElasticTrainer(
        train,
        config=config,
        num_workers=workers,
        max_workers=max(workers, options.pop("max_workers", 4)),
        progress=False,
        work_dir=tmp_path / "job",
        **options,
    )


def assert_undisturbed(job: RunningJob, result: Result, tmp_path: Path) -> None:
    """Assert that the run's outcome is that of one without any fault."""
    assert result.steps == STEPS
    assert job.findings() == []
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, expected in reference_weights(SIZE, BATCH, DATA_EPOCHS).items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_undisturbed_run_gives_the_weights_of_one_process(tmp_path: Path, workers: int) -> None:
    with RunningJob(trainer(tmp_path, workers, max_workers=5)) as job:
        assert_undisturbed(job, job.result(), tmp_path)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_one_killed_worker_costs_no_step(tmp_path: Path, rank: int) -> None:
    with RunningJob(trainer(tmp_path, 3)) as job:
        job.wait_for_step(15, world_size=3)
        before = dict(job.pids)
        victim = job.ranks()[rank]
        at = job.signal(victim)
        job.wait_for_step(16, world_size=2, after=at)
        result = job.result()
        assert_undisturbed(job, result, tmp_path)
        survivors = set(before) - {victim}
        finished = {record.source for record in job.of("worker_finished")}
        assert survivors <= finished, "survivors keep their process"
        assert all(job.pids[worker] == before[worker] for worker in survivors)


def test_several_killed_at_once_cost_no_step(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 5, max_workers=5)) as job:
        job.wait_for_step(15, world_size=5)
        for worker in job.ranks()[1:4]:
            job.signal(worker)
        assert_undisturbed(job, job.result(), tmp_path)


def test_all_but_one_killed_at_once_cost_no_step(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 4)) as job:
        job.wait_for_step(15, world_size=4)
        for worker in job.ranks()[:3]:
            job.signal(worker)
        assert_undisturbed(job, job.result(), tmp_path)


def test_a_kill_during_the_recovery_from_another_costs_no_step(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 4)) as job:
        job.wait_for_step(15, world_size=4)
        ranks = job.ranks()
        sealed = len(job.of("world_sealed"))
        job.signal(ranks[3])
        job.wait_for("a world being formed", lambda: len(job.of("world_proposed")) > sealed)
        job.signal(ranks[1])
        assert_undisturbed(job, job.result(), tmp_path)


def test_a_stopped_worker_is_found_left_out_and_replaced(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 3, config={"data_epochs": 12})) as job:
        job.wait_for_step(15, world_size=3)
        victim = job.ranks()[1]
        at = job.signal(victim, signal.SIGSTOP)
        found = job.wait_for_step(16, world_size=2, after=at)
        assert found.t - at < 10, "found by the progress deadline, not by a time-out of the collective"
        job.wait_for_kind("worker_exited", worker_id=victim)
        job.wait_for_step(17, world_size=3, after=found.t)
        job.trainer.stop()


def test_below_the_minimum_the_job_pauses_and_goes_on_by_itself(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 3, min_workers=3)) as job:
        job.wait_for_step(15, world_size=3)
        survivors = {worker: job.pids[worker] for worker in job.ranks()[1:]}
        job.signal(job.ranks()[0])
        result = job.result()
        assert_undisturbed(job, result, tmp_path)
        assert {record["world_size"] for record in job.of("group_formed")} == {3}
        assert survivors.keys() <= {record.source for record in job.of("worker_finished")}


def test_everyone_killed_goes_on_from_the_newest_checkpoint(tmp_path: Path) -> None:
    from elastic_train import CheckpointConfig

    with RunningJob(trainer(tmp_path, 2, checkpoint_config=CheckpointConfig(every_steps=5))) as job:
        job.wait_for("a checkpoint", lambda: any(r["version"] >= 10 for r in job.of("checkpoint_committed")))
        for worker in job.ranks():
            job.signal(worker)
        result = job.result()
        assert job.of("checkpoint_restored")
        assert_undisturbed(job, result, tmp_path)


def test_losses_during_evaluations_cost_nothing(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 3, config={"evaluate_every": 2})) as job:
        for target in (10, 30, 50):
            job.wait_for_step(target)
            job.signal(job.ranks()[-1])
            job.wait_for_step(target + 8)
        result = job.result()
        assert_undisturbed(job, result, tmp_path)
        assert len(job.of("evaluation_committed")) >= STEPS // 2
