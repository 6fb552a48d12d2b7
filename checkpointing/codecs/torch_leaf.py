"""torch tensors, on any device, and DTensors (FSDP2, tensor parallel): the local part with its global place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from checkpointing.codecs.base import Bytes, Codec, Source, Target, allocate
from checkpointing.core.division import LeafSpec
from checkpointing.core.layout import Box
from checkpointing.errors import UnsupportedLeaf

_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint64: "U64", torch.uint32: "U32",
    torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def _prepare(value: torch.Tensor, path: str) -> tuple[LeafSpec, torch.Tensor]:
    """Return the description of a tensor and what of it is in this process, without a copy.

    Raises:
        UnsupportedLeaf: It is sparse, quantized, without data, of an unknown dtype, or partially reduced.
    """
    tensor = value.detach()
    kind = "torch"
    box: Box | None = None
    copies = copy_index = 0
    shape = tuple(tensor.shape)
    if hasattr(tensor, "device_mesh"):  # a DTensor, told without importing what costs half a second
        box, copies, copy_index = _place_of(tensor, path)
        tensor = cast("Any", tensor).to_local()
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UnsupportedLeaf(path, f"a tensor of layout {tensor.layout}; call .to_dense() or .dequantize() first")
    if tensor.device.type == "meta":
        raise UnsupportedLeaf(path, "a meta tensor has no data; materialize it first")
    if tensor.is_neg() or tensor.is_conj():
        tensor = tensor.resolve_neg().resolve_conj()
    if tensor.dtype == torch.complex128:
        kind, tensor, shape = "torch.complex128", torch.view_as_real(tensor), (*shape, 2)
        box = box and Box((*box.offsets, 0), (*box.sizes, 2))
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise UnsupportedLeaf(path, f"tensors of dtype {tensor.dtype} have no place in safetensors")
    return LeafSpec(path, kind, name, shape, box or Box.whole(shape), copies, copy_index), tensor


def _place_of(tensor: Any, path: str) -> tuple[Box, int, int]:
    """Return which box of a DTensor is here, how many ranks hold the same, and which of these this one is."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = tensor.device_mesh
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise UnsupportedLeaf(path, "this rank is not in the DTensor's mesh")
    if any(placement.is_partial() for placement in tensor.placements):
        raise UnsupportedLeaf(path, "a DTensor with a Partial placement is not a state yet; redistribute it first")
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, tensor.placements)
    copies, copy_index = 1, 0
    for dimension, placement in enumerate(tensor.placements):
        if isinstance(placement, Replicate):
            copies *= mesh.size(dimension)
            copy_index = copy_index * mesh.size(dimension) + coordinate[dimension]
    if 0 in sizes:  # an empty shard may lie anywhere; put it where it is certainly within bounds
        offsets = (0,) * len(sizes)
    return Box(tuple(offsets), tuple(sizes)), copies, copy_index


def _host_bytes(tensor: torch.Tensor) -> Bytes | None:
    """Return the memory of a tensor as bytes, or None if it is on a device or not contiguous."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return None
    array: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


class TorchSource(Source):
    """A tensor to be saved."""

    def __init__(self, spec: LeafSpec, tensor: torch.Tensor) -> None:
        self.spec = spec
        self._tensor = tensor
        self._data = _host_bytes(tensor)

    def copy_into(self, start: int, stop: int, out: Bytes) -> None:
        """Copy bytes of the tensor; asynchronously from a device into pinned memory."""
        if self._data is not None:
            np.copyto(out, self._data[start:stop])
            return
        staged = torch.from_numpy(out).view(self._tensor.dtype)
        if stop - start == self.spec.nbytes:
            staged.view(self._tensor.shape).copy_(self._tensor, non_blocking=True)
            return
        item = self.spec.item_nbytes
        staged.copy_(self._tensor.reshape(-1)[start // item : stop // item], non_blocking=True)

    def host_bytes(self) -> Bytes | None:
        """Return the tensor's memory, if it is plain host memory."""
        return self._data


class TorchTarget(Target):
    """A tensor to be filled."""

    def __init__(self, spec: LeafSpec, value: torch.Tensor, local: torch.Tensor) -> None:
        self.spec = spec
        self._value = value
        self._local = local
        self._direct = _host_bytes(local)
        self._buffer = allocate(spec) if self._direct is None else self._direct

    def buffer(self) -> Bytes:
        """Return the tensor's memory, or a buffer for one that is on a device or not contiguous."""
        return self._buffer

    def finish(self) -> Any:
        """Return the tensor."""
        if self._direct is None:
            self._local.copy_(_as_tensor(self.spec, self._buffer).view(self._local.shape))
        return self._value


class NewTorchTarget(Target):
    """A tensor to be made, in host memory."""

    def __init__(self, spec: LeafSpec) -> None:
        self.spec = spec
        self._buffer = allocate(spec)

    def buffer(self) -> Bytes:
        """Return the memory of the tensor to be."""
        return self._buffer

    def finish(self) -> Any:
        """Return the tensor; it owns its memory."""
        made = _as_tensor(self.spec, self._buffer)
        return torch.view_as_complex(made) if self.spec.kind == "torch.complex128" else made


def _as_tensor(spec: LeafSpec, data: Bytes) -> torch.Tensor:
    if not len(data):
        return torch.empty(spec.box.sizes, dtype=_DTYPES[spec.dtype])
    return torch.from_numpy(data).view(_DTYPES[spec.dtype]).view(spec.box.sizes)


class TorchCodec(Codec):
    """Tensors, parameters and DTensors; and dtypes, devices and sizes as plain values."""

    kinds = frozenset({"torch", "torch.complex128"})
    module = "torch"

    def __init__(self) -> None:
        self._devices: set[torch.device] = set()

    def source(self, value: Any, path: str) -> Source | None:
        """Return how to save a tensor."""
        if not isinstance(value, torch.Tensor):
            return None
        spec, local = _prepare(value, path)
        if local.device.type != "cpu":
            self._devices.add(local.device)
        return TorchSource(spec, local)

    def target(self, value: Any, path: str) -> Target | None:
        """Return how to fill a tensor in place."""
        if not isinstance(value, torch.Tensor):
            return None
        spec, local = _prepare(value, path)
        return TorchTarget(spec, value, local)

    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make a tensor."""
        return NewTorchTarget(spec)

    def encode(self, value: Any) -> dict[str, Any] | None:
        """Encode dtypes, devices and sizes."""
        if isinstance(value, torch.Size):
            return {"$": "torch.Size", "v": list(value)}
        if isinstance(value, torch.dtype):
            return {"$": "torch.dtype", "v": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"$": "torch.device", "v": str(value)}
        return None

    def decode(self, tag: str, encoded: dict[str, Any]) -> Any:
        """Decode dtypes, devices and sizes."""
        if tag == "torch.Size":
            return torch.Size(encoded["v"])
        if tag == "torch.device":
            return torch.device(encoded["v"])
        if tag == "torch.dtype":
            found = getattr(torch, encoded["v"])
            if not isinstance(found, torch.dtype):
                raise ValueError(f"torch.{encoded['v']} is not a dtype")
            return found
        return None

    def synchronize(self) -> None:
        """Wait for the copies from accelerators."""
        for device in self._devices:
            getattr(torch, device.type).synchronize(device)
        self._devices.clear()
