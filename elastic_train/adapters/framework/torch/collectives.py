"""Collectives on a mesh: each is one or two rounds in which all exchange with all.

A sum is bit for bit the same on every member, and from run to run: contributions are added in an order that depends
on ranks only, never on arrival. Reduce-scatter followed by all-gather, each in one step (Thakur, Rabenseifner, Gropp:
Optimization of Collective Communication Operations in MPICH, 2005, section 4.5), moves 2 (n - 1) / n of the bytes per
member, as a ring does.
"""

from __future__ import annotations

import struct
from typing import Any

import torch

from elastic_train.adapters.framework.torch.mesh import Mesh

_LENGTH = struct.Struct("<Q")
_SLOT_BYTES = 1024  # payloads that fit (with their length) are gathered in one round
_ONE_ROUND_BYTES = 16 * 1024  # a tensor up to this size goes to everybody as a whole: more bytes, half the latency


class Collectives:
    """The collectives of one mesh, with the memory they need between calls. Used by one thread at a time."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._others = [rank for rank in range(mesh.world_size) if rank != mesh.rank]
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def all_gather(self, payload: bytes) -> list[bytes]:
        """Return every member's payload, by rank (any sizes).

        Raises:
            GroupBroken: A member is gone, or the mesh was aborted.
        """
        room = _SLOT_BYTES - _LENGTH.size
        slots = self._gather_equal(_LENGTH.pack(len(payload)) + payload[:room].ljust(room, b"\0"))
        lengths = [int(_LENGTH.unpack_from(slot)[0]) for slot in slots]
        gathered = [slot[_LENGTH.size : _LENGTH.size + length] for slot, length in zip(slots, lengths, strict=True)]
        long = [rank for rank in self._others if lengths[rank] > room]
        if long or len(payload) > room:
            whole = {rank: bytearray(lengths[rank]) for rank in long}
            to_all = dict.fromkeys(self._others, memoryview(payload)) if len(payload) > room else {}
            self._mesh.exchange(to_all, {rank: memoryview(buffer) for rank, buffer in whole.items()})
            gathered = [bytes(whole[rank]) if rank in whole else data for rank, data in enumerate(gathered)]
            gathered[self._mesh.rank] = payload
        return gathered

    def _gather_equal(self, payload: bytes) -> list[bytes]:
        buffers = {rank: bytearray(len(payload)) for rank in self._others}
        incoming = {rank: memoryview(buffer) for rank, buffer in buffers.items()}
        self._mesh.exchange(dict.fromkeys(self._others, memoryview(payload)), incoming)
        return [bytes(buffers.get(rank, payload)) for rank in range(self._mesh.world_size)]

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum a contiguous tensor over the members, in place.

        Raises:
            GroupBroken: A member is gone, or the mesh was aborted.
        """
        if not self._others or not tensor.numel():
            return
        flat = tensor.detach().view(-1)
        if flat.device.type != "cpu":  # the seam for devices: their own library may be put here
            staged = flat.cpu()
            self.all_reduce(staged)
            flat.copy_(staged)
        elif flat.numel() * flat.element_size() <= _ONE_ROUND_BYTES:
            self._reduce_small(flat)
        else:
            self._reduce_scatter_gather(flat)

    def _reduce_small(self, flat: torch.Tensor) -> None:
        rows = self._scratch_for(flat, self._mesh.world_size * flat.numel()).view(self._mesh.world_size, -1)
        rows[self._mesh.rank].copy_(flat)
        self._mesh.exchange(
            dict.fromkeys(self._others, byte_view(flat)), {rank: byte_view(rows[rank]) for rank in self._others}
        )
        torch.sum(rows, dim=0, out=flat)

    def _reduce_scatter_gather(self, flat: torch.Tensor) -> None:
        world_size, rank = self._mesh.world_size, self._mesh.rank
        chunks = [*torch.tensor_split(flat, world_size)]
        mine = chunks[rank]
        contributions = self._scratch_for(flat, (world_size - 1) * mine.numel()).view(world_size - 1, -1)
        views = {other: byte_view(chunks[other]) for other in self._others}
        arrived: set[int] = set()
        added = 0

        def add_in_order(other: int) -> None:
            nonlocal added
            arrived.add(other)
            while added < len(self._others) and self._others[added] in arrived:
                mine.add_(contributions[added])
                added += 1

        self._mesh.exchange(
            views,
            {other: byte_view(contributions[row]) for row, other in enumerate(self._others)},
            add_in_order,
        )
        self._mesh.exchange(dict.fromkeys(self._others, byte_view(mine)), views)

    def _scratch_for(self, like: torch.Tensor, count: int) -> torch.Tensor:
        """Return `count` uninitialised elements of the same type; they are the next caller's too."""
        nbytes = count * like.element_size()
        if self._scratch.numel() < nbytes:
            self._scratch = torch.empty(nbytes, dtype=torch.uint8)
        return self._scratch[:nbytes].view(like.dtype)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous, one-dimensional CPU tensor of any type."""
    array: Any = tensor.view(torch.uint8).numpy()  # numpy declares its buffer protocol from Python 3.12 on
    return memoryview(array)
