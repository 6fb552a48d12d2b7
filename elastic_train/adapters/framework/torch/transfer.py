"""Send the tensors of a state to one member, and receive them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elastic_train.adapters.framework.torch.collectives import byte_view
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.tree import flat_memory, is_dense

_ALONE_BYTES = 1 << 20
"""A tensor of this size is sent straight from its memory, and received into it; smaller ones travel together."""


def send_tensors(group: TorchGroup, tensors: Sequence[torch.Tensor], receiver: int) -> None:
    """Send tensors, in order.

    Raises:
        GroupBroken: A member is gone, or the group was aborted.
    """
    wires = [_wire(tensor) for tensor in tensors]
    small = [wire for wire in wires if wire.numel() < _ALONE_BYTES]
    if small:
        group.send(byte_view(torch.cat(small)), receiver)
    for wire in wires:
        if wire.numel() >= _ALONE_BYTES:
            group.send(byte_view(wire), receiver)


def receive_tensors(group: TorchGroup, destinations: Sequence[torch.Tensor], sender: int) -> None:
    """Receive into dense CPU tensors what `send_tensors` sends from tensors of the same sizes.

    Raises:
        GroupBroken: A member is gone, or the group was aborted; some destinations may have been written.
    """
    wires = [flat_memory(destination).view(torch.uint8) for destination in destinations]
    small = [wire for wire in wires if wire.numel() < _ALONE_BYTES]
    if small:
        together = torch.empty(sum(wire.numel() for wire in small), dtype=torch.uint8)
        group.receive(byte_view(together), sender)
        for wire, part in zip(small, together.split([wire.numel() for wire in small]), strict=True):
            wire.copy_(part)
    for wire in wires:
        if wire.numel() >= _ALONE_BYTES:
            group.receive(byte_view(wire), sender)


def _wire(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes in memory order, on the CPU."""
    here = tensor.detach().cpu()
    return flat_memory(here if is_dense(here) else here.contiguous()).view(torch.uint8)
