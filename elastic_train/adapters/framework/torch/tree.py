"""State as trees of dicts, lists, tuples, plain values and tensors; their description in msgpack, without pickle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch

from elastic_train.errors import StateNotRestorable

_TENSOR, _TUPLE, _COUNTER, _SET, _DTYPE = range(1, 6)
_PLAIN = (type(None), bool, int, float, str, bytes)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its bytes. `stride` is that of its dense memory."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Describe a tensor; one with holes or repeated elements is described as its contiguous copy."""
        stride = tensor.stride() if is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
        return cls(tensor.dtype, tuple(tensor.shape), tuple(stride))

    def fits(self, tensor: torch.Tensor) -> bool:
        """Return whether the described bytes can be received straight into `tensor`."""
        return tensor.device.type == "cpu" and is_dense(tensor) and TensorSpec.of(tensor) == self

    def allocate(self) -> torch.Tensor:
        """Return an uninitialised tensor of this description."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether the tensor's elements fill one run of memory, in any order of dimensions."""
    if tensor.layout is not torch.strided:
        return False
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return tensor.numel() == 0 or span == tensor.numel()


def flat_memory(tensor: torch.Tensor) -> torch.Tensor:
    """Return a dense tensor's memory as one dimension, in the order in which it lies there."""
    detached = tensor.detach()
    if detached.numel() == 0 or detached.is_contiguous():
        return detached.reshape(-1)
    return torch.as_strided(detached, (detached.numel(),), (1,), detached.storage_offset())


class Packer:
    """Packs one tree; the tensors come out as a list, each distinct memory once."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self._known: dict[tuple[object, ...], int] = {}

    def pack(self, tree: Any) -> bytes:
        """Return the tree in msgpack, tensors as indices into `tensors`.

        Raises:
            StateNotRestorable: Something in it is neither a plain value nor a dense tensor; says where.
        """
        try:
            return self._pack(tree)
        except (TypeError, ValueError, OverflowError) as error:
            raise StateNotRestorable(f"{_offender(tree)} cannot be sent or saved: {error}") from error

    def _pack(self, value: Any) -> bytes:
        return bytes(msgpack.packb(value, default=self._extend, strict_types=True))

    def _extend(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return msgpack.ExtType(_TENSOR, self._pack(self._add(value)))
        if isinstance(value, tuple):
            return msgpack.ExtType(_TUPLE, self._pack(list(value)))
        if isinstance(value, Counter):
            return msgpack.ExtType(_COUNTER, self._pack(dict(value)))
        if isinstance(value, dict):
            return dict(value)
        if isinstance(value, set | frozenset):
            return msgpack.ExtType(_SET, self._pack(sorted(value)))
        if isinstance(value, torch.dtype):
            return msgpack.ExtType(_DTYPE, str(value).removeprefix("torch.").encode())
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} is no plain value")

    def _add(self, tensor: torch.Tensor) -> int:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise TypeError(f"a tensor of layout {tensor.layout} is not dense")
        key: tuple[object, ...] = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        index = self._known.get(key) if tensor.numel() else None
        if index is None:
            index = len(self.tensors)
            self.tensors.append(tensor)
            self._known[key] = index
        return index


def unpack(data: bytes, tensors: Callable[[int], Any]) -> Any:
    """Return the tree that `Packer.pack` made, with `tensors(index)` in the place of each tensor."""

    def extended(code: int, payload: bytes) -> Any:
        if code == _DTYPE:
            return getattr(torch, payload.decode())
        inner = load(payload)
        if code == _TENSOR:
            return tensors(inner)
        makers: dict[int, Callable[[Any], Any]] = {_TUPLE: tuple, _COUNTER: Counter, _SET: set}
        return makers[code](inner)

    def load(payload: bytes) -> Any:
        return msgpack.unpackb(payload, ext_hook=extended, strict_map_key=False)

    return load(data)


def pack_specs(specs: list[TensorSpec]) -> list[list[Any]]:
    """Return tensor descriptions as plain values."""
    return [[str(spec.dtype).removeprefix("torch."), list(spec.shape), list(spec.stride)] for spec in specs]


def unpack_specs(raw: list[list[Any]]) -> list[TensorSpec]:
    """Undo `pack_specs`."""
    return [TensorSpec(getattr(torch, dtype), tuple(shape), tuple(stride)) for dtype, shape, stride in raw]


def tensors_at(tree: Any, path: tuple[object, ...] = ()) -> Iterator[tuple[tuple[object, ...], torch.Tensor]]:
    """Yield every tensor of a tree with its path."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from tensors_at(value, (*path, key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from tensors_at(value, (*path, index))


def _offender(tree: Any, path: str = "") -> str:
    """Return the path of the first value that is the trouble."""
    if isinstance(tree, Mapping):
        children: Iterator[tuple[object, Any]] = iter(tree.items())
    elif isinstance(tree, list | tuple | set | frozenset):
        children = iter(enumerate(tree))
    else:
        return f"{path or 'the value'} ({tree!r:.80})"
    for key, value in children:
        inner = f"{path}.{key}" if path else str(key)
        if not isinstance(key, _PLAIN):
            return f"the key {key!r:.80} in {path or 'the state'}"
        try:
            Packer()._pack(value)  # noqa: SLF001  only to find which child it is
        except (TypeError, ValueError, OverflowError):
            return _offender(value, inner)
    return path or "the state"
