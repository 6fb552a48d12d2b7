"""The newest whole checkpoint of several places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from checkpointing.catalog import DAMAGED
from checkpointing.core.digest import hex_digest
from checkpointing.core.manifest import Manifest
from checkpointing.core.records import CheckpointRef
from checkpointing.errors import CheckpointError, Damaged, NoCheckpoint, UnsupportedVersion
from checkpointing.repository import Repository
from checkpointing.settings import CheckpointInfo
from storage.errors import StorageError

T = TypeVar("T")
Candidate = tuple[Repository, CheckpointRef]


class Unreachable(CheckpointError):
    """Report a place that could not be read; `__cause__` is what its store said."""


class Restorer:
    """Find and load the newest checkpoint that is whole, wherever it is.

    Args:
        repositories: The places, the fastest first; the last is the one that counts: if it cannot be read and no other
            has a checkpoint, that is an error, not an absence.
        report: Is told of all that cannot be used, with the place's name.
    """

    def __init__(self, repositories: Sequence[Repository], report: Callable[[str, CheckpointError], None]) -> None:
        self._repositories = tuple(repositories)
        self._report = report
        self._problems: list[CheckpointError] = []
        self._lost: dict[str, StorageError] = {}

    def newest(self) -> CheckpointInfo | None:
        """Return the newest checkpoint whose manifest is good and whose files are there.

        Raises:
            StorageError: The last place cannot be read, and the others have nothing.
        """
        found = self._first(_open)
        if found is None:
            return None
        (repository, ref), manifest = found
        return CheckpointInfo(ref, repository.name, manifest, tuple(self._problems))

    def load(self, into: Any, *, strict: bool) -> Any:
        """Return the newest state that is good to the last byte.

        Raises:
            NoCheckpoint: There is none.
            StructureMismatch: The tensors of `into` are others.
            PickleNotAllowed: It holds pickled values.
            StorageError: The last place cannot be read, and the others have nothing.
        """
        found = self._first(lambda candidate: candidate[0].reader.load(_open(candidate), into, strict=strict))
        if found is None:
            last = self._repositories[-1]
            raise NoCheckpoint(f"{last.store.url}, job {last.keys.job}", self._problems)
        return found[1]

    def _first(self, work: Callable[[Candidate], T]) -> tuple[Candidate, T] | None:
        """Return the first candidate that can be used, with what `work` made of it."""
        for candidate in self._candidates():
            try:
                return candidate, work(candidate)
            except (Damaged, UnsupportedVersion) as problem:
                self._reject(candidate[0], problem)
            except StorageError as error:
                self._lose(candidate[0], error)
        failure = self._lost.get(self._repositories[-1].name)
        if failure is not None:
            raise failure
        return None

    def _candidates(self) -> Iterator[Candidate]:
        """Yield what is committed anywhere, newest first, then what LIST finds besides.

        A manifest that was never committed is only reached when nothing committed is whole: it is complete too, and
        better than nothing.
        """
        known: set[str] = set()
        for candidate in self._merged(self._committed):
            known.add(candidate[1].digest)
            yield candidate
        for candidate in self._merged(self._listed):
            if candidate[1].digest not in known:
                yield candidate

    def _merged(self, find: Callable[[Repository], tuple[CheckpointRef, ...]]) -> Iterator[Candidate]:
        """Yield the checkpoints of all places, newest first; of one that several have, the fastest place's first."""
        waiting = [(repository, list(reversed(find(repository)))) for repository in self._repositories]
        while True:
            heads = [(repository, refs) for repository, refs in waiting if refs and repository.name not in self._lost]
            if not heads:
                return
            # The first of equals is the fastest, and a place's own order is kept: it is that of the commits.
            repository, refs = max(heads, key=lambda head: (head[1][-1].fence, head[1][-1].step))
            yield repository, refs.pop()

    def _committed(self, repository: Repository) -> tuple[CheckpointRef, ...]:
        try:
            return repository.catalog.committed()
        except (Damaged, UnsupportedVersion) as problem:
            self._reject(repository, problem)
        except StorageError as error:
            self._lose(repository, error)
        return ()

    def _listed(self, repository: Repository) -> tuple[CheckpointRef, ...]:
        if repository.name in self._lost:
            return ()
        try:
            return repository.catalog.listed()
        except StorageError as error:
            self._lose(repository, error)
        return ()

    def _reject(self, repository: Repository, problem: CheckpointError) -> None:
        self._problems.append(problem)
        self._report(repository.name, problem)
        if isinstance(problem, Damaged) and problem.key.startswith(repository.keys.shards):
            self._distrust(repository, problem.key)

    def _distrust(self, repository: Repository, key: str) -> None:
        """Keep later saves, of any writer, from referring to chunks of a damaged file."""
        try:
            repository.catalog.condemn(f"{DAMAGED}{hex_digest(key.encode())}", [key])
        except StorageError as error:
            # Whoever may only read cannot tell the writers.
            self._report(repository.name, Unreachable(f"no note could be left that {key} is damaged: {error}"))

    def _lose(self, repository: Repository, error: StorageError) -> None:
        self._lost[repository.name] = error
        unreachable = Unreachable(f"{repository.name} cannot be read: {error}")
        unreachable.__cause__ = error
        self._reject(repository, unreachable)


def _open(candidate: Candidate) -> Manifest:
    repository, ref = candidate
    return repository.reader.open(ref)
