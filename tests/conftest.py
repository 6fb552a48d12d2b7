"""What every test gets: an environment of its own, guards against leaks, reproducible property tests."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from scripts.processes import RUN_MARK, end_processes, marked_processes
from tests.leaks import GRACE_S, Footprint, files_left_in, wait_until_clean

_SETTINGS = "ELASTIC_TRAIN_"
_UNIT_TESTS = Path(__file__).parent / "unit"

hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
hypothesis.settings.register_profile("soak", deadline=None, print_blob=True, max_examples=3000)


def pytest_configure(config: pytest.Config) -> None:
    """Mark this run's processes and choose the hypothesis profile (`HYPOTHESIS_PROFILE`: dev, ci or soak)."""
    os.environ[RUN_MARK] = uuid.uuid4().hex
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_report_header(config: pytest.Config) -> str:
    """Say which profile runs, so that a failure can be run again."""
    return f"hypothesis profile: {hypothesis.settings.get_current_profile_name()}"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a process that it started, at any remove, outlives it."""
    ours = [process for process in marked_processes(os.environ[RUN_MARK]) if process.pid != os.getpid()]
    survivors = [line for line in end_processes(ours, grace_s=GRACE_S) if "resource_tracker" not in line]
    if survivors:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.section("processes that outlived the run (killed now)", red=True)
            reporter.write_line("\n".join(survivors))


@pytest.fixture(autouse=True)
def elastic_train_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a job root of its own, and none of the caller's settings.

    The path is short, because the path of a unix socket may have 107 bytes at most.
    """
    for name in [name for name in os.environ if name.startswith(_SETTINGS) and name != RUN_MARK]:
        monkeypatch.delenv(name)
    scratch = Path(tempfile.mkdtemp(prefix="et-", dir="/tmp"))
    home = scratch / "home"
    monkeypatch.setenv("ELASTIC_TRAIN_HOME", str(home))
    yield home
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest, elastic_train_home: Path) -> Iterator[None]:
    """Fail a test that leaves a process, thread, listening socket, shared memory or temporary job file behind.

    A test that must leave something says why: ``@pytest.mark.leaks_allowed("reason")``. Fixtures of a wider scope are
    set up before the guard looks for the first time; ask for them as parameters, not by `getfixturevalue`.
    """
    allowed = request.node.get_closest_marker("leaks_allowed")
    if allowed is not None:
        assert allowed.args, "leaks_allowed needs its reason as an argument"
        yield
        return
    # Unit tests may not start processes or open sockets at all, and there are many: the cheap look suffices.
    look = Footprint.take_cheaply if _UNIT_TESTS in request.path.parents else Footprint.take
    before = look()
    yield
    leaks = wait_until_clean(before, look) + files_left_in(elastic_train_home)
    if leaks:
        _kill_new_processes(before)
        pytest.fail("this test left behind:\n  " + "\n  ".join(leaks), pytrace=False)


def _kill_new_processes(before: Footprint) -> None:
    """End what a leaking test left, so that the tests after it are judged by what they do themselves."""
    known = {pid for pid, _ in before.processes} | {os.getpid()}
    left = [process for process in marked_processes(os.environ[RUN_MARK]) if process.pid not in known]
    end_processes(left, grace_s=0.0)
