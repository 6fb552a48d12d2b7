"""A job from `fit` to its result, with a real etcd and real processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import elastic_train as et
from elastic_train.core.goodput import Bucket
from elastic_train.core.records import Cause
from elastic_train.journal import read_journal
from tests.integration.trainer.jobs import BATCH, fit_line, steps_of

pytestmark = pytest.mark.integration


def trainer_of(train: Any = fit_line, **arguments: Any) -> et.ElasticTrainer:
    defaults: dict[str, Any] = {"config": {}, "min_workers": 1, "max_workers": 4, "num_workers": 2, "progress": False}
    return et.ElasticTrainer(train, **{**defaults, **arguments})


def test_an_undisturbed_job_returns_what_it_did_and_leaves_only_what_lasts() -> None:
    trainer = trainer_of(name="line")
    result = trainer.fit()
    assert result.steps == steps_of()
    assert [step.step for step in result.metrics_history] == list(range(steps_of()))
    assert result.metrics["loss"] < result.metrics_history[0].metrics["loss"] / 5
    assert [(change.cause, change.world_size) for change in result.membership_history] == [(Cause.START, 2)]
    assert result.goodput.samples == steps_of() * BATCH
    assert result.goodput.seconds[Bucket.TRAINING] > 0
    assert result.goodput.seconds[Bucket.REDONE] < result.goodput.paid_s / 4
    assert result.checkpoint is not None
    assert sorted(path.name for path in trainer.path.iterdir()) == ["checkpoints", "journal", "logs"]


def test_what_workers_print_reaches_the_person_with_worker_and_rank(capfd: pytest.CaptureFixture[str]) -> None:
    trainer_of(progress=True, num_workers=1).fit()
    told = capfd.readouterr().err
    assert re.search(r"\[w0001( rank 0)?\] begin in w0001", told)
    assert re.search(r"1 worker go on at step 0|1 worker goes on at step 0", told)
    assert f"step {steps_of()}/{steps_of()}" in told


def test_killed_drained_and_added_workers_cost_no_step() -> None:
    acts: Iterator[tuple[int, Callable[[], object]]] = iter(
        [
            (15, lambda: os.kill(trainer.status().world_workers[0].pid, signal.SIGKILL)),
            (45, lambda: trainer.drain(trainer.status().world_workers[-1].worker_id)),
            (75, lambda: trainer.resize(4)),
        ]
    )
    pending = [next(acts)]
    trainer: et.ElasticTrainer

    def disturb(step: et.StepMetrics) -> None:
        if pending and step.step >= pending[0][0]:
            pending.pop()[1]()
            pending.extend([act for act in [next(acts, None)] if act is not None])

    trainer = trainer_of(config={"step_s": 0.04, "data_epochs": 5}, num_workers=3, on_step=disturb)
    result = trainer.fit()
    assert not pending
    assert [step.step for step in result.metrics_history] == list(range(steps_of(5)))
    assert result.goodput.steps_redone == 0
    assert {Cause.LOSS, Cause.DRAIN} <= {change.cause for change in result.membership_history}
    assert max(change.world_size for change in result.membership_history) == 4


def test_fit_runs_in_another_thread_and_inside_a_running_event_loop() -> None:
    results: list[et.Result] = []

    async def notebook_cell() -> None:
        results.append(trainer_of().fit())

    thread = threading.Thread(target=lambda: results.append(trainer_of().fit()))
    thread.start()
    thread.join()
    asyncio.run(notebook_cell())
    assert [result.steps for result in results] == [steps_of()] * 2


def test_a_second_driver_of_the_same_job_is_refused() -> None:
    refusals: list[et.JobAlreadyRunning] = []

    def try_again(step: et.StepMetrics) -> None:
        if step.step == 3:
            with pytest.raises(et.JobAlreadyRunning) as caught:
                trainer_of(name="line").fit()
            refusals.append(caught.value)

    trainer_of(name="line", on_step=try_again).fit()
    assert "elastic-train stop line" in str(refusals[0])


def test_the_journal_tells_every_step_of_every_worker() -> None:
    result = trainer_of().fit()
    commits = [record for record in read_journal(result.journal_path) if record.kind == "step_committed"]
    assert {record.source for record in commits} == {"w0001", "w0002"}
    samples: dict[int, int] = {}
    for record in commits:
        samples[record["step"]] = samples.get(record["step"], 0) + record["samples"]
    assert samples == dict.fromkeys(range(steps_of()), BATCH)


def test_a_storage_that_cannot_be_written_is_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(et.ConfigurationError, match="storage"):
        trainer_of(storage=(tmp_path / "file" / "x").as_uri()).fit()


def test_an_etcd_that_does_not_answer_is_told_with_its_endpoint() -> None:
    with pytest.raises(et.CoordinationUnavailable, match=r"127\.0\.0\.1:1"):
        trainer_of(coordination="etcd://127.0.0.1:1").fit()


class _OnlyHere:
    """Pickles, and cannot be unpickled in another process: like a module that is not installed there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse_elsewhere, (os.getpid(),)


def _refuse_elsewhere(pid: int) -> _OnlyHere:
    if os.getpid() != pid:
        raise ModuleNotFoundError("No module named 'only_here'")
    return _OnlyHere()


def test_a_train_function_that_cannot_be_loaded_in_the_workers_ends_the_job_with_the_reason() -> None:
    with pytest.raises(et.TrainingFailed, match="No module named 'only_here'") as caught:
        trainer_of(config={"here": _OnlyHere()}).fit()
    assert "load_payload" in str(caught.value.remote_traceback)
