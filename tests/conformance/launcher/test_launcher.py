"""What every launcher promises, whatever it starts workers with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elastic_train.adapters.launcher.external import ExternalLauncher
from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.errors import LaunchError
from elastic_train.ports import Launcher, WorkerExited, WorkerStarted
from tests.integration.launcher.harness import ENTRIES, Events, ids

pytestmark = pytest.mark.integration

Make = Callable[[Path], Launcher]


def _local_process(folder: Path) -> Launcher:
    return LocalProcessLauncher(f"{ENTRIES}:wait_for_the_end", {"out": str(folder)}, log_dir=folder / "logs")


def _external(folder: Path) -> Launcher:
    return ExternalLauncher()


_ALL: list[Make] = [_local_process, _external]


@pytest.fixture(params=_ALL, ids=lambda make: make.__name__.strip("_"))
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    made: Launcher = request.param(tmp_path)
    yield made
    made.close()


def _kinds(events: Events, worker_id: str) -> list[type]:
    return [type(event) for event in events.all if event.worker_id == worker_id]


def test_every_launched_worker_is_reported_to_exit_exactly_once(launcher: Launcher) -> None:
    events = Events()
    launcher.start(events)
    launcher.launch(ids("a", "b"))
    launcher.launch(ids("c"))
    launcher.kill(ids("a")[0])
    events.wait_for_exit("a")
    launcher.close()
    for worker_id in "abc":
        assert _kinds(events, worker_id) in ([WorkerStarted, WorkerExited], [WorkerExited])


def test_an_exit_without_a_start_has_no_exit_code_but_a_reason(launcher: Launcher) -> None:
    events = Events()
    launcher.start(events)
    launcher.launch(ids("a"))
    launcher.kill(ids("a")[0])
    exited = events.wait_for_exit("a")
    if "a" in events.started():
        assert exited.exit_code == -9
    else:
        assert exited.exit_code is None
        assert exited.detail


def test_killing_an_unknown_or_dead_worker_does_nothing(launcher: Launcher) -> None:
    events = Events()
    launcher.kill(ids("nobody")[0])
    launcher.start(events)
    launcher.kill(ids("nobody")[0])
    launcher.launch(ids("a"))
    launcher.kill(ids("a")[0])
    events.wait_for_exit("a")
    launcher.kill(ids("a")[0])
    launcher.close()
    assert [event.worker_id for event in events.all if isinstance(event, WorkerExited)] == ["a"]


def test_close_is_idempotent_and_works_without_a_start(launcher: Launcher) -> None:
    launcher.close()
    launcher.close()


def test_launching_before_the_start_or_after_the_close_is_refused(launcher: Launcher) -> None:
    with pytest.raises(LaunchError):
        launcher.launch(ids("a"))
    launcher.start(Events())
    launcher.close()
    with pytest.raises(LaunchError):
        launcher.launch(ids("a"))


def test_a_launcher_is_started_once(launcher: Launcher) -> None:
    launcher.start(Events())
    with pytest.raises(LaunchError, match="started before"):
        launcher.start(Events())


def test_the_capacity_is_a_number_or_unknown(launcher: Launcher) -> None:
    capacity = launcher.capacity()
    assert capacity is None or capacity >= 0
