"""A running job is looked at and steered from outside: by the command line, by signals, by the end of its driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.trainer import cli
from tests.integration.trainer.jobs import steps_of
from tests.integration.trainer.test_end_to_end import trainer_of

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
_PATIENCE_S = 60.0


def until(condition: Callable[[], Any]) -> Any:
    """Wait for a condition and return what it returned."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)
    return answer


@dataclass
class Driver:
    """A driver's process and the command line to its job."""

    process: subprocess.Popen[str]
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> str:
        """Run a command that must succeed and return what it prints."""
        assert cli.main(arguments) == cli.OK
        return self.capsys.readouterr().out

    def status(self) -> dict[str, Any]:
        """Return the job's status, empty while there is none."""
        code = cli.main(["status", "line", "--json"])
        captured = self.capsys.readouterr()
        return json.loads(captured.out) if code == cli.OK else {}

    def has_world_of(self, size: int) -> bool:
        """Say whether a world of this size is sealed and has committed a step."""
        world = self.status().get("world") or {}
        return world.get("stage") == "sealed" and len(world["members"]) == size and self.step() >= 0

    def step(self) -> int:
        """Return the newest step that was published."""
        step = self.status().get("progress", {}).get("step")
        return -1 if step is None else step

    def outcome(self) -> dict[str, Any]:
        """Wait for the driver's end and return what it said."""
        output, _ = self.process.communicate(timeout=_PATIENCE_S)
        told: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        return told


@pytest.fixture
def driver(capsys: pytest.CaptureFixture[str], elastic_train_home: Path) -> Iterator[Driver]:
    config = json.dumps({"step_s": 0.03, "data_epochs": 100})
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.trainer.driver", "line", config],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    running = Driver(process, capsys)
    try:
        until(lambda: running.has_world_of(2))
        yield running
    finally:
        process.send_signal(signal.SIGINT)  # cleanly: what it made is removed; ended already: no-op
        try:
            process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def test_the_command_line_looks_resizes_drains_and_stops(driver: Driver) -> None:
    assert "line" in driver.run("list")
    assert "world 2 in 1..4" in driver.run("status", "line")
    driver.run("resize", "line", "3")
    until(lambda: driver.has_world_of(3))
    worker = driver.status()["world"]["members"][0]
    driver.run("drain", "line", worker)
    until(lambda: worker not in driver.status()["world"]["members"])
    assert cli.main(["resize", "line", "9"]) == cli.REFUSED
    driver.run("stop", "line")
    outcome = driver.outcome()
    assert (outcome["ended"], outcome["checkpoint"]) == ("stopped", True)
    assert cli.main(["status", "line"]) == cli.NOT_FOUND


def test_user_signals_grow_and_shrink_the_world(driver: Driver) -> None:
    driver.process.send_signal(signal.SIGUSR1)
    until(lambda: driver.has_world_of(3))
    driver.process.send_signal(signal.SIGUSR2)
    until(lambda: driver.has_world_of(2))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_finishes_the_step_and_saves(driver: Driver, number: signal.Signals) -> None:
    driver.process.send_signal(number)
    outcome = driver.outcome()
    assert (outcome["ended"], outcome["checkpoint"]) == ("stopped", True)
    assert driver.process.returncode == 0


def test_the_second_interrupt_ends_at_once_and_leaves_nothing(driver: Driver, elastic_train_home: Path) -> None:
    descendants = psutil.Process(driver.process.pid).children(recursive=True)
    driver.process.send_signal(signal.SIGINT)
    driver.process.send_signal(signal.SIGTERM)  # not a second SIGINT: two of one kind may arrive as one
    driver.process.wait(_PATIENCE_S)
    until(lambda: not any(process.is_running() for process in descendants))
    left = {path.name for path in (elastic_train_home / "line").iterdir()}
    assert left <= {"checkpoints", "journal", "logs"}


def test_the_sudden_end_of_the_driver_ends_everything_it_started(driver: Driver, elastic_train_home: Path) -> None:
    descendants = psutil.Process(driver.process.pid).children(recursive=True)
    assert len(descendants) >= 4  # etcd, the warm pool, two workers
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait(_PATIENCE_S)
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in descendants))
    result = trainer_of(name="line", config={"data_epochs": 1}).fit()  # its leftovers are no hindrance
    assert not (elastic_train_home / "line" / "etcd").exists()
    assert result.name == "line"


def test_a_job_on_a_cluster_of_the_users_own_leaves_no_key_but_the_checkpoint(tmp_path: Path) -> None:
    with EmbeddedEtcd(tmp_path / "etcd") as etcd:
        result = trainer_of(coordination=etcd.url).fit()
        coordination = connect(etcd.url)
        left = [item.key for item in coordination.list("/elastic-train/").items]
        coordination.close()
    assert result.steps == steps_of()
    assert [key for key in left if not key.endswith("/checkpoint")] == []
