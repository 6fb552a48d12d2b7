"""One driver a job; what a run needs is there, and what was temporary is gone afterwards."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from elastic_train.config import Environment
from elastic_train.errors import ConfigurationError, JobAlreadyRunning, JobNotFound
from elastic_train.trainer.job_directory import JobDirectory, list_jobs, locate, read_job_file


def test_the_directory_lies_below_the_home_of_all_jobs_unless_it_is_given(tmp_path: Path) -> None:
    environment = Environment(home=tmp_path)
    assert locate("digits", None, environment).path == tmp_path / "digits"
    assert locate("digits", tmp_path / "elsewhere", environment).path == tmp_path / "elsewhere"


def test_a_run_has_places_of_its_own_and_leaves_only_what_lasts(tmp_path: Path) -> None:
    directory = JobDirectory("digits", tmp_path / "digits")
    directory.acquire()
    directory.write_payload(b"pickle")
    directory.publish("etcd://127.0.0.1:1", "file:///x")
    directory.etcd.mkdir()
    assert directory.journal.is_dir()
    assert stat.S_IMODE(directory.payload.stat().st_mode) == 0o600
    assert stat.S_IMODE((directory.path / "job.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    directory.release()
    directory.release()
    assert sorted(path.name for path in directory.path.iterdir()) == ["journal", "logs"]


def test_every_run_of_a_job_gets_a_journal_of_its_own(tmp_path: Path) -> None:
    names = []
    for _ in range(2):
        directory = JobDirectory("digits", tmp_path)
        directory.acquire()
        names.append(directory.journal.name)
        directory.release()
    assert names == ["run-1", "run-2"]


def test_a_second_driver_is_told_who_runs_the_job(tmp_path: Path) -> None:
    first, second = JobDirectory("digits", tmp_path), JobDirectory("digits", tmp_path)
    first.acquire()
    with pytest.raises(JobAlreadyRunning, match="starting or ending"):
        second.acquire()
    first.publish("etcd://127.0.0.1:1", "file:///x")
    with pytest.raises(JobAlreadyRunning, match=rf"process {os.getpid()}.*elastic-train stop digits"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_the_lock_of_a_dead_driver_and_its_leftovers_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "job.json").write_text("{}")
    (tmp_path / "etcd").mkdir()
    directory = JobDirectory("digits", tmp_path)
    directory.acquire()
    assert not (tmp_path / "etcd").exists()
    assert not (tmp_path / "job.json").exists()
    directory.release()


def test_a_directory_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="ELASTIC_TRAIN_HOME") as caught:
        JobDirectory("digits", tmp_path / "file" / "digits").acquire()
    assert caught.value.parameter == "work_dir"


def test_a_running_job_is_found_and_a_dead_one_is_not(tmp_path: Path) -> None:
    directory = JobDirectory("digits", tmp_path / "digits")
    directory.acquire()
    directory.publish("etcd://127.0.0.1:1", "file:///x")
    found = read_job_file(directory.path)
    assert (found.job, found.coordination, found.is_running()) == ("digits", "etcd://127.0.0.1:1", True)
    assert list_jobs(tmp_path) == [found]
    assert not replace(found, driver_started_at=1.0).is_running()  # the pid was given to another process since
    directory.release()
    with pytest.raises(JobNotFound, match=r"no job\.json"):
        read_job_file(directory.path)
    assert list_jobs(tmp_path) == []


def test_a_damaged_job_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(JobNotFound, match="Remove it"):
        read_job_file(tmp_path)
