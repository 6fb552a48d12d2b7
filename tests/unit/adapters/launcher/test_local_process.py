from pathlib import Path

import pytest

from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.core.records import WorkerId
from elastic_train.errors import ConfigurationError, LaunchError


@pytest.mark.parametrize("entry", ["train", "module:", ":function", ""])
def test_an_entry_that_names_no_function_is_refused(entry: str) -> None:
    with pytest.raises(ConfigurationError, match=r"package\.module:function"):
        LocalProcessLauncher(entry, {}, log_dir=Path("logs"))


def test_a_spec_that_json_cannot_hold_is_refused_and_what_is_named() -> None:
    with pytest.raises(ConfigurationError, match="type set is not JSON serializable"):
        LocalProcessLauncher("a:b", {"names": {"x"}}, log_dir=Path("logs"))


def test_a_spec_that_is_too_large_for_a_message_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="in a file"):
        LocalProcessLauncher("a:b", {"blob": "x" * 200_000}, log_dir=Path("logs"))


def test_the_capacity_is_what_it_was_told() -> None:
    assert LocalProcessLauncher("a:b", {}, log_dir=Path("logs")).capacity() is None
    assert LocalProcessLauncher("a:b", {}, log_dir=Path("logs"), max_processes=3).capacity() == 3


def test_a_log_directory_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("I am a file")
    launcher = LocalProcessLauncher("a:b", {}, log_dir=tmp_path / "logs" / "deeper")
    with pytest.raises(LaunchError, match="log directory"):
        launcher.start(lambda _: None)
    launcher.close()


def test_nothing_runs_before_the_start() -> None:
    launcher = LocalProcessLauncher("a:b", {}, log_dir=Path("logs"))
    assert (launcher.pids(), launcher.zygote_pid()) == ({}, None)
    launcher.terminate(WorkerId("w0"))
