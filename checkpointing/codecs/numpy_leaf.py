"""numpy arrays and scalars, and what is stored as plain bytes: long `bytes`, `bytearray` and pickles."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np

from checkpointing.codecs.base import Bytes, Codec, Source, Target, allocate, flat_bytes
from checkpointing.core.division import LeafSpec
from checkpointing.core.layout import Box
from checkpointing.errors import UnsupportedLeaf

_NAMES = {
    "f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8",
    "u8": "U64", "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL", "c8": "C64",
}  # fmt: skip
_DTYPES = {name: np.dtype(code) for code, name in _NAMES.items()}

ML_DTYPES = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
"""Types that numpy gets from `ml_dtypes` (installed with TensorFlow and JAX)."""


def dtype_name(dtype: np.dtype) -> str | None:
    """Return the safetensors name of a numpy dtype, or None if it has none."""
    if dtype.names is not None or dtype.hasobject:
        return None
    for name, wanted in ML_DTYPES.items():
        if dtype.name == wanted:
            return name
    return _NAMES.get(dtype.str[1:])


def numpy_dtype(name: str) -> np.dtype:
    """Return the numpy dtype of a safetensors name; raw bits where numpy has no such type."""
    if name in _DTYPES:
        return _DTYPES[name]
    try:
        import ml_dtypes  # type: ignore[import-not-found,import-untyped,unused-ignore]  # optional, and untyped in old versions
    except ImportError:
        return np.dtype("u2") if name == "BF16" else np.dtype("u1")
    found: np.dtype = np.dtype(getattr(ml_dtypes, ML_DTYPES[name]))
    return found


class ArraySource(Source):
    """An array in host memory."""

    def __init__(self, spec: LeafSpec, array: np.ndarray) -> None:
        self.spec = spec
        self._data = flat_bytes(array)

    def copy_into(self, start: int, stop: int, out: Bytes) -> None:
        """Copy bytes of the array."""
        np.copyto(out, self._data[start:stop])

    def host_bytes(self) -> Bytes | None:
        """Return the array's memory."""
        return self._data


class NumpyTarget(Target):
    """An array to be filled, or made."""

    def __init__(self, spec: LeafSpec, array: np.ndarray | None) -> None:
        self.spec = spec
        self._array = array
        in_place = array is not None and array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative
        self._buffer = flat_bytes(array) if in_place and array is not None else allocate(spec)
        self._in_place = in_place

    def buffer(self) -> Bytes:
        """Return the array's memory, or a buffer for one that cannot be filled directly."""
        return self._buffer

    def finish(self) -> Any:
        """Return the array or scalar."""
        if self._in_place:
            return self._array
        made = self._buffer.view(numpy_dtype(self.spec.dtype)).reshape(self.spec.box.sizes)
        if self.spec.kind.endswith(".complex128"):
            made = made.view(np.complex128).reshape(self.spec.box.sizes[:-1])
        if self._array is None:
            return made[()] if self.spec.kind.startswith("numpy.scalar") else made
        if not self._array.flags.writeable:
            return made
        self._array[...] = made
        return self._array


class BytesTarget(Target):
    """Bytes, or what was pickled into them."""

    def __init__(self, spec: LeafSpec) -> None:
        self.spec = spec
        self._buffer = allocate(spec)

    def buffer(self) -> Bytes:
        """Return the bytes' memory."""
        return self._buffer

    def finish(self) -> Any:
        """Return the value."""
        data = self._buffer.tobytes()
        if self.spec.kind == "pickle":
            return pickle.loads(data)  # noqa: S301  # the reader has checked that the user allowed it
        return bytearray(data) if self.spec.kind == "bytearray" else data


def bytes_source(data: bytes | bytearray, kind: str, path: str) -> ArraySource:
    """Return how to save bytes as a tensor of bytes."""
    shape = (len(data),)
    return ArraySource(LeafSpec(path, kind, "U8", shape, Box.whole(shape)), np.frombuffer(bytes(data), np.uint8))


class NumpyCodec(Codec):
    """Arrays, scalars and bytes."""

    kinds = frozenset(
        {"numpy", "numpy.complex128", "numpy.scalar", "numpy.scalar.complex128", "bytes", "bytearray", "pickle"}
    )
    module = "numpy"

    def source(self, value: Any, path: str) -> Source | None:
        """Return how to save an array or scalar."""
        if type(value) in (bytes, bytearray):
            return bytes_source(value, type(value).__name__, path)
        prepared = self._prepare(value, path)
        if prepared is None:
            return None
        spec, array = prepared
        return ArraySource(spec, np.ascontiguousarray(array, array.dtype.newbyteorder("=")))

    def target(self, value: Any, path: str) -> Target | None:
        """Return how to fill an array; scalars and bytes cannot be filled and are made anew."""
        if type(value) in (bytes, bytearray):
            return BytesTarget(bytes_source(value, type(value).__name__, path).spec)
        prepared = self._prepare(value, path)
        if prepared is None:
            return None
        spec, array = prepared
        return NumpyTarget(spec, array if isinstance(value, np.ndarray) else None)

    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make an array, scalar or bytes."""
        return NumpyTarget(spec, None) if spec.kind.startswith("numpy") else BytesTarget(spec)

    def _prepare(self, value: Any, path: str) -> tuple[LeafSpec, np.ndarray] | None:
        if not isinstance(value, np.ndarray | np.generic):
            return None
        kind = "numpy" if isinstance(value, np.ndarray) else "numpy.scalar"
        array: np.ndarray = np.asarray(value)
        if array.dtype == np.complex128:
            kind += ".complex128"
            array = array[..., None].view(np.float64)
        name = dtype_name(array.dtype)
        if name is None:
            raise UnsupportedLeaf(path, f"numpy arrays of dtype {array.dtype} have no place in safetensors")
        return LeafSpec(path, kind, name, array.shape, Box.whole(array.shape)), array
