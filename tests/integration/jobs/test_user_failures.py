"""The user's own code fails: the job ends with that exception, and says where it happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elastic_train import ElasticTrainer, FailureConfig, TrainingFailed
from tests.integration.jobs.train_functions import fail_at, never_steps


def trainer(tmp_path: Path, config: dict[str, Any], **options: Any) -> ElasticTrainer:
    return ElasticTrainer(
        fail_at, config=config, num_workers=2, max_workers=2, progress=False, work_dir=tmp_path / "job", **options
    )


def test_an_exception_ends_the_job_and_says_which_step_and_samples(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="a poison sample") as caught:
        trainer(tmp_path, {"step": 4, "rank": 1}).fit()
    failure = caught.value
    assert failure.error_type == "ValueError"
    assert failure.rank == 1
    assert failure.step == 4
    assert failure.samples == (4 * 32 + 16, 5 * 32)
    assert "fail_at" in str(failure.remote_traceback)


def test_as_many_failures_as_allowed_are_answered_by_another_try(tmp_path: Path) -> None:
    config = {"step": 4, "rank": 1, "once": str(tmp_path / "failed-once")}
    result = trainer(tmp_path, config, failure_config=FailureConfig(max_failures=1)).fit()
    assert result.steps == 10


def test_a_train_function_that_never_steps_is_told_so(tmp_path: Path) -> None:
    job = ElasticTrainer(never_steps, num_workers=2, max_workers=2, progress=False, work_dir=tmp_path / "job")
    with pytest.raises(TrainingFailed, match="without taking a step"):
        job.fit()
