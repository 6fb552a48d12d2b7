"""The command line finds jobs, prints answers, and tells by its exit code what came of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic_train.adapters.coordination import connect
from elastic_train.core.records import ControlAnswer
from elastic_train.ports import Coordination
from elastic_train.trainer import cli
from elastic_train.trainer.job_directory import JobDirectory
from tests.unit.trainer.test_controls import answer_requests, fill


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


@pytest.fixture
def coordination(url: str) -> Coordination:
    coordination = connect(url)
    fill(coordination)
    return coordination


@pytest.fixture
def job(elastic_train_home: Path, url: str, coordination: Coordination) -> Iterator[JobDirectory]:
    directory = JobDirectory("digits", elastic_train_home / "digits")
    directory.acquire()
    directory.publish(url, "file:///x")
    yield directory
    directory.release()


def test_list_shows_the_running_jobs(job: JobDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == cli.OK
    assert "digits" in capsys.readouterr().out
    assert cli.main(["list", "--json"]) == cli.OK
    assert [found["job"] for found in json.loads(capsys.readouterr().out)] == ["digits"]


def test_list_says_so_when_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == cli.OK
    assert "No job runs below" in capsys.readouterr().out


def test_status_shows_world_workers_and_progress(job: JobDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "digits"]) == cli.OK
    out = capsys.readouterr().out
    for expected in ("digits", "running", "world 2 in 2..8", "membership epoch 3", "w0001", "node-b", "loss=0.5"):
        assert expected in out
    assert out.index("w0002") < out.index("w0001")  # by rank


def test_a_job_is_found_by_its_directory_and_by_its_coordination_url(
    job: JobDirectory, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([str(job.path)], ["digits", "--coordination", url]):
        assert cli.main(["status", "--json", *arguments]) == cli.OK
        status = json.loads(capsys.readouterr().out)
        assert status["world"]["members"] == ["w0002", "w0001"]
        assert status["progress"]["step"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resize", "digits", "4"], "resize: as you like"),
        (["drain", "digits", "w0001"], "drain: as you like"),
        (["stop", "digits"], "stop: as you like"),
    ],
)
@pytest.mark.parametrize("accepted", [True, False])
def test_an_answer_is_printed_and_a_refusal_is_an_exit_code(
    job: JobDirectory,
    coordination: Coordination,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    *,
    accepted: bool,
) -> None:
    controller = answer_requests(coordination, ControlAnswer("", accepted, "as you like"))
    assert cli.main(arguments) == (cli.OK if accepted else cli.REFUSED)
    controller.join()
    assert capsys.readouterr().out.strip() == message


def test_no_answer_is_an_exit_code_of_its_own(job: JobDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stop", "digits", "--timeout", "0.01"]) == cli.UNREACHABLE
    assert "did not answer" in capsys.readouterr().err


def test_a_job_that_does_not_run_is_an_exit_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "nowhere"]) == cli.NOT_FOUND
    assert "--coordination URL" in capsys.readouterr().err


def test_an_unknown_scheme_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "digits", "--coordination", "zoo://user:secret@a"]) == cli.USAGE
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["resize", "digits"], ["resize", "digits", "four"], ["explode"]])
def test_wrong_arguments_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.USAGE
    capsys.readouterr()


def test_checkpoints_are_looked_at_through_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["checkpoints", "--help"])
    assert caught.value.code == 0
    assert "verify" in capsys.readouterr().out
