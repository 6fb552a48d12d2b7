"""Undo a step that was caught after an optimizer had already moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from elastic_train.adapters.framework.torch.description import Description, describe
from elastic_train.adapters.framework.torch.state import StateItem


class Undo:
    """A copy of the whole state at the beginning of a step. The memory is kept from one step to the next."""

    def __init__(self, items: Mapping[str, StateItem]) -> None:
        self._items = items
        self._description: Description | None = None
        self._copies: list[torch.Tensor] = []

    @property
    def held(self) -> bool:
        """Return whether there is a copy to go back to."""
        return self._description is not None

    def take(self) -> None:
        """Copy the state."""
        self._description, tensors = describe(self._items, {})
        fits = len(tensors) == len(self._copies) and all(
            copy.shape == tensor.shape and copy.dtype == tensor.dtype and copy.stride() == tensor.stride()
            for copy, tensor in zip(self._copies, tensors, strict=True)
        )
        with torch.no_grad():
            if fits:
                for copy, tensor in zip(self._copies, tensors, strict=True):
                    copy.copy_(tensor)
            else:
                self._copies = [tensor.detach().clone() for tensor in tensors]

    def drop(self) -> None:
        """Forget the copy; its memory is kept for the next."""
        self._description = None

    def free(self) -> None:
        """Forget the copy and its memory."""
        self._description = None
        self._copies = []

    def restore(self) -> None:
        """Put the state back as it was."""
        assert self._description is not None
        trees: dict[str, Any] = self._description.trees(self._copies)
        for name, item in self._items.items():
            item.restore(trees[name], keep=False)
        self.drop()
