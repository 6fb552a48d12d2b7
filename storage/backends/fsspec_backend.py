"""Any other URL that fsspec knows: no promise is made that the file system does not keep."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from storage.backends.fsspec_calls import call_fsspec, run_in_thread
from storage.backends.log_scrubbing import scrub_logs
from storage.base import Backend, Capabilities, Condition, ObjectInfo, sorted_by_key
from storage.buffers import copy_bytes
from storage.errors import (
    AlreadyExists,
    BackendError,
    BucketNotFound,
    CapabilityError,
    ConfigError,
    MissingDependency,
    NotFound,
    RangeNotSatisfiable,
    TruncatedBody,
    UnknownScheme,
)
from storage.keys import TEMP_SEGMENT
from storage.redaction import Scrubber

if TYPE_CHECKING:
    from storage.payload import Payload

T = TypeVar("T")

#: A request that moves data slower than this is taken for stalled.
MIN_BYTES_PER_S = 1 * 2**20

REQUEST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is known about an fsspec file system that it does not say itself.

    Attributes:
        exclusive: ``pipe_file(mode="create")`` lets one of several creators win.
        in_process: its objects live in this process, so a lock here makes creation exclusive.
        object_store: a write appears whole at its end.
        renames: ``mv`` of a file is one atomic rename.
        durable: what was written survives.
        shared: other processes see it.
    """

    exclusive: bool = False
    in_process: bool = False
    object_store: bool = False
    renames: bool = False
    durable: bool = True
    shared: bool = True


# Only what their documentation or source promises; all others get the cautious default.
_KNOWN: dict[str, _Traits] = {
    "memory": _Traits(in_process=True, object_store=True, durable=False, shared=False),
    "gs": _Traits(exclusive=True, object_store=True),  # ifGenerationMatch=0
    "gcs": _Traits(exclusive=True, object_store=True),
    "s3": _Traits(exclusive=True, object_store=True),  # If-None-Match
    "abfs": _Traits(object_store=True),
    "az": _Traits(object_store=True),
    "oss": _Traits(object_store=True),
    "sftp": _Traits(renames=True),
    "hdfs": _Traits(renames=True),
    "smb": _Traits(renames=True),
}

# Two stores on one in-process file system must share their lock.
_in_process_lock = threading.RLock()


def open_fsspec(protocol: str, root: str, options: Mapping[str, Any], scrubber: Scrubber) -> FsspecBackend:
    """Return a backend for a path of an fsspec file system.

    Args:
        protocol: the URL scheme as fsspec knows it.
        root: the path within the file system.
        options: the file system's own, and ``request_timeout_s``.
        scrubber: cleans the texts of errors.

    Raises:
        UnknownScheme: fsspec does not know the protocol.
        MissingDependency: the file system's library is not installed.
        ConfigError: the file system does not take the options.
    """
    import fsspec

    passed = dict(options)
    timeout_s = float(passed.pop("request_timeout_s", REQUEST_TIMEOUT_S))
    passed["use_listings_cache"] = False  # a cached listing hides what others write and delete
    passed["skip_instance_cache"] = True  # the cache would keep options, and so credentials, for ever
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UnknownScheme(f"{protocol}://; known are file, memory, s3, gs, az and fsspec's own") from None
    except ImportError as error:
        raise MissingDependency(scrubber.scrub(str(error))) from None
    try:
        filesystem = call_fsspec(scrubber, lambda: kind(**passed))
    except BackendError as error:  # a TypeError or the like about the options
        raise ConfigError(f"{protocol}:// does not open with options {sorted(options)}: {error.detail}") from None
    scrub_logs(scrubber)
    return FsspecBackend(filesystem, protocol, root, scrubber, request_timeout_s=timeout_s)


class FsspecBackend(Backend):
    """Keep objects in the files of any fsspec file system.

    What the file system guarantees is looked up in a table of known ones; for others nothing is assumed:
    ``if_absent`` is refused, and ``atomic_put`` is false, which means that a reader can see a part of an object.
    """

    is_remote = True

    def __init__(
        self, filesystem: Any, protocol: str, root: str, scrubber: Scrubber, *, request_timeout_s: float
    ) -> None:
        self.client = f"fsspec {protocol}"
        self._fs = filesystem
        self._protocol = protocol
        self._root = root.rstrip("/")
        self._scrubber = scrubber
        self._request_timeout_s = request_timeout_s
        self._traits = _KNOWN.get(protocol, _Traits())

    @property
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""
        traits = self._traits
        missing = []
        if not (traits.exclusive or traits.in_process):
            missing.append("puts with if_absent are refused: this file system may let two creators win")
        missing.append("there is no put with if_match")
        if not (traits.object_store or traits.renames):
            missing.append("a reader may see a part of an object, also after a crash")
        return Capabilities(
            put_if_absent=traits.exclusive or traits.in_process,
            put_if_match=False,
            atomic_put=traits.object_store or traits.renames,
            durable=traits.durable,
            shared=traits.shared,
            note="; ".join(missing),
        )

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object."""
        if condition.if_match is not None:
            raise CapabilityError(f"{self._protocol}:// has no compare-and-swap (if_match)", key=key)
        if condition.if_absent and not self.capabilities.put_if_absent:
            raise CapabilityError(
                f"{self._protocol}:// cannot make sure that one of several creators wins (if_absent)", key=key
            )
        data = bytes(payload.contiguous())
        path = self._path(key)
        if condition.if_absent:
            self._call(lambda: self._create(path, data), len(data), if_absent=True)
        elif self._traits.renames:
            temp = f"{self._root}/{TEMP_SEGMENT}-{uuid.uuid4().hex}"
            self._call(lambda: self._write_and_rename(temp, path, data), len(data))
        else:
            self._call(lambda: self._write(path, data), len(data))
        return ObjectInfo(key, len(data))

    def get(self, key: str) -> bytes:
        """Return the whole object."""
        return self._call(lambda: bytes(self._fs.cat_file(self._path(key))), 2**31)

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on."""
        path = self._path(key)
        stop = start + out.nbytes
        data = self._call(lambda: self._fs.cat_file(path, start=start, end=stop), out.nbytes)
        if len(data) != out.nbytes:
            size = self.head(key).nbytes
            if size < stop:
                raise RangeNotSatisfiable(f"it has {size} bytes, byte {stop} was asked for", key=key)
            raise TruncatedBody(f"{len(data)} of {out.nbytes} bytes came", key=key)
        copy_bytes(out, data)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object."""
        found = self._call(lambda: self._fs.info(self._path(key)))
        if found.get("type") == "directory":
            raise NotFound("a directory has this name", key=key)
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``."""
        folder = prefix.rpartition("/")[0]
        top = self._path(folder) if folder else self._root

        def find() -> dict[str, Any]:
            try:
                return dict(self._fs.find(top, detail=True))
            except FileNotFoundError:
                return {}

        stripped = str(self._fs._strip_protocol(self._root)).strip("/")  # noqa: SLF001  # how fsspec spells its own paths
        keys = {name.strip("/").removeprefix(stripped).lstrip("/"): info for name, info in self._call(find).items()}
        return sorted_by_key(
            _info(key, info)
            for key, info in keys.items()
            if key.startswith(prefix) and not key.startswith(TEMP_SEGMENT) and info.get("type") != "directory"
        )

    def delete(self, key: str) -> None:
        """Remove the object."""
        try:
            self._call(lambda: self._fs.rm_file(self._path(key)))
        except BucketNotFound:
            raise
        except NotFound:
            pass  # removing what is gone is a success

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects one by one: a bulk call that fails on a missing one leaves the rest."""
        for key in keys:
            self.delete(key)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object."""
        self.head(src)  # several file systems copy a missing file without complaint
        path = self._path(dst)

        def copy() -> None:
            self._make_parent(path)
            self._fs.cp_file(self._path(src), path)

        self._call(copy, 2**30)
        return self.head(dst)

    def _create(self, path: str, data: bytes) -> None:
        self._make_parent(path)
        if self._traits.exclusive:
            self._fs.pipe_file(path, data, mode="create")
            return
        with _in_process_lock:
            if self._fs.exists(path):
                raise AlreadyExists
            self._fs.pipe_file(path, data)

    def _write(self, path: str, data: bytes) -> None:
        self._make_parent(path)
        if self._traits.in_process:
            with _in_process_lock:
                self._fs.pipe_file(path, data)
            return
        self._fs.pipe_file(path, data)

    def _write_and_rename(self, temp: str, path: str, data: bytes) -> None:
        self._make_parent(path)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._remove_temp, temp)
            self._fs.pipe_file(temp, data)
            self._fs.mv(temp, path)
            on_failure.pop_all()

    def _remove_temp(self, temp: str) -> None:
        with contextlib.suppress(OSError):
            self._fs.rm_file(temp)

    def _make_parent(self, path: str) -> None:
        if not (self._traits.object_store and self._traits.exclusive):  # these have no directories to make
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _call(self, call: Callable[[], T], nbytes: int = 0, *, if_absent: bool = False) -> T:
        """Run a blocking call of the file system, bounded in time unless it stays in this process."""
        if self._traits.in_process:
            return call_fsspec(self._scrubber, call, if_absent=if_absent)
        timeout_s = self._request_timeout_s + nbytes / MIN_BYTES_PER_S
        return call_fsspec(self._scrubber, lambda: run_in_thread(call, timeout_s), if_absent=if_absent)


def _info(key: str, found: Mapping[str, Any]) -> ObjectInfo:
    etag = found.get("ETag") or found.get("etag")
    modified = found.get("LastModified") or found.get("mtime") or found.get("created") or found.get("last_modified")
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    seconds = float(modified) if isinstance(modified, int | float) else None
    return ObjectInfo(key, int(found.get("size") or 0), str(etag) if etag else None, seconds)
