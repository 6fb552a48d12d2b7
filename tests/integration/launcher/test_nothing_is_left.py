"""Whoever dies, and however suddenly: exits are reported, the launcher goes on, and no process stays behind."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.errors import LaunchError
from elastic_train.ports import WorkerExited, WorkerStarted
from tests.integration.launcher.harness import Events, all_gone, eventually, ids, is_gone, rig

pytestmark = pytest.mark.integration


def test_the_fork_servers_death_ends_and_reports_its_workers_and_the_next_launch_works(tmp_path: Path) -> None:
    with rig(tmp_path, "leave_a_grandchild") as it:
        it.launch("w0", "w1")
        grandchildren = [it.marked("w0"), it.marked("w1")]
        pids = list(it.launcher.pids().values())
        os.kill(pids[1], signal.SIGSTOP)
        first_zygote = it.launcher.zygote_pid()
        assert first_zygote is not None
        os.kill(first_zygote, signal.SIGKILL)
        for name in ("w0", "w1"):
            exited = it.events.wait_for_exit(name)
            assert exited.exit_code == -signal.SIGKILL
            assert "fork server was killed by signal 9" in exited.detail
        all_gone(pids + grandchildren)
        it.launch("w2")
        it.marked("w2")
        assert it.launcher.zygote_pid() not in (None, first_zygote)


def test_a_stopped_fork_server_is_woken_when_it_is_needed(tmp_path: Path) -> None:
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch("w0")
        it.marked("w0")
        zygote = it.launcher.zygote_pid()
        assert zygote is not None
        os.kill(zygote, signal.SIGSTOP)
        it.launch("w1")
        it.marked("w1")
        os.kill(zygote, signal.SIGSTOP)
        it.kill("w0")
        assert it.events.wait_for_exit("w0").exit_code == -signal.SIGKILL
        os.kill(zygote, signal.SIGSTOP)


def test_a_fork_server_that_hangs_in_a_fork_is_replaced_and_keeps_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elastic_train.adapters.launcher.local_process._ANSWER_S", 0.2)
    preload = ["tests.integration.launcher.hangs_on_second_fork"]
    with rig(tmp_path, "wait_for_the_end", preload, ready_timeout_s=2.0) as it:
        it.launch("w0")
        it.marked("w0")
        hung = it.launcher.zygote_pid()
        it.launch("w1")
        exited = it.events.wait_for_exit("w1")
        assert exited.exit_code is None
        assert "does not answer" in exited.detail
        it.launch("w2")
        it.marked("w2")
        assert it.launcher.zygote_pid() != hung
        assert not it.events.exits("w0")
        it.kill("w0")
        it.events.wait_for_exit("w0")
    assert hung is not None
    assert is_gone(hung)


@pytest.mark.parametrize("stop_the_zygote", [False, True])
def test_nothing_outlives_a_driver_that_is_killed(tmp_path: Path, stop_the_zygote: bool) -> None:
    command = [sys.executable, "-m", "tests.integration.launcher.driver", str(tmp_path), "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        try:
            pids = json.loads(driver.stdout.readline())
            assert len(pids) == 7
            os.kill(pids[2], signal.SIGSTOP)
            if stop_the_zygote:
                os.kill(pids[0], signal.SIGSTOP)
        finally:
            driver.kill()
    all_gone(pids)


def test_nothing_outlives_a_driver_that_is_killed_while_the_fork_server_imports(tmp_path: Path) -> None:
    code = (
        "import signal; from pathlib import Path; from elastic_train.adapters.launcher.local_process import *\n"
        f"launcher = LocalProcessLauncher('a:b', {{}}, preload=['slow_import'], log_dir=Path({str(tmp_path)!r}))\n"
        "launcher.start(print)\n"
        "while launcher.zygote_pid() is None: pass\n"
        "print(launcher.zygote_pid(), flush=True); signal.pause()"
    )
    (tmp_path / "slow_import.py").write_text("import signal\nopen('importing', 'w').close()\nsignal.pause()\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as driver:
        assert driver.stdout is not None
        try:
            zygote = int(driver.stdout.readline())
            eventually((tmp_path / "importing").exists, "the import to begin")
        finally:
            driver.kill()
    eventually(lambda: is_gone(zygote), "the fork server to end")


def test_close_ends_and_reports_all_and_may_be_called_again(tmp_path: Path) -> None:
    with rig(tmp_path, "leave_a_grandchild") as it:
        it.launch("w0", "w1")
        pids = [it.marked("w0"), it.marked("w1"), *it.launcher.pids().values()]
        os.kill(it.launcher.pids()[ids("w0")[0]], signal.SIGSTOP)
        it.launcher.close()
        assert it.launcher.zygote_pid() is None
        assert [is_gone(pid) for pid in pids[2:]] == [True, True]
        assert [len(it.events.exits(name)) for name in ("w0", "w1")] == [1, 1]
        all_gone(pids)
        it.launcher.close()
        with pytest.raises(LaunchError, match="closed"):
            it.launch("w2")


def test_close_ends_daemons_that_left_their_worker_and_its_session(tmp_path: Path) -> None:
    with rig(tmp_path, "leave_a_daemon") as it:
        it.launch("w0")
        daemon = it.marked("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
        assert not is_gone(daemon)
        it.launcher.close()
        assert is_gone(daemon)


@pytest.mark.parametrize("wait_for", [0, 1, 7])
def test_close_in_the_middle_of_many_launches_reports_each_once(tmp_path: Path, wait_for: int) -> None:
    names = [f"w{number}" for number in range(30)]
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch(*names)
        eventually(lambda: len(it.events.started()) >= wait_for, "some workers")
    assert [len(it.events.exits(name)) for name in names] == [1] * len(names)
    assert all(is_gone(pid) for pid in it.events.started().values())


def test_close_from_two_threads_at_once_returns_in_both(tmp_path: Path) -> None:
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch("w0")
        it.marked("w0")
        other = threading.Thread(target=it.launcher.close)
        other.start()
        it.launcher.close()
        other.join()


def test_close_without_start_does_nothing(tmp_path: Path) -> None:
    LocalProcessLauncher("a:b", {}, log_dir=tmp_path).close()


def test_a_fork_server_that_dies_while_importing_fails_the_launch_with_its_last_words(tmp_path: Path) -> None:
    with rig(tmp_path, "return_at_once", ["tests.integration.launcher.dies_on_import"]) as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code is None
        assert "exit code 3 before it was ready" in exited.detail
        assert "a native library is angry" in exited.detail
        it.launch("w1")
        assert it.events.wait_for_exit("w1").exit_code is None


def test_a_preload_that_takes_too_long_fails_the_launch(tmp_path: Path) -> None:
    (tmp_path / "never_ends.py").write_text("import signal\nsignal.pause()\n")
    path = [str(tmp_path), str(Path.cwd())]
    with rig(tmp_path, "return_at_once", ["never_ends"], sys_path=path, start_timeout_s=0.2) as it:
        it.launch("w0")
        assert "before it was ready" in it.events.wait_for_exit("w0").detail


def test_a_fork_server_that_cannot_be_started_fails_the_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python-here"))
    with rig(tmp_path, "return_at_once") as it:
        it.launch("w0")
        assert "could not be started" in it.events.wait_for_exit("w0").detail


def test_a_missing_preload_is_a_warning_and_workers_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), rig(tmp_path, "return_at_once", ["no_such_framework"]) as it:
        it.launch("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
    assert "no_such_framework" in caplog.text


def test_a_preload_that_starts_a_thread_is_warned_of_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preload = ["tests.integration.launcher.starts_a_thread"]
    with caplog.at_level(logging.WARNING), rig(tmp_path, "return_at_once", preload) as it:
        it.launch("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
    assert "started threads" in caplog.text


def test_a_sigterm_to_all_leaves_the_workers_their_time(tmp_path: Path) -> None:
    with rig(tmp_path, "take_a_sigterm_well") as it:
        it.launch("w0")
        it.marked("w0")
        zygote = it.launcher.zygote_pid()
        assert zygote is not None
        os.kill(zygote, signal.SIGTERM)
        it.launcher.terminate(ids("w0")[0])
        assert it.events.wait_for_exit("w0").exit_code == 7
        assert it.launcher.zygote_pid() == zygote


def test_a_sink_that_raises_does_not_stop_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Events):
        def __call__(self, event: WorkerStarted | WorkerExited) -> None:
            super().__call__(event)
            raise RuntimeError("not now")

    with rig(tmp_path, "return_at_once") as it:
        it.launcher._sink = moody = Moody()
        it.launch("w0")
        assert moody.wait_for_exit("w0").exit_code == 0
        it.launch("w1")
        assert moody.wait_for_exit("w1").exit_code == 0
    assert "not now" in caplog.text
