"""What a state consists of, in msgpack: everything but the bytes of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import torch

from elastic_train.adapters.framework.torch.state import StateItem
from elastic_train.adapters.framework.torch.tree import (
    Packer,
    TensorSpec,
    pack_specs,
    tensors_at,
    unpack,
    unpack_specs,
)
from elastic_train.errors import StateNotRestorable

_FORMAT = 1


@dataclass(frozen=True)
class Description:
    """A state without its tensors' bytes."""

    specs: list[TensorSpec]
    items: dict[str, bytes]
    notes: dict[str, Any]  # what the engine itself must know

    def to_bytes(self) -> bytes:
        """Encode."""
        raw = {"format": _FORMAT, "specs": pack_specs(self.specs), "items": self.items, "notes": self.notes}
        return bytes(msgpack.packb(raw))

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """Decode.

        Raises:
            StateNotRestorable: It was written by another version of elastic-train.
        """
        raw = msgpack.unpackb(data)
        if raw.get("format") != _FORMAT:
            raise StateNotRestorable(
                f"the state has format {raw.get('format')}, this worker reads {_FORMAT}: "
                "run one version of elastic-train on all workers."
            )
        return cls(unpack_specs(raw["specs"]), raw["items"], raw["notes"])

    def check(self, items: Mapping[str, StateItem]) -> None:
        """Compare with what is bound here, before anything is changed.

        Raises:
            StateNotRestorable: It does not fit; says which objects and names.
        """
        placeholders = [
            torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device="meta") for spec in self.specs
        ]
        check_items(items, {name: unpack(packed, placeholders.__getitem__) for name, packed in self.items.items()})

    def destinations(self, items: Mapping[str, StateItem]) -> list[torch.Tensor]:
        """Return where each tensor can be received: the bound objects' own memory where it fits, else new memory."""
        own: list[torch.Tensor | None] = [None] * len(self.specs)
        for name, packed in self.items.items():
            here = dict(tensors_at(items[name].capture()))
            for path, index in _indices_at(unpack(packed, _Index)):
                candidate = here.get(path)
                if candidate is not None and own[index] is None and self.specs[index].fits(candidate):
                    own[index] = candidate.detach()
        return [spec.allocate() if tensor is None else tensor for tensor, spec in zip(own, self.specs, strict=True)]

    def sources(self, items: Mapping[str, StateItem]) -> list[torch.Tensor]:
        """Return the bound objects' tensors in the order described.

        Raises:
            StateNotRestorable: The state here is not the one described.
        """
        own: list[torch.Tensor | None] = [None] * len(self.specs)
        for name, packed in self.items.items():
            here = dict(tensors_at(items[name].capture()))
            for path, index in _indices_at(unpack(packed, _Index)):
                tensor, spec = here.get(path), self.specs[index]
                if tensor is None or tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
                    where = ".".join(map(str, (name, *path)))
                    raise StateNotRestorable(f"{where} is not here as it was described: this is another state")
                own[index] = tensor if TensorSpec.of(tensor) == spec else spec.allocate().copy_(tensor)
        return [tensor for tensor in own if tensor is not None]

    def trees(self, tensors: list[torch.Tensor]) -> dict[str, Any]:
        """Return each object's tree, with these tensors in it."""
        return {name: unpack(packed, tensors.__getitem__) for name, packed in self.items.items()}


def describe(items: Mapping[str, StateItem], notes: dict[str, Any]) -> tuple[Description, list[torch.Tensor]]:
    """Return the description of the state as it is now, and its tensors.

    Raises:
        StateNotRestorable: Something in it is neither a plain value nor a dense tensor; says where.
    """
    packer = Packer()
    packed = {}
    for name, item in items.items():
        try:
            packed[name] = packer.pack(item.capture())
        except StateNotRestorable as error:
            raise StateNotRestorable(f"{name}: {error}") from error
    return Description([TensorSpec.of(tensor) for tensor in packer.tensors], packed, notes), packer.tensors


def check_items(items: Mapping[str, StateItem], trees: Mapping[str, Any]) -> None:
    """Compare trees with what is bound here.

    Raises:
        StateNotRestorable: They do not fit; says which objects and names.
    """
    problems = [f"{name} is missing" for name in items.keys() - trees.keys()]
    problems += [f"{name} is unknown here" for name in trees.keys() - items.keys()]
    for name in items.keys() & trees.keys():
        problems += [f"{name}: {problem}" for problem in items[name].check(trees[name])]
    if problems:
        raise StateNotRestorable(
            "the state does not fit the objects in TrainState: "
            + "; ".join(sorted(problems))
            + ". Build them as the run that wrote it did."
        )


class _Index(int):
    """The place of a tensor in an unpacked tree; no plain value is one."""

    __slots__ = ()


def _indices_at(tree: Any, path: tuple[object, ...] = ()) -> list[tuple[tuple[object, ...], int]]:
    if isinstance(tree, _Index):
        return [(path, int(tree))]
    if isinstance(tree, Mapping):
        children: list[tuple[object, Any]] = list(tree.items())
    elif isinstance(tree, list | tuple):
        children = list(enumerate(tree))
    else:
        return []
    return [found for key, value in children for found in _indices_at(value, (*path, key))]
