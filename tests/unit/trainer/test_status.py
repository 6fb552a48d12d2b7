"""The progress of a job is there for whoever asks the coordination service."""

from __future__ import annotations

import json

from elastic_train.trainer.progress_model import ProgressModel
from elastic_train.trainer.status_publisher import status_of
from tests.unit.trainer.story import BEGUN_AT, story


def test_the_status_is_plain_values_about_the_newest_step() -> None:
    model = ProgressModel("digits", BEGUN_AT, (2, 8))
    for seen in story():
        if seen.at <= 104.2:
            model.apply(seen)
    status = json.loads(json.dumps(status_of(model, 104.2)))
    assert (status["phase"], status["step"], status["total_steps"]) == ("running", 28, 50)
    assert set(status["metrics"]) == {"loss", "accuracy"}
    assert status["samples_per_s"] > 0
    assert status["eta_s"] >= 0


def test_a_job_without_a_step_has_a_status_too() -> None:
    status = status_of(ProgressModel("digits", 0.0, (1, 1)), 1.0)
    assert (status["phase"], status["step"], status["eta_s"], status["metrics"]) == ("starting", None, None, {})
