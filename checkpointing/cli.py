"""`elastic-train checkpoints`: look at checkpoints, check, export and remove them.

Exit codes: 0 all is well; 1 something is damaged, or what was asked for is not there; 2 the command or the store is at
fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpointing.core.manifest import Manifest
from checkpointing.core.records import CheckpointRef
from checkpointing.errors import CheckpointError, Damaged, NoCheckpoint, UnsupportedVersion
from checkpointing.export import export_safetensors, export_torch
from checkpointing.repository import Repository
from checkpointing.retention import DEFAULT_MIN_AGE_S
from checkpointing.settings import Settings
from storage import StorageError, open_store

if TYPE_CHECKING:
    from rich.table import Table

    from storage.store import ObjectStore

OK, BAD, FAULT = 0, 1, 2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command `checkpoints` to a command line, and return its parser."""
    parser = subparsers.add_parser(
        "checkpoints", help="list, show, verify, export and remove checkpoints", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="checkpoints_command", required=True, metavar="COMMAND")
    listing = _add(commands, "ls", "list checkpoints", step=None)
    listing.add_argument("--json", action="store_true", help="print one JSON object a checkpoint instead of a table")
    showing = _add(commands, "show", "show what a checkpoint holds", step="optional")
    showing.add_argument("--tensors", action="store_true", help="list every tensor")
    verifying = _add(commands, "verify", "read every byte and compare it with its checksum", step="optional")
    verifying.add_argument("--all", action="store_true", help="verify all checkpoints, not only the newest")
    exporting = _add(commands, "export", "write a checkpoint as one file", step="optional")
    exporting.add_argument("--to", required=True, type=Path, metavar="FILE", help="ends in .safetensors, .pt or .pth")
    exporting.add_argument("--allow-pickle", action="store_true", help="also read pickled values; they may run code")
    removing = _add(commands, "rm", "remove a checkpoint", step="required")
    removing.add_argument("--force", action="store_true", help="also the newest one")
    collecting = _add(commands, "gc", "remove what no checkpoint refers to any more", step=None)
    collecting.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    collecting.add_argument("--min-age-s", type=float, default=DEFAULT_MIN_AGE_S, help="leave younger objects alone")
    parser.set_defaults(run=run)
    return parser


def _add(commands: Any, name: str, help_: str, *, step: str | None) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_)
    parser.add_argument("url", metavar="URL", help="the store: s3://bucket/prefix, gs://, az://, file:///path")
    parser.add_argument("--job", help="the job; needed if the store has several")
    if step is not None:
        help_ = "which checkpoint; the newest if not given"
        parser.add_argument("--step", type=int, required=step == "required", help=help_)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed command and return the exit code."""
    try:
        with open_store(args.url) as store:
            return int(_COMMANDS[args.checkpoints_command](store, args))
    except (NoCheckpoint, Damaged) as error:
        return _complain(error, BAD)
    except (CheckpointError, StorageError, OSError, ValueError) as error:
        return _complain(error, FAULT)


def _complain(error: Exception, code: int) -> int:
    print(f"elastic-train checkpoints: {error}", file=sys.stderr)
    return code


@dataclass(frozen=True, slots=True)
class _Row:
    """A checkpoint as far as its manifest tells."""

    job: str
    ref: CheckpointRef
    state: str
    manifest: Manifest | None
    problem: str = ""


def _jobs(store: ObjectStore, wanted: str | None) -> list[str]:
    if wanted is not None:
        return [wanted]
    found = sorted({info.key.partition("/")[0] for info in store.list() if "/manifests/" in info.key})
    if not found:
        raise NoCheckpoint(store.url)
    return found


def _one_repository(store: ObjectStore, args: argparse.Namespace, *, allow_pickle: bool = False) -> Repository:
    jobs = _jobs(store, args.job)
    if len(jobs) > 1:
        raise ValueError(f"{store.url} has checkpoints of several jobs; choose one with --job: {', '.join(jobs)}")
    return Repository("store", store, jobs[0], settings=Settings(allow_pickle=allow_pickle))


def _rows(repository: Repository) -> Iterator[_Row]:
    """Yield the checkpoints of a job, newest first, with those that were never committed or forgotten at the end."""
    committed = repository.catalog.committed()
    digests = {ref.digest for ref in committed}
    loose = tuple(ref for ref in repository.catalog.listed() if ref.digest not in digests)
    for index, ref in enumerate((*committed, *loose)):
        state = "newest" if not index and committed else "kept" if ref.digest in digests else "not committed"
        try:
            yield _Row(repository.keys.job, ref, state, repository.reader.open(ref))
        except (Damaged, UnsupportedVersion) as problem:
            yield _Row(repository.keys.job, ref, "damaged", None, str(problem))


def _chosen(repository: Repository, step: int | None) -> CheckpointRef:
    """Return the newest committed checkpoint, or the newest of a step.

    Raises:
        NoCheckpoint: There is none.
    """
    committed = repository.catalog.committed()
    for ref in committed:
        if step is None or ref.step == step:
            return ref
    there = ", ".join(str(ref.step) for ref in committed) or "none"
    of_step = "" if step is None else f" of step {step}"
    raise NoCheckpoint(f"{repository.store.url}, job {repository.keys.job}{of_step} (committed: {there})")


def _list(store: ObjectStore, args: argparse.Namespace) -> int:
    rows = [row for job in _jobs(store, args.job) for row in _rows(Repository("store", store, job))]
    if args.json:
        for row in rows:
            print(json.dumps(_described(row)))
    else:
        from rich.console import Console

        Console().print(_table(rows))
    if not any(row.state in ("newest", "kept") for row in rows):
        return BAD
    return BAD if any(row.problem for row in rows) else OK


def _described(row: _Row) -> dict[str, Any]:
    manifest = row.manifest
    return {
        "job": row.job,
        "step": row.ref.step,
        "fence": row.ref.fence,
        "state": row.state,
        "nbytes": manifest and manifest.nbytes,
        "created_unix_s": manifest and manifest.created_unix_s,
        "world_size": manifest and manifest.world_size,
        "metadata": manifest and dict(manifest.metadata),
        "problem": row.problem,
    }


def _table(rows: list[_Row]) -> Table:
    from rich.table import Table

    table = Table("job", "step", "fence", "size", "own", "age", "writers", "state", "metadata")
    for row in rows:
        manifest = row.manifest
        if manifest is None:
            table.add_row(row.job, str(row.ref.step), str(row.ref.fence), "", "", "", "", row.state, row.problem)
            continue
        table.add_row(
            row.job,
            str(manifest.step),
            str(manifest.fence),
            size_text(manifest.nbytes),
            size_text(_own_nbytes(manifest)),
            age_text(time.time() - manifest.created_unix_s),
            str(manifest.world_size),
            row.state,
            json.dumps(manifest.metadata) if manifest.metadata else "",
        )
    return table


def _own_nbytes(manifest: Manifest) -> int:
    """Return how much was written for this checkpoint, and not for an earlier one."""
    mark = f"/{manifest.step:012d}-{manifest.fence:016x}-"
    return sum(file.nbytes for file in manifest.files if mark in file.key)


def size_text(nbytes: float) -> str:
    """Return a size for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} TiB"


def age_text(seconds: float) -> str:
    """Return an age for people."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _show(store: ObjectStore, args: argparse.Namespace) -> int:
    repository = _one_repository(store, args)
    manifest = repository.reader.open(_chosen(repository, args.step))
    print(f"job         {manifest.job}")
    print(f"step        {manifest.step}")
    print(f"fence       {manifest.fence}")
    print(f"written     {age_text(time.time() - manifest.created_unix_s)} ago, by {manifest.world_size} writers")
    print(f"size        {size_text(manifest.nbytes)} in {len(manifest.tensors)} tensors")
    print(f"metadata    {json.dumps(manifest.metadata)}")
    if manifest.pickled:
        print(f"pickled     {', '.join(manifest.pickled)}")
    for file in manifest.files:
        print(f"file        {file.key}  {size_text(file.nbytes)}")
    if args.tensors:
        for tensor in manifest.tensors:
            shape = ", ".join(map(str, tensor.shape))
            print(f"tensor      {tensor.path}  {tensor.dtype}[{shape}]  {size_text(tensor.nbytes)}  {tensor.kind}")
    return OK


def _verify(store: ObjectStore, args: argparse.Namespace) -> int:
    repository = _one_repository(store, args)
    refs = repository.catalog.committed() if args.all else (_chosen(repository, args.step),)
    code = OK
    for ref in refs:
        try:
            manifest = repository.reader.open(ref)
            nbytes = repository.reader.verify(manifest)
        except (Damaged, UnsupportedVersion) as problem:
            print(f"step {ref.step} (fence {ref.fence}): DAMAGED: {problem}")
            code = BAD
        else:
            print(f"step {ref.step} (fence {ref.fence}): {size_text(nbytes)} are as they were written")
    return code


def _export(store: ObjectStore, args: argparse.Namespace) -> int:
    repository = _one_repository(store, args, allow_pickle=args.allow_pickle)
    writers = {".safetensors": export_safetensors, ".pt": export_torch, ".pth": export_torch}
    write = writers.get(args.to.suffix)
    if write is None:
        raise ValueError(f"{args.to}: the name must end in {', '.join(writers)}")
    manifest = repository.reader.open(_chosen(repository, args.step))
    write(repository, manifest, args.to)
    print(f"{args.to}: step {manifest.step}, {size_text(args.to.stat().st_size)}")
    return OK


def _remove(store: ObjectStore, args: argparse.Namespace) -> int:
    repository = _one_repository(store, args)
    committed = repository.catalog.committed()
    unwanted = [ref for ref in committed if ref.step == args.step]
    if not unwanted:
        _chosen(repository, args.step)  # says what is there
    if committed[0] in unwanted and not args.force:
        raise ValueError(f"step {args.step} is the newest checkpoint; pass --force to remove it all the same")
    repository.collector.forget(unwanted)
    print(f"removed step {args.step} ({len(unwanted)} checkpoints)")
    return OK


def _collect(store: ObjectStore, args: argparse.Namespace) -> int:
    for job in _jobs(store, args.job):
        collector = Repository("store", store, job).collector
        collected = collector.sweep(min_age_s=args.min_age_s, dry_run=args.dry_run)
        for info in collected.objects:
            print(f"{'would remove' if args.dry_run else 'removed'}  {info.key}  {size_text(info.nbytes)}")
        print(f"{job}: {len(collected.objects)} objects, {size_text(collected.nbytes)}")
    return OK


_COMMANDS = {"ls": _list, "show": _show, "verify": _verify, "export": _export, "rm": _remove, "gc": _collect}
