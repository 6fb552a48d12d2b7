"""Files: direct writes, names, what is left behind, what the system's errors mean."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import AlreadyExists, BackendError, InvalidKey, NotFound, PermissionDenied, StoreFull, open_store
from storage.backends import file_writes, local
from storage.backends.file_writes import ALIGNMENT, write_views
from storage.keys import TEMP_SEGMENT


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3 * ALIGNMENT), st.booleans()), max_size=8),
    st.sampled_from([ALIGNMENT, 4 * ALIGNMENT]),
)
def test_direct_writes_of_any_sizes_and_alignments_write_the_same_bytes(
    pieces: list[tuple[int, bool]], bounce_nbytes: int
) -> None:
    arena = memoryview(mmap.mmap(-1, 16 * ALIGNMENT))
    arena[:] = os.urandom(ALIGNMENT) * 16
    views = [arena[0 if aligned else 13 :][:size] for size, aligned in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_writes, "BOUNCE_NBYTES", bounce_nbytes)
        path = Path(os.environ["ELASTIC_TRAIN_HOME"] + "-direct")
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_views(fd, iter(views), direct=True)
        finally:
            os.close(fd)
    assert path.read_bytes() == b"".join(views)
    path.unlink()


def test_a_file_system_without_direct_writes_is_written_plainly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(file_writes, "_set_direct", _no_direct_writes)
    with open_store(tmp_path / "root") as store:
        store.put("key", bytes(3 * 2**20 + 1))
        assert store.head("key").nbytes == 3 * 2**20 + 1


def test_a_put_syncs_the_file_before_its_name_and_the_name_before_it_returns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    fsync, rename, link = os.fsync, Path.rename, os.link

    def synced(fd: int) -> None:
        calls.append("sync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        fsync(fd)

    def renamed(path: Path, target: Path) -> Path:
        calls.append("name")
        return rename(path, target)

    def linked(src: Path, dst: Path) -> None:
        calls.append("name")
        link(src, dst)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "link", linked)
    with open_store(tmp_path / "root") as store:
        store.put("key", b"x")
        assert [call for call in calls if call != "sync directory"] == ["sync file", "name"]
        assert calls[-2:] == ["name", "sync directory"]
        calls.clear()
        store.put("deep/er/key", b"x", if_absent=True)
        before_name = calls[: calls.index("name")]
        assert before_name.count("sync directory") >= 2, "the new directories' names"
        assert calls[-2:] == ["name", "sync directory"]


def test_put_if_absent_holds_also_without_hard_links(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(src: Path, dst: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with open_store(tmp_path / "root") as store:
        store.put("key", b"first", if_absent=True)
        with pytest.raises(AlreadyExists):
            store.put("key", b"second", if_absent=True)
        assert store.get("key") == b"first"


def test_no_temporary_file_is_left_by_success_or_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    temp_dir = tmp_path / "root" / TEMP_SEGMENT
    with open_store(tmp_path / "root") as store:
        store.put("key", b"x")
        with pytest.raises(AlreadyExists):
            store.put("key", b"x", if_absent=True)
        monkeypatch.setattr(local, "write_views", _full_disk)
        with pytest.raises(StoreFull):
            store.put("other", b"x")
        assert list(temp_dir.iterdir()) == []
        assert [info.key for info in store.list()] == ["key"]


def test_orphans_are_removed_and_files_of_living_writers_are_not(tmp_path: Path) -> None:
    temp_dir = tmp_path / "root" / TEMP_SEGMENT
    temp_dir.mkdir(parents=True)
    (temp_dir / "orphan").write_bytes(b"x")
    with open_store(tmp_path / "root") as store:
        assert list(temp_dir.iterdir()) == []
        seen: list[int] = []

        def stream() -> object:
            yield b"x"
            open_store(tmp_path / "root").close()
            seen.append(len(list(temp_dir.iterdir())))

        store.put("key", stream())  # type: ignore[arg-type]  # a generator
        assert seen == [1]
        assert store.get("key") == b"x"


def test_deleting_prunes_empty_directories_up_to_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with open_store(root) as store:
        store.put("a/b/c", b"x")
        store.put("a/kept", b"x")
        store.delete("a/b/c")
        assert not (root / "a" / "b").exists()
        store.delete("a/kept")
        assert root.is_dir()
        assert not (root / "a").exists()
        store.put("a/b/c", b"again")
        assert store.get("a/b/c") == b"again"


def test_a_directory_pruned_between_mkdir_and_rename_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    locked = local._locked
    pruned: list[Path] = []

    def pruning(folder: Path) -> object:
        if not pruned:
            pruned.append(folder)
            folder.rmdir()
        return locked(folder)

    monkeypatch.setattr(local, "_locked", pruning)
    with open_store(root) as store:
        store.put("a/key", b"x")
        assert pruned == [root / "a"]
        assert store.get("a/key") == b"x"


def test_a_name_is_an_object_or_a_directory(tmp_path: Path) -> None:
    with open_store(tmp_path / "root") as store:
        store.put("a", b"x")
        store.put("d/e", b"x")
        for key in ("a/b", "d"):
            with pytest.raises(InvalidKey, match="an object or a directory"):
                store.put(key, b"x")
        with pytest.raises(NotFound):
            store.get("a/b")
        store.delete("a/b")
        store.delete("d")
        assert [info.key for info in store.list()] == ["a", "d/e"]


def test_foreign_files_are_listed_only_if_their_names_are_keys(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with open_store(root) as store:
        store.put("key", b"x")
        (root / "with space").write_bytes(b"")
        (root / "link").symlink_to(root / "key")
        assert [info.key for info in store.list()] == ["key", "link"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFull),
        (errno.EDQUOT, StoreFull),
        (errno.EACCES, PermissionDenied),
        (errno.EROFS, PermissionDenied),
        (errno.EIO, BackendError),
        (errno.ENAMETOOLONG, InvalidKey),
    ],
)
def test_a_system_error_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, kind: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "name")

    monkeypatch.setattr(local, "write_views", fail)
    with open_store(tmp_path / "root") as store, pytest.raises(kind) as caught:
        store.put("key", b"x")
    assert "put 'key'" in str(caught.value)


def test_a_store_on_a_missing_directory_is_empty(tmp_path: Path) -> None:
    with open_store(tmp_path / "not" / "there") as store:
        assert list(store.list()) == []
        assert not store.exists("key")
        store.put("key", b"x")
        assert store.exists("key")


def _no_direct_writes(fd: int, *, on: bool) -> bool:
    return False


def _full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
