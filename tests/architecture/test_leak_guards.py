"""The guards that every test runs under must themselves be able to fail."""

import os
import socket
import subprocess
import sys
import threading
from multiprocessing import shared_memory
from pathlib import Path

import pytest

from tests.leaks import Footprint, files_left_in, wait_until_clean

ROOT = Path(__file__).parents[2]


def test_a_child_process_that_was_left_is_found() -> None:
    before = Footprint.take()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        leaks = wait_until_clean(before, grace_s=0.0)
        cheap = Footprint.take_cheaply()
        child.communicate(b"\n")
    assert [f"pid {child.pid} " in leak for leak in leaks] == [True]
    assert (child.pid, 0.0) in cheap.processes
    assert wait_until_clean(before) == []


def test_a_process_that_detached_from_us_is_found_by_its_mark() -> None:
    before = Footprint.take()
    detach = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0, start_new_session=True)"
    )
    reading, writing = os.pipe()
    try:
        subprocess.run([sys.executable, "-c", detach], stdin=reading, stderr=subprocess.DEVNULL, check=True)
        leaks = wait_until_clean(before, grace_s=0.0)
    finally:
        os.close(reading)
        os.close(writing)  # the end of its input ends it
    assert len(leaks) == 1
    assert leaks[0].startswith("process:")
    assert wait_until_clean(before) == []


def test_a_thread_that_was_left_is_found() -> None:
    before = Footprint.take()
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="left-over")
    thread.start()
    leaks = wait_until_clean(before, grace_s=0.0)
    release.set()
    thread.join()
    assert leaks == ["thread: left-over (daemon=False)"]


def test_a_listening_socket_that_was_left_is_found() -> None:
    before = Footprint.take()
    with socket.create_server(("127.0.0.1", 0)) as server:
        leaks = wait_until_clean(before, grace_s=0.0)
        port = server.getsockname()[1]
    assert leaks == [f"listening socket: 127.0.0.1:{port}"]


def test_shared_memory_that_was_left_is_found() -> None:
    before = Footprint.take()
    segment = shared_memory.SharedMemory(create=True, size=64)
    segment.close()
    leaks = wait_until_clean(before, grace_s=0.0)
    segment.unlink()
    assert leaks == [f"shared memory: /dev/shm/{segment.name}"]


def test_temporary_files_in_the_job_root_are_found(tmp_path: Path) -> None:
    (tmp_path / "job" / "data").mkdir(parents=True)
    (tmp_path / "job" / "data" / "manifest.json").touch()
    (tmp_path / "job" / "data" / "manifest.json.tmp-3").touch()
    assert files_left_in(tmp_path) == [f"temporary file: {tmp_path}/job/data/manifest.json.tmp-3"]
    assert files_left_in(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("subprocess.Popen(['sleep', '60'])", "this test left behind"),
        ("subprocess.run(['sleep', '0'])", "1 passed"),
    ],
)
def test_the_guard_fails_a_leaking_test_and_ends_what_it_left(tmp_path: Path, body: str, verdict: str) -> None:
    (tmp_path / "test_it.py").write_text(f"import subprocess\n\ndef test_it():\n    {body}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest"]
    command += ["-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path / "test_it.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert verdict in result.stdout, result.stdout + result.stderr
