"""The number of workers changes while the job runs: nobody is lost, nothing is raised, no step is aborted."""

from __future__ import annotations

from pathlib import Path

import pytest

from elastic_train import CheckpointConfig, ElasticTrainer, JobStopped
from elastic_train.testing.running_job import RunningJob
from tests.integration.jobs.test_losses import STEPS, assert_undisturbed, trainer
from tests.integration.jobs.train_functions import train


def test_growth_and_shrinkage_lose_no_step_and_abort_none(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 2, config={"pause_s": 0.02})) as job:
        job.wait_for_step(5, world_size=2)
        job.trainer.resize(4)
        job.wait_for_step(10, world_size=4)
        job.trainer.resize(1)
        job.wait_for_step(15, world_size=1)
        result = job.result()
        assert_undisturbed(job, result, tmp_path)
        assert job.of("step_aborted") == []
        assert [change.world_size for change in result.membership_history] == [2, 4, 1]


def test_a_drained_worker_is_replaced_and_leaves_between_two_steps(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 3, config={"pause_s": 0.02})) as job:
        job.wait_for_step(5, world_size=3)
        leaving = job.ranks()[1]
        job.trainer.drain(leaving)
        left = job.wait_for_kind(
            "worker_left",
        )
        assert left.source == leaving
        result = job.result()
        assert_undisturbed(job, result, tmp_path)
        assert job.of("step_aborted") == []
        assert not [record for record in job.of("worker_exited") if record["exit_code"] not in (0, None)]


def test_draining_rank_0_moves_its_duties(tmp_path: Path) -> None:
    with RunningJob(trainer(tmp_path, 3, config={"pause_s": 0.02})) as job:
        job.wait_for_step(5, world_size=3)
        job.trainer.drain(job.ranks()[0])
        assert_undisturbed(job, job.result(), tmp_path)
        assert job.of("step_aborted") == []


def test_a_stopped_job_goes_on_where_it_stood_at_another_world_size(tmp_path: Path) -> None:
    options = {"name": "resumed", "storage": f"file://{tmp_path}/storage"}
    with RunningJob(trainer(tmp_path, 3, **options)) as job:
        reached = job.wait_for_step(20)["step"]
        job.trainer.stop()
        with pytest.raises(JobStopped):
            job.result()
    with RunningJob(trainer(tmp_path, 2, **options)) as job:
        result = job.result()
        restored = job.of("checkpoint_restored")
        assert restored
        assert restored[-1]["version"] > reached
        assert result.steps == STEPS - restored[-1]["version"]
    import torch

    from tests.integration.jobs.train_functions import reference_weights

    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, expected in reference_weights(960, 32, 3).items():
        torch.testing.assert_close(weights[name], expected, rtol=1e-9, atol=1e-11)


def test_a_finished_job_run_again_has_nothing_left_to_do(tmp_path: Path) -> None:
    def make() -> ElasticTrainer:
        return ElasticTrainer(
            train,
            config={"size": 64, "batch": 32, "data_epochs": 1},
            name="again",
            num_workers=2,
            max_workers=2,
            storage=f"file://{tmp_path}/storage",
            progress=False,
            work_dir=tmp_path / "job",
            checkpoint_config=CheckpointConfig(every_steps=1),
        )

    assert make().fit().steps == 2
    again = make().fit()
    assert again.steps == 0
    assert again.checkpoint is not None
