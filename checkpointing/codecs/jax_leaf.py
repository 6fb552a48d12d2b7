"""JAX arrays: whole ones, and the part of a global array that one process holds."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from checkpointing.codecs.base import Bytes, Codec, Source, Target, allocate
from checkpointing.codecs.numpy_leaf import ArraySource, dtype_name, numpy_dtype
from checkpointing.core.division import LeafSpec
from checkpointing.core.layout import Box
from checkpointing.errors import UnsupportedLeaf


def _prepare(value: jax.Array, path: str) -> tuple[LeafSpec, np.ndarray]:
    """Return the description of an array and what of it is in this process.

    Raises:
        UnsupportedLeaf: It holds random keys, is of an unknown dtype, was deleted, or has several parts here.
    """
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise UnsupportedLeaf(path, "an array of random keys; store jax.random.key_data(key)")
    if value.is_deleted():
        raise UnsupportedLeaf(path, "the array was donated or deleted")
    if value.is_fully_addressable:
        box, copies, copy_index, array = Box.whole(value.shape), 0, 0, np.asarray(value)
    else:
        box, copies, copy_index, array = _part_of(value, path)
    kind, shape = "jax", tuple(value.shape)
    if array.dtype == np.complex128:
        kind, array, shape = "jax.complex128", array[..., None].view(np.float64), (*shape, 2)
        box = Box((*box.offsets, 0), (*box.sizes, 2))
    name = dtype_name(array.dtype)
    if name is None:
        raise UnsupportedLeaf(path, f"JAX arrays of dtype {value.dtype} have no place in safetensors")
    return LeafSpec(path, kind, name, shape, box, copies, copy_index), array


def _part_of(value: jax.Array, path: str) -> tuple[Box, int, int, np.ndarray]:
    """Return the box of a global array that is here, how many hold it, which of these we are, and its elements."""
    places = {_box_of(shard.index, value.shape) for shard in value.addressable_shards}
    if len(places) != 1:
        raise UnsupportedLeaf(path, f"{len(places)} different parts of it are in one process; use one part a process")
    (box,) = places
    shard = value.addressable_shards[0]
    holders = sorted(
        {other.device.process_index for other in value.global_shards if _box_of(other.index, value.shape) == box}
    )
    return box, len(holders), holders.index(jax.process_index()), np.asarray(shard.data)


def _box_of(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
    return Box(tuple(low for low, _ in bounds), tuple(high - low for low, high in bounds))


class JaxTarget(Target):
    """An array to be made: JAX arrays cannot be changed."""

    def __init__(self, spec: LeafSpec, like: jax.Array | None = None) -> None:
        self.spec = spec
        self._like = like
        self._buffer = allocate(spec)

    def buffer(self) -> Bytes:
        """Return a buffer."""
        return self._buffer

    def finish(self) -> Any:
        """Return a new array, placed as the one it stands for."""
        array: np.ndarray = self._buffer.view(numpy_dtype(self.spec.dtype)).reshape(self.spec.box.sizes)
        if self.spec.kind == "jax.complex128":
            array = array.view(np.complex128).reshape(array.shape[:-1])
        if self._like is None:
            return jax.numpy.asarray(array)
        if self._like.is_fully_addressable:
            return jax.device_put(array, self._like.sharding)
        place: Any = jax.make_array_from_process_local_data  # untyped
        return place(self._like.sharding, array, self._like.shape)


class JaxCodec(Codec):
    """Arrays."""

    kinds = frozenset({"jax", "jax.complex128"})
    module = "jax"

    def source(self, value: Any, path: str) -> Source | None:
        """Return how to save an array."""
        if not isinstance(value, jax.Array):
            return None
        spec, array = _prepare(value, path)
        return ArraySource(spec, np.ascontiguousarray(array))

    def target(self, value: Any, path: str) -> Target | None:
        """Return how to make an array like this one."""
        return JaxTarget(_prepare(value, path)[0], value) if isinstance(value, jax.Array) else None

    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make an array, on the default device."""
        return JaxTarget(spec)
