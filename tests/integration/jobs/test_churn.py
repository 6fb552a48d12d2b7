"""Seeded random kills, stops, drains and resizes, one upon the other: still the outcome of an undisturbed run."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from elastic_train import CheckpointConfig, ElasticTrainer, UsageError
from elastic_train.testing.running_job import RunningJob
from tests.integration.jobs.test_losses import STEPS, assert_undisturbed, trainer

_GAPS = (0, 1, 3, 10)  # committed steps between two faults; 0: upon the one before


class Nemesis:
    """Draws and carries out faults."""

    def __init__(self, job: RunningJob, steer: ElasticTrainer, seed: int) -> None:
        self._job = job
        self._steer = steer
        self._random = random.Random(seed)
        self._stopped: list[str] = []
        self.faults = 0

    def strike(self) -> None:
        """Carry out one fault, drawn at random."""
        faults: list[Callable[[], None]] = [
            self._kill_one,
            self._kill_one,
            self._kill_two,
            self._kill_oldest,
            self._kill_youngest,
            self._stop_one,
            self._continue_one,
            self._drain_one,
            self._resize,
            self._resize,
        ]
        try:
            self._random.choice(faults)()
        except (ProcessLookupError, UsageError):
            return  # it was gone already, or the controller refused: also an answer
        self.faults += 1

    def gap(self) -> int:
        """Return after how many further committed steps to strike again."""
        return self._random.choice(_GAPS)

    def _alive(self) -> list[str]:
        exited = {record["worker_id"] for record in self._job.of("worker_exited")}
        return [worker for worker in self._job.pids if worker not in exited]

    def _kill_one(self) -> None:
        self._job.signal(self._random.choice(self._alive()))

    def _kill_two(self) -> None:
        alive = self._alive()
        for worker in self._random.sample(alive, min(2, len(alive))):
            self._job.signal(worker)

    def _kill_oldest(self) -> None:
        self._job.signal(self._alive()[0])

    def _kill_youngest(self) -> None:
        self._job.signal(self._alive()[-1])

    def _stop_one(self) -> None:
        worker = self._random.choice(self._alive())
        self._job.signal(worker, signal.SIGSTOP)
        self._stopped.append(worker)

    def _continue_one(self) -> None:
        if self._stopped:
            self._job.signal(self._stopped.pop(), signal.SIGCONT)

    def _drain_one(self) -> None:
        self._steer.drain(self._random.choice(self._alive()))

    def _resize(self) -> None:
        self._steer.resize(self._random.randint(2, 5))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_sequence_of_faults_ends_as_an_undisturbed_run(tmp_path: Path, seed: int) -> None:
    steer = trainer(
        tmp_path,
        3,
        max_workers=5,
        config={"evaluate_every": 7, "pause_s": 0.02},
        checkpoint_config=CheckpointConfig(every_steps=10),
    )
    with RunningJob(steer) as job:
        nemesis = Nemesis(job, steer, seed)
        job.wait_for_step(2)
        while job.newest_step() < STEPS - 15:
            nemesis.strike()
            job.wait_for_step(job.newest_step() + nemesis.gap())
        result = job.result()
        assert nemesis.faults >= 5
        assert_undisturbed(job, result, tmp_path)
