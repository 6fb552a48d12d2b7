"""How workers of the local launcher start, end and are reported: real processes."""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.launcher.harness import eventually, ids, is_gone, rig

pytestmark = pytest.mark.integration


def test_a_worker_that_returns_exits_with_zero_and_its_output_is_in_its_log(tmp_path: Path) -> None:
    with rig(tmp_path, "return_at_once") as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert (exited.exit_code, exited.detail) == (0, "")
        assert it.log("w0") == "hello from w0\nand to stderr\n"


def test_an_exit_code_is_reported(tmp_path: Path) -> None:
    with rig(tmp_path, "exit_as_told", spec={"code": 42}) as it:
        it.launch("w0")
        assert it.events.wait_for_exit("w0").exit_code == 42


def test_an_exit_message_is_told_and_counts_as_failure(tmp_path: Path) -> None:
    with rig(tmp_path, "exit_as_told", spec={"code": "no data today"}) as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code == 1
        assert "no data today" in exited.detail
        assert "no data today" in it.log("w0")


def test_an_exception_is_named_in_the_exit_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    with rig(tmp_path, "raise_an_error") as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code == 1
        assert exited.detail.startswith("RuntimeError: the model is made of cheese (log: ")
        assert "Traceback" in it.log("w0")


def test_a_signal_from_outside_is_reported_as_a_negative_exit_code(tmp_path: Path) -> None:
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch("w0")
        it.marked("w0")
        os.kill(it.launcher.pids()[ids("w0")[0]], signal.SIGKILL)
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code == -signal.SIGKILL
        assert "SIGKILL" in exited.detail


@pytest.mark.parametrize("stopped", [False, True])
def test_kill_ends_a_worker_also_when_it_is_stopped(tmp_path: Path, stopped: bool) -> None:
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch("w0")
        pid = it.marked("w0")
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        it.kill("w0")
        assert it.events.wait_for_exit("w0").exit_code == -signal.SIGKILL
        assert is_gone(pid)
        it.kill("w0")
        assert not it.launcher.pids()
    assert len(it.events.exits("w0")) == 1


def test_terminate_lets_a_worker_end_in_its_own_way(tmp_path: Path) -> None:
    with rig(tmp_path, "take_a_sigterm_well") as it:
        it.launch("w0")
        it.marked("w0")
        it.launcher.terminate(ids("w0")[0])
        assert it.events.wait_for_exit("w0").exit_code == 7


def test_a_worker_killed_before_it_could_start_is_reported_once(tmp_path: Path) -> None:
    with rig(tmp_path, "wait_for_the_end") as it:
        it.launch("w0", "w1")
        it.kill("w0")
        it.launcher.terminate(ids("w1")[0])
        assert it.events.wait_for_exit("w0").exit_code in (None, -signal.SIGKILL)
        assert it.events.wait_for_exit("w1").exit_code in (None, -signal.SIGKILL)
    assert len(it.events.exits("w0")) == len(it.events.exits("w1")) == 1


def test_twenty_workers_at_once_have_indices_of_their_own_and_one_exit_each(tmp_path: Path) -> None:
    names = [f"w{number}" for number in range(20)]
    with rig(tmp_path, "describe_itself") as it:
        it.launch(*names)
        for name in names:
            assert it.events.wait_for_exit(name).exit_code == 0, it.log(name)
        told = [it.marked(name) for name in names]
    assert sorted(one["worker_index"] for one in told) == list(range(20))
    assert len({one["random"] for one in told}) == 20
    assert {one["pid"] for one in told} == set(it.events.started().values())
    assert [len(it.events.exits(name)) for name in names] == [1] * 20


def test_a_freed_index_is_given_to_the_next_worker(tmp_path: Path) -> None:
    with rig(tmp_path, "describe_itself") as it:
        it.launch("w0")
        it.events.wait_for_exit("w0")
        it.launch("w1")
        assert it.marked("w1")["worker_index"] == 0


def test_a_worker_is_set_up_as_a_process_of_its_own(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = {"working_directory": elsewhere, "env": {"COLOUR": "green"}}
    with rig(tmp_path, "describe_itself", ["numpy"], **options) as it:
        it.launch("w0", "w1")
        first, second = it.marked("w0"), it.marked("w1")
        zygote_session = os.getsid(it.launcher.zygote_pid() or 0)
    assert first["session"] == first["group"] == first["pid"]
    assert zygote_session not in (first["session"], os.getsid(0))
    assert first["cwd"] == str(elsewhere)
    assert first["environment"]["COLOUR"] == "green"
    assert first["environment"]["OMP_NUM_THREADS"] == "1"
    assert first["environment"].get("PYTHONPATH") == os.environ.get("PYTHONPATH")
    assert first["stdin"] == "/dev/null"
    assert first["numpy_random"] != second["numpy_random"]
    sockets_and_pidfds = [
        path for path in second["descriptors"].values() if path.startswith("socket:") or "pidfd" in path
    ]
    assert not sockets_and_pidfds
    assert sum(path.startswith("pipe:") for path in second["descriptors"].values()) == 1  # its own report


def test_the_drivers_import_path_is_the_workers(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("def run(config):\n    print('found me')\n")
    path = [str(tmp_path), str(Path.cwd())]
    with rig(tmp_path, "only_here:run", sys_path=path) as it:
        it.launch("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
        assert it.log("w0") == "found me\n"


def test_an_omp_setting_of_the_user_is_kept(tmp_path: Path) -> None:
    with rig(tmp_path, "describe_itself", env={"OMP_NUM_THREADS": "3"}) as it:
        it.launch("w0")
        assert it.marked("w0")["environment"]["OMP_NUM_THREADS"] == "3"


def test_threads_exit_handlers_and_buffers_are_finished_before_the_end(tmp_path: Path) -> None:
    with rig(tmp_path, "end_with_unfinished_business") as it:
        it.launch("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
        assert (it.out / "thread").read_text() == "done"
        assert (it.out / "handler").read_text() == "done"
        assert it.log("w0") == "no newline at the end"


def test_all_lines_before_a_sudden_death_are_in_the_log(tmp_path: Path) -> None:
    with rig(tmp_path, "print_many_lines") as it:
        it.launch("w0")
        it.events.wait_for_exit("w0")
        assert it.log("w0").splitlines() == [f"line {number}" for number in range(2000)]


def test_what_a_worker_forked_ends_with_it(tmp_path: Path) -> None:
    with rig(tmp_path, "leave_a_grandchild", spec={"stay": False}) as it:
        it.launch("w0")
        grandchild = it.marked("w0")
        assert it.events.wait_for_exit("w0").exit_code == 0
        eventually(lambda: is_gone(grandchild), "the grandchild to end")


def test_what_a_worker_forked_ends_with_it_even_if_it_does_not_listen(tmp_path: Path) -> None:
    with rig(tmp_path, "leave_a_stubborn_grandchild") as it:
        it.launch("w0")
        grandchild = it.marked("w0")
        os.kill(grandchild, signal.SIGSTOP)
        it.kill("w0")
        eventually(lambda: is_gone(grandchild), "the grandchild to end")


@pytest.mark.parametrize("by_close", [False, True])
def test_the_shared_memory_of_a_worker_that_is_killed_is_freed(tmp_path: Path, by_close: bool) -> None:
    """By Python's resource tracker, which must outlive the worker for a moment."""
    with rig(tmp_path, "hold_shared_memory") as it:
        it.launch("w0")
        segment = Path("/dev/shm") / it.marked("w0")
        assert segment.exists()
        if by_close:
            it.launcher.close()
        else:
            it.kill("w0")
        eventually(lambda: not segment.exists(), "the shared memory to be freed")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("no.such.module:run", "ModuleNotFoundError"),
        ("tests.integration.launcher.entries:no_such_function", "no_such_function"),
        ("tests.integration.launcher.broken_entries:run", "this module is broken"),
    ],
)
def test_an_entry_that_cannot_be_imported_never_comes_up_and_says_why(tmp_path: Path, entry: str, told: str) -> None:
    with rig(tmp_path, entry) as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code is None
        assert told in exited.detail
        assert entry in exited.detail


def test_a_child_that_hangs_in_its_fork_is_killed_and_reported_at_the_deadline(tmp_path: Path) -> None:
    preload = ["tests.integration.launcher.hangs_in_child"]
    with rig(tmp_path, "return_at_once", preload, ready_timeout_s=0.2) as it:
        it.launch("w0")
        exited = it.events.wait_for_exit("w0")
        assert exited.exit_code is None
        assert "entry point within 0.2 s" in exited.detail
        assert is_gone(it.events.started()["w0"])


def test_torch_is_there_at_once_with_fresh_randomness_and_without_threads(tmp_path: Path) -> None:
    modules = ["torch", "torch.distributed", "torch._dynamo", "torch.nn.parallel.distributed"]
    with rig(tmp_path, "describe_itself", modules) as it:
        it.launch("w0", "w1")
        first, second = it.marked("w0"), it.marked("w1")
        assert it.events.wait_for_exit("w0").exit_code == it.events.wait_for_exit("w1").exit_code == 0
    assert "torch" in first["preloaded"]
    assert first["torch_random"] != second["torch_random"]
    assert first["threads"] == 1
