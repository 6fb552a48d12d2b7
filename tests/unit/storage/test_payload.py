"""What can be put, and how it is held."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import payload as payload_module
from storage.payload import MappedFile, Payload


def test_buffers_are_not_copied() -> None:
    data = bytearray(b"0123456789")
    payload = Payload([data, memoryview(data)[2:4]])
    data[2] = ord("X")
    assert [bytes(view) for view in payload.views()] == [b"01X3456789", b"X3"]


def test_arrays_of_any_type_and_shape_are_taken_as_bytes() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    payload = Payload(array)
    assert payload.nbytes == 48
    assert bytes(payload.contiguous()) == array.tobytes()
    assert Payload(np.zeros((0, 3))).nbytes == 0
    with pytest.raises(TypeError, match="not contiguous"):
        Payload(array[:, ::2])


@given(st.lists(st.binary(max_size=50)), st.integers(1, 100))
def test_a_stream_is_spooled_to_the_same_bytes(parts: list[bytes], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(payload_module, "SPOOL_MEMORY_NBYTES", limit)  # so that both ways are taken
        payload = Payload(iter(parts))
        assert not payload.is_replayable
        payload.spool()
        whole = b"".join(parts)
        assert payload.nbytes == len(whole)
        for _ in range(2):
            assert b"".join(payload.views()) == whole


def test_a_long_stream_is_spooled_to_a_file_and_not_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "SPOOL_MEMORY_NBYTES", 10)
    payload = Payload(bytes(5) for _ in range(3))
    payload.spool()
    assert isinstance(payload.buffers[0].obj, mmap.mmap)


def test_a_stream_is_read_once() -> None:
    payload = Payload(iter([b"a"]))
    assert list(payload.views()) == [b"a"]
    with pytest.raises(RuntimeError, match="read already"):
        list(payload.views())
    with pytest.raises(RuntimeError, match="spool"):
        _ = payload.nbytes


def test_a_failing_stream_fails_the_spooling() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Payload(broken()).spool()


@pytest.mark.parametrize("content", [b"", b"x", b"0123456789" * 1000])
def test_a_file_is_mapped(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with MappedFile(path) as view:
        assert bytes(view) == content


@pytest.mark.parametrize("bad", ["text", 5, None, object()])
def test_other_things_are_refused(bad: object) -> None:
    with pytest.raises(TypeError):
        Payload(bad)  # type: ignore[arg-type]  # that is the point
