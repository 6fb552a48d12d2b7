"""Buffers that a forward pass changes (batch norm's): averaged over the workers, and undone with a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elastic_train.adapters.framework.torch.group import TorchGroup

_ALWAYS_SAVED_BYTES = 1 << 20
"""Buffers are saved at every step from the first while they are together this small; above it, those that were seen
to change."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer hangs: assigning a new tensor to it is a way to change it too."""

    module: torch.nn.Module
    name: str

    @property
    def tensor(self) -> torch.Tensor | None:
        """Return what hangs there now."""
        return self.module._buffers.get(self.name)  # noqa: SLF001  get_buffer() walks the path at 20 times the cost


class Buffers:
    """The buffers of all bound modules, in the same order on every member."""

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self.places: list[Place] = []
        seen: set[int] = set()
        for root in modules:
            for module in root.modules():
                for name, buffer in module._buffers.items():  # noqa: SLF001  named_buffers() hides which module owns it
                    if buffer is not None and id(buffer) not in seen:
                        seen.add(id(buffer))
                        self.places.append(Place(module, name))
        self._changing: set[int] = set()
        self._base: list[tuple[torch.Tensor | None, int]] = []
        self._saved: dict[int, torch.Tensor] = {}
        sizes = [0 if place.tensor is None else place.tensor.nbytes for place in self.places]
        self._save_all = sum(sizes) <= _ALWAYS_SAVED_BYTES

    def __len__(self) -> int:
        return len(self.places)

    def begin(self, *, everything: bool) -> None:
        """Open a step: remember what `changed` and `restore` need."""
        self.mark()
        wanted = range(len(self.places)) if everything or self._save_all else sorted(self._changing)
        with torch.no_grad():
            for index in wanted:
                tensor = self._base[index][0]
                if tensor is None:
                    continue
                saved = self._saved.get(index)
                if saved is not None and saved.shape == tensor.shape and saved.dtype == tensor.dtype:
                    saved.copy_(tensor)
                else:
                    self._saved[index] = tensor.clone()

    def changed(self) -> list[bool]:
        """Return for each buffer whether it was written or replaced since the step began, or since `average`.

        Buffers of one module change together: batch norm's kernel writes the statistics behind the back of their
        version counters, but what it counts beside them is written in the open.
        """
        modules = {
            id(place.module)
            for place, (tensor, version) in zip(self.places, self._base, strict=True)
            if (now := place.tensor) is not tensor or _version(now) != version
        }
        if not modules:
            return [False] * len(self.places)
        result = [id(place.module) in modules for place in self.places]
        self._changing.update(index for index, changed in enumerate(result) if changed)
        return result

    def average(self, changed_by_any: Sequence[bool], weight: float, group: TorchGroup) -> None:
        """Give every member the same buffers: floating point ones the average by `weight`, others those of rank 0.

        Raises:
            GroupBroken: A member is gone, or the group was aborted.
        """
        tensors = [place.tensor for place, changed in zip(self.places, changed_by_any, strict=True) if changed]
        present = [tensor for tensor in tensors if tensor is not None]
        with torch.no_grad():
            parts = []
            for tensor in present:
                share = weight if tensor.is_floating_point() else float(group.rank == 0)
                parts.append(tensor.detach().reshape(-1).to("cpu", torch.float64) * share)
            flat = torch.cat(parts)
            group.all_reduce(flat)
            for tensor, average in zip(present, flat.split([part.numel() for part in parts]), strict=True):
                tensor.copy_(average.view(tensor.shape))
        self.mark()

    def restore(self) -> None:
        """Undo all changes since `begin`."""
        with torch.no_grad():
            for index, changed in enumerate(self.changed()):
                place, (tensor, _) = self.places[index], self._base[index]
                if not changed or tensor is None:
                    continue
                place.module._buffers[place.name] = tensor  # noqa: SLF001  as it was found
                if index in self._saved:
                    tensor.copy_(self._saved[index])

    def mark(self) -> None:
        """Take what there is now for unchanged."""
        tensors = [place.tensor for place in self.places]
        self._base = [(tensor, _version(tensor)) for tensor in tensors]


def _version(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor._version  # noqa: SLF001  no other way to see a write
