"""What journals and logs say is shown, remembered and called back, in order and once."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest

from elastic_train.journal import Journal
from elastic_train.trainer.narrator import Narrator, OnStep
from elastic_train.trainer.progress_model import ProgressModel
from elastic_train.trainer.reporters import PlainReporter
from elastic_train.trainer.result import StepMetrics


def _narrator(directory: Path, stream: io.StringIO, on_step: OnStep | None = None) -> Narrator:
    model = ProgressModel("digits", time.monotonic(), (1, 4))
    return Narrator(model, PlainReporter(stream), journals=directory, logs=directory, on_step=on_step)


def _commit(journal: Journal, step: int, samples: int, loss: float) -> None:
    journal.record(
        "step_committed",
        membership_epoch=1,
        loop="loop-0",
        step=step,
        version=step + 1,
        step_s=0.01,
        samples=samples,
        global_samples=8,
        metrics={"loss": [loss * samples, samples]},
    )


def test_a_step_is_called_back_when_all_workers_have_told_it(tmp_path: Path) -> None:
    stream, seen = io.StringIO(), list[StepMetrics]()
    narrator = _narrator(tmp_path, stream, seen.append)
    with (
        Journal(tmp_path / "w1.jsonl", source="w1", node="n") as one,
        Journal(tmp_path / "w2.jsonl", source="w2", node="n") as two,
    ):
        _commit(one, 0, 4, 1.0)
        narrator.poll()
        assert seen == []
        _commit(two, 0, 4, 3.0)
        narrator.poll()
    (tmp_path / "w1.log").write_text("hello")
    narrator.finish()
    assert [(step.step, step.metrics) for step in seen] == [(0, {"loss": 2.0})]
    assert narrator.history.committed_steps() == 1
    assert "[w1] hello" in stream.getvalue()
    assert "step 1  loss 2" in stream.getvalue()


def test_a_callback_that_raises_is_not_called_again_and_the_screen_is_given_back(tmp_path: Path) -> None:
    stream, calls = io.StringIO(), list[Any]()

    def refuse(step: StepMetrics) -> None:
        calls.append(step)
        raise ValueError("the user's own mistake")

    narrator = _narrator(tmp_path, stream, refuse)
    with Journal(tmp_path / "w1.jsonl", source="w1", node="n") as journal:
        _commit(journal, 0, 8, 1.0)
        with pytest.raises(ValueError, match="own mistake"):
            narrator.poll()
        _commit(journal, 1, 8, 1.0)
    narrator.finish()
    assert len(calls) == 1
    assert "step 2" in stream.getvalue()
