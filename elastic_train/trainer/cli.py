"""The command line: ``elastic-train list | status | resize | drain | stop | diff | checkpoints``.

Exit codes: 0 done; 1 the job refused; 2 wrong usage or configuration; 3 no such job; 4 the coordination service
does not answer. Those of ``checkpoints`` are told in `checkpointing.cli`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from checkpointing.cli import add_parser as add_checkpoints_parser
from elastic_train.config import check_job_name, read_environment
from elastic_train.core.records import ControlRequest, WorkerId
from elastic_train.errors import ConfigurationError, CoordinationError, ElasticTrainError, JobNotFound
from elastic_train.journal import read_journal
from elastic_train.trainer.cli_views import difference_view, jobs_table, status_as_json, status_view
from elastic_train.trainer.controls import JobControls
from elastic_train.trainer.job_directory import list_jobs, read_job_file
from elastic_train.trainer.journal_diff import compare

OK, REFUSED, USAGE, NOT_FOUND, UNREACHABLE = range(5)
_ANSWER_TIMEOUT_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        exit_code: int = options.run(options)
        return exit_code
    console = Console()
    try:
        command: Callable[[argparse.Namespace, Console], int] = options.command
        return command(options, console)
    except ElasticTrainError as error:
        Console(stderr=True).print(f"[bold red]elastic-train:[/] {error}", soft_wrap=True, highlight=False)
        return _exit_code(error)
    except KeyboardInterrupt:
        return 130


def _exit_code(error: ElasticTrainError) -> int:
    if isinstance(error, JobNotFound):
        return NOT_FOUND
    if isinstance(error, CoordinationError):
        return UNREACHABLE
    return USAGE if isinstance(error, ConfigurationError) else REFUSED


# --------------------------------------------------------------------------- commands


def _list(options: argparse.Namespace, console: Console) -> int:
    home = options.home or read_environment(os.environ).home
    jobs = list_jobs(home)
    if options.json:
        print(json.dumps([{"job": job.job, "pid": job.driver_pid, "node": job.node} for job in jobs]))
    elif jobs:
        console.print(jobs_table(jobs))
    else:
        console.print(f"No job runs below {home}.", highlight=False)
    return OK


def _status(options: argparse.Namespace, console: Console) -> int:
    with _controls(options) as controls:
        status = controls.status()
    if options.json:
        print(json.dumps(status_as_json(status)))
    else:
        console.print(status_view(status))
    return OK


def _resize(options: argparse.Namespace, console: Console) -> int:
    return _ask(
        options, console, lambda controls: controls.resize(options.workers, reason="on request (elastic-train)")
    )


def _drain(options: argparse.Namespace, console: Console) -> int:
    worker_id = WorkerId(options.worker)
    return _ask(
        options, console, lambda controls: controls.drain(worker_id, reason="drained on request (elastic-train)")
    )


def _stop(options: argparse.Namespace, console: Console) -> int:
    return _ask(options, console, lambda controls: controls.stop(reason="on request (elastic-train)"))


def _ask(options: argparse.Namespace, console: Console, submit: Callable[[JobControls], ControlRequest]) -> int:
    with _controls(options) as controls:
        answer = controls.answer(submit(controls), options.timeout)
    console.print(answer.message, style="green" if answer.accepted else "yellow", highlight=False, soft_wrap=True)
    return OK if answer.accepted else REFUSED


def _diff(options: argparse.Namespace, console: Console) -> int:
    journals = [read_journal(_journal_of(path)) for path in (options.one, options.other)]
    found = compare(*journals)
    console.print(difference_view(found), highlight=False, soft_wrap=True)
    if not found.compared:
        return USAGE
    return OK if found.first_different is None else REFUSED


def _journal_of(given: Path) -> Path:
    """Return the journals of a run: `given` itself, or of the newest run where it is a job's directory.

    Raises:
        ConfigurationError: There is none.
    """
    runs = sorted((given / "journal").glob("run-*"), key=lambda run: (len(run.name), run.name))
    journal = runs[-1] if runs else given
    if journal.is_file() or any(journal.glob("*.jsonl")):
        return journal
    raise ConfigurationError("JOURNAL", f"there is no journal in {given}", "Give a job's directory or a run's journal")


@contextmanager
def _controls(options: argparse.Namespace) -> Iterator[JobControls]:
    from elastic_train.adapters.coordination import connect

    job, url = _where(options)
    coordination = connect(url)
    try:
        yield JobControls(coordination, job)
    finally:
        coordination.close()


def _where(options: argparse.Namespace) -> tuple[str, str]:
    """Return the job's name and the URL of its coordination service.

    Raises:
        JobNotFound: No URL was given and no such job runs on this machine.
    """
    environment = read_environment(os.environ)
    given = Path(options.job)
    directory = given if given.is_dir() and given.name != options.job else environment.home / options.job
    url: str | None = options.coordination or environment.coordination
    if url is not None:
        return check_job_name(given.name, "JOB"), url
    found = read_job_file(directory)
    if not found.is_running():
        raise JobNotFound(found.job, f"does not run any more (process {found.driver_pid} on {found.node} is gone)")
    return found.job, found.coordination


# --------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="elastic-train",
        description="Look at running jobs and steer them.",
        epilog="Exit codes: 0 done, 1 refused by the job, 2 wrong usage, 3 no such job, 4 no answer.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="show the jobs that run on this machine")
    listing.add_argument("--home", type=Path, help="directory of all jobs (default: $ELASTIC_TRAIN_HOME)")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_list)

    status = _job_parser(commands, "status", "show how a job stands", _status)
    status.add_argument("--json", action="store_true", help="print JSON")

    resize = _job_parser(commands, "resize", "change the number of workers", _resize)
    resize.add_argument("workers", type=int, metavar="N", help="the wanted number, within the job's bounds")

    drain = _job_parser(commands, "drain", "let a worker leave at the next step boundary; it is replaced", _drain)
    drain.add_argument("worker", metavar="WORKER", help="its name, as 'status' shows it")

    diff = commands.add_parser(
        "diff",
        help="compare the states that two runs had after the same steps",
        description="Compare the digests of the state in two runs' journals (see digest_every_steps). Exit code 0: the "
        "same wherever both have one; 1: they differ; 2: nothing to compare.",
    )
    for name in ("one", "other"):
        diff.add_argument(name, type=Path, metavar="JOURNAL", help="a job's directory, or the journal of one run")
    diff.set_defaults(command=_diff)

    _job_parser(commands, "stop", "end a job after the current step, with a checkpoint", _stop)
    add_checkpoints_parser(commands).set_defaults(command=None)
    return parser


def _job_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    explanation: str,
    command: Callable[[argparse.Namespace, Console], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=explanation, description=explanation.capitalize() + ".")
    parser.add_argument("job", metavar="JOB", help="name of a job on this machine, its directory, or with URL any job")
    parser.add_argument("--coordination", metavar="URL", help="etcd://host:2379 of the job's coordination service")
    parser.add_argument(
        "--timeout", type=float, default=_ANSWER_TIMEOUT_S, metavar="S", help="seconds to wait for the job's answer"
    )
    parser.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
