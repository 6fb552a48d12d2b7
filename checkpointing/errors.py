"""Errors of the checkpointing package.

::

    CheckpointError
    ├── InvalidName                 a job's or policy's name cannot be used as a key
    ├── NoCheckpoint                nothing committed, or nothing that is whole
    ├── SaveError                   a save did not become a checkpoint
    │   ├── SaveFailed              the store refused it, after retries
    │   ├── SaveAbandoned           given up on purpose: closed, superseded, reconfigured, out of time
    │   ├── WriterMissing           a rank's shard record did not appear in time
    │   ├── WritersDisagree         the ranks' states do not fit together
    │   └── StateMoved              garbage collection took files under the save, again and again
    ├── StaleFence                  a newer world has taken over; this writer may commit nothing
    ├── PointerMoved                the pointer changed between its reading and its replacement
    ├── Damaged                     bytes in the store are not what was written
    │   ├── MissingObject           an object is not there
    │   ├── Truncated               an object is shorter or longer than it was
    │   ├── ChecksumMismatch        bytes were changed
    │   └── ForeignObject           an object is not this package's, or another job's
    ├── UnsupportedVersion          written by a newer version of this package
    ├── UnsupportedLeaf             a value of the state can be stored neither as a tensor nor as JSON
    ├── PickleNotAllowed            a pickled value, and pickle was not asked for
    └── StructureMismatch           the checkpoint's tensors are not those asked for

What the object store raises while loading (no permission, store down) is passed on as it is: it says
nothing about the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(Exception):
    """Report that a checkpoint could not be saved, found, read or removed."""


class InvalidName(CheckpointError):
    """Report a name that cannot be part of a key.

    Attributes:
        name: The name as given.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name!r} is not a usable name: {why}")
        self.name = name


class NoCheckpoint(CheckpointError):
    """Report that there is nothing to load.

    Attributes:
        problems: Why each checkpoint that was there could not be used, newest first.
    """

    def __init__(self, where: str, problems: Sequence[CheckpointError] = ()) -> None:
        found = "".join(f"\n  - {problem}" for problem in problems)
        super().__init__(f"no whole checkpoint in {where}" + (f"; what was there:{found}" if found else ""))
        self.problems = tuple(problems)


class SaveError(CheckpointError):
    """Report that a save did not become a checkpoint; what was committed before is untouched.

    Attributes:
        step: The step that was to be saved.
        fence: The fence it was saved under.
    """

    def __init__(self, message: str, *, step: int, fence: int) -> None:
        super().__init__(f"step {step} (fence {fence}) was not saved: {message}")
        self.step = step
        self.fence = fence


class SaveFailed(SaveError):
    """Report that the store refused a save to the last; `__cause__` is what it said."""


class SaveAbandoned(SaveError):
    """Report a save that was given up on purpose."""


class WriterMissing(SaveError):
    """Report ranks that did not write their part in time.

    Attributes:
        ranks: The missing ranks.
    """

    def __init__(self, ranks: Sequence[int], waited_s: float, *, step: int, fence: int) -> None:
        shown = ", ".join(map(str, ranks[:16])) + (f" and {len(ranks) - 16} more" if len(ranks) > 16 else "")
        super().__init__(
            f"rank {shown} wrote no shard record within {waited_s:.1f} s; did it die, or is its save much slower?",
            step=step,
            fence=fence,
        )
        self.ranks = tuple(ranks)


class WritersDisagree(SaveError):
    """Report parts that do not make one state: other tensors, or bytes written twice or never."""


class StateMoved(SaveError):
    """Report that a garbage collection removed what the save refers to, more often than it may be redone."""


class StaleFence(CheckpointError):
    """Report a write that a newer world has made void.

    Attributes:
        fence: The fence of the refused writer.
        newest: The fence that the pointer holds.
    """

    def __init__(self, fence: int, newest: int) -> None:
        super().__init__(f"fence {fence} is stale: fence {newest} has committed; this writer must stop")
        self.fence = fence
        self.newest = newest


class PointerMoved(CheckpointError):
    """Report that a pointer was replaced by someone else meanwhile; read it again and retry."""


class Damaged(CheckpointError):
    """Report bytes that are not what was written.

    Attributes:
        key: The object.
        path: The tensor concerned, or "".
    """

    what = "is damaged"

    def __init__(self, key: str, detail: str = "", *, path: str = "") -> None:
        where = f"{key} (tensor {path})" if path else key
        super().__init__(f"{where} {self.what}" + (f": {detail}" if detail else ""))
        self.key = key
        self.path = path


class MissingObject(Damaged):
    """Report an object that is not there."""

    what = "is missing"


class Truncated(Damaged):
    """Report an object of another size than was written."""

    what = "has the wrong size"


class ChecksumMismatch(Damaged):
    """Report bytes that were changed."""

    what = "does not match its checksum"


class ForeignObject(Damaged):
    """Report an object that this package did not write, or wrote for another job."""

    what = "is not part of this job's checkpoints"


class UnsupportedVersion(CheckpointError):
    """Report a format of a newer version.

    Attributes:
        key: The object.
        version: The format version it states.
    """

    def __init__(self, key: str, version: object, supported: int) -> None:
        super().__init__(
            f"{key} has format version {version!r}; this version reads up to {supported}: upgrade elastic-train"
        )
        self.key = key
        self.version = version


class UnsupportedLeaf(CheckpointError):
    """Report a value that cannot be stored.

    Attributes:
        path: Where in the tree it is.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"the value at {path or 'the root'!r} cannot be saved: {why}")
        self.path = path


class PickleNotAllowed(CheckpointError):
    """Report pickled values in a checkpoint that is read without `allow_pickle=True`.

    Attributes:
        paths: Where in the tree they are.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__(
            f"{', '.join(paths[:5])} {'is' if len(paths) == 1 else 'are'} pickled, and unpickling runs code from the "
            "checkpoint; pass allow_pickle=True if you trust whoever wrote it"
        )
        self.paths = tuple(paths)


class StructureMismatch(CheckpointError):
    """Report that the checkpoint does not have the tensors asked for.

    Attributes:
        missing: Asked for, but not in the checkpoint.
        unexpected: In the checkpoint, but not asked for.
        different: In both, with another shape or dtype; each with the two.
    """

    def __init__(self, missing: Sequence[str], unexpected: Sequence[str], different: Sequence[str]) -> None:
        parts = [
            f"{label}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            for label, names in (
                ("not in the checkpoint", missing),
                ("only in the checkpoint", unexpected),
                ("of another shape or dtype", different),
            )
            if names
        ]
        super().__init__("; ".join(parts) + "; pass strict=False to take what fits")
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.different = tuple(different)
