"""``file://``: a directory of this machine or of a shared file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from storage.backends.file_writes import DIRECT_MIN_NBYTES, write_views
from storage.base import UNCONDITIONAL, Backend, Capabilities, Condition, ObjectInfo
from storage.errors import (
    AlreadyExists,
    BackendError,
    InvalidKey,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    RangeNotSatisfiable,
    StorageError,
    StoreFull,
)
from storage.keys import TEMP_SEGMENT
from storage.payload import MappedFile, Payload

CAPABILITIES = Capabilities(put_if_absent=True, put_if_match=True, atomic_put=True, durable=True, shared=True)

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)

# A directory that a concurrent delete prunes is made again this often before giving up.
_PRUNE_RETRIES = 20


class LocalBackend(Backend):
    """Keep each object in a file of its key's name under the root directory.

    A put writes a hidden temporary file, syncs it and gives it its name: by a hard link, which
    fails if the name is taken, for put-if-absent; else by a rename under the directory's lock.
    Temporary files hold a ``flock`` while they are written, so that those of a dead process are
    known and removed when the next store opens the root.

    Args:
        root: made at the first put if it does not exist.
        direct_io: whether large writes bypass the page cache. Faster and lighter on the CPU, but
            a read soon afterwards comes from the disk.
        sync: whether puts are durable when they return; false for scratch data only.
    """

    client = "local files"

    def __init__(self, root: Path, *, direct_io: bool = True, sync: bool = True) -> None:
        self._root = root
        self._temp_dir = root / TEMP_SEGMENT
        self._direct_io = direct_io
        self._sync = sync
        self._synced_dirs: set[Path] = set()
        self._remove_orphans()

    @property
    def capabilities(self) -> Capabilities:
        """Say what this backend guarantees."""
        if self._sync:
            return CAPABILITIES
        return Capabilities(
            put_if_absent=True,
            put_if_match=True,
            atomic_put=True,
            durable=False,
            shared=True,
            note="opened with sync=False: a power loss may take objects, or leave them empty",
        )

    def put(self, key: str, payload: Payload, condition: Condition) -> ObjectInfo:
        """Write an object."""
        large = not payload.is_replayable or payload.nbytes >= DIRECT_MIN_NBYTES
        with _os_errors(key, writing=True), self._temp_file() as (fd, temp):
            write_views(fd, payload.views(), direct=self._direct_io and large)
            # The kernel's time stamps have a tick of milliseconds; etags need a finer one.
            now_ns = time.time_ns()
            os.utime(fd, ns=(now_ns, now_ns))
            if self._sync:
                os.fsync(fd)
            info = _info(key, os.fstat(fd))
            self._publish(temp, key, condition)
        return info

    def get(self, key: str) -> bytes:
        """Return the whole object."""
        with _os_errors(key), self._opened(key) as (fd, found):
            out = bytearray(found.st_size)
            _read_into(fd, memoryview(out), 0, key)
        return bytes(out)

    def get_range(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes of ``[start, stop)``."""
        with _os_errors(key), self._opened(key) as (fd, found):
            _check_range(key, found, stop)
            if stop - start <= DIRECT_MIN_NBYTES:
                data = os.pread(fd, stop - start, start)
                if len(data) == stop - start:
                    return data
            out = bytearray(stop - start)
            _read_into(fd, memoryview(out), start, key)
        return bytes(out)

    def get_range_into(self, key: str, start: int, out: memoryview) -> None:
        """Fill ``out`` from byte ``start`` on."""
        with _os_errors(key), self._opened(key) as (fd, found):
            _check_range(key, found, start + out.nbytes)
            _read_into(fd, out, start, key)

    def head(self, key: str) -> ObjectInfo:
        """Describe the object."""
        with _os_errors(key):
            found = self._path(key).stat()
        if not stat.S_ISREG(found.st_mode):
            raise NotFound("a directory has this name", key=key)
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with ``prefix``."""
        folder = prefix.rpartition("/")[0]
        with _os_errors(prefix):
            yield from _walk(self._root / folder, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        """Remove the object, and the directories that it leaves empty."""
        self.delete_many([key])

    def delete_many(self, keys: Sequence[str]) -> None:
        """Remove objects, syncing each directory once."""
        parents = set()
        for key in keys:
            path = self._path(key)
            with _os_errors(key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if path.is_dir():
                    continue
                with _locked(path.parent):
                    path.unlink()
                parents.add(path.parent)
        with _os_errors(keys[0] if keys else ""):
            for parent in parents:
                self._prune(parent)

    def copy(self, src: str, dst: str) -> ObjectInfo:
        """Copy an object."""
        with _os_errors(src), MappedFile(self._path(src)) as view:
            payload = Payload(view)
        return self.put(dst, payload, UNCONDITIONAL)

    def _path(self, key: str) -> Path:
        return self._root / key

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, os.stat_result]]:
        fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise NotFound("a directory has this name", key=key)
            yield fd, found
        finally:
            os.close(fd)

    # Temporary files

    @contextlib.contextmanager
    def _temp_file(self) -> Iterator[tuple[int, Path]]:
        self._temp_dir.mkdir(parents=True, exist_ok=True)
        while True:
            temp = self._temp_dir / uuid.uuid4().hex
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                break
            os.close(fd)  # a cleaner came between open and flock
        try:
            yield fd, temp
        finally:
            temp.unlink(missing_ok=True)
            os.close(fd)

    def _remove_orphans(self) -> None:
        """Remove temporary files whose writer is dead: those that no one holds locked."""
        try:
            orphans = list(os.scandir(self._temp_dir))
        except OSError:  # no such directory, or not ours to clean
            return
        for entry in orphans:
            with contextlib.suppress(OSError):  # locked by its writer, or gone
                fd = os.open(entry.path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    Path(entry.path).unlink()
                finally:
                    os.close(fd)

    # Names

    def _publish(self, temp: Path, key: str, condition: Condition) -> None:
        path = self._path(key)
        for _ in range(_PRUNE_RETRIES):
            try:
                self._make_dirs(path.parent)
                with _locked(path.parent):
                    _give_name(temp, path, key, condition)
            except FileNotFoundError:
                # A concurrent delete pruned the directory between mkdir and rename.
                self._synced_dirs.discard(path.parent)
                continue
            if self._sync:
                _sync_dir(path.parent)
            return
        raise BackendError(f"{path.parent} is removed as fast as it is made", key=key)

    def _make_dirs(self, folder: Path) -> None:
        """Make a directory and its parents, and make their names durable, once."""
        if folder in self._synced_dirs:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self._sync:
            above = folder
            while above not in (self._root, above.parent):
                above = above.parent
                _sync_dir(above)
            _sync_dir(self._root.parent)
        self._synced_dirs.add(folder)

    def _prune(self, folder: Path) -> None:
        """Remove a directory and its parents while they are empty, up to the root."""
        with contextlib.suppress(OSError):  # not empty, or gone
            while folder != self._root:
                folder.rmdir()
                self._synced_dirs.discard(folder)
                folder = folder.parent
        if self._sync:
            with contextlib.suppress(FileNotFoundError):
                _sync_dir(folder)


def _give_name(temp: Path, path: Path, key: str, condition: Condition) -> None:
    """Make the finished file appear under its name; the directory is locked."""
    if condition.if_absent:
        try:
            os.link(temp, path)
        except FileExistsError:
            raise AlreadyExists(key=key) from None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # No hard links here. Under the lock, which all writers take, looking first is safe.
            if os.path.lexists(path):
                raise AlreadyExists(key=key) from None
            temp.rename(path)
        return
    if condition.if_match is not None:
        try:
            etag = _info(key, path.stat()).etag
        except FileNotFoundError:
            etag = None
        if etag != condition.if_match:
            raise PreconditionFailed(f"expected etag {condition.if_match}, found {etag}", key=key)
    temp.rename(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other writers of this directory out, in this and other processes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _sync_dir(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _walk(folder: Path, above: str, prefix: str) -> Iterator[ObjectInfo]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    # A directory sorts as its contents do, with the slash.
    named = [(e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in entries]
    for name, entry in sorted(named, key=lambda pair: pair[0]):
        key = above + name
        if name.startswith(TEMP_SEGMENT):
            continue
        if name.endswith("/"):
            if key.startswith(prefix) or prefix.startswith(key):
                yield from _walk(folder / entry.name, key, prefix)
            continue
        if not key.startswith(prefix):
            continue
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            found = entry.stat()
            if stat.S_ISREG(found.st_mode):
                yield _info(key, found)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    etag = f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"
    return ObjectInfo(key, found.st_size, etag, found.st_mtime)


def _check_range(key: str, found: os.stat_result, stop: int) -> None:
    if stop > found.st_size:
        raise RangeNotSatisfiable(f"it has {found.st_size} bytes, byte {stop} was asked for", key=key)


def _read_into(fd: int, out: memoryview, start: int, key: str) -> None:
    done = 0
    while done < out.nbytes:
        count = os.preadv(fd, [out[done:]], start + done)
        if count == 0:
            raise BackendError("the file was cut while it was read", key=key)
        done += count


@contextlib.contextmanager
def _os_errors(key: str, *, writing: bool = False) -> Iterator[None]:
    try:
        yield
    except NotADirectoryError as error:
        # An object stands where the key needs a directory: so there is nothing to read.
        raise _translated(error, key) if writing else NotFound(key=key) from None
    except OSError as error:
        raise _translated(error, key) from None


def _translated(error: OSError, key: str) -> StorageError:
    text = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
    match error.errno:
        case errno.ENOENT:
            return NotFound(key=key)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDenied(f"{text}: {error.filename}", key=key)
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return StoreFull(text, key=key)
        case errno.ENOTDIR | errno.EISDIR | errno.EEXIST | errno.ENOTEMPTY:
            return InvalidKey("on a file system a name is an object or a directory of objects, not both", key=key)
        case errno.ENAMETOOLONG:
            return InvalidKey("too long for this file system", key=key)
        case _:
            return BackendError(text, key=key)
