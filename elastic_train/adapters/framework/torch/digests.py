"""Digests of a state, to compare it with what it should be the same as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import xxhash

from elastic_train.adapters.framework.torch.collectives import byte_view
from elastic_train.adapters.framework.torch.tree import flat_memory, is_dense, tensors_at

_OTHERS = "(other values)"


def state_digests(state: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of every tensor by its path (xxh3, 64 bits in hex), and of all other values together.

    Two states with the same digests are equal but for a chance of 2^-64 a tensor: this finds faults, not forgers.
    """
    digests = {}
    for path, tensor in tensors_at(state):
        digests[".".join(map(str, path))] = xxhash.xxh3_64_hexdigest(_memory(tensor))
    others = sorted(f"{path}={value!r}" for path, value in _values_at(state))  # the order in dicts may differ
    digests[_OTHERS] = xxhash.xxh3_64_hexdigest("\n".join(others).encode())
    return digests


def _values_at(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _values_at(value, f"{path}.{key!r}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _values_at(value, f"{path}.{index}")
    elif not isinstance(tree, torch.Tensor):
        yield path, tree


def _memory(tensor: torch.Tensor) -> memoryview | bytes:
    here = tensor.detach().cpu()
    flat = flat_memory(here if is_dense(here) else here.contiguous())
    return byte_view(flat) if flat.numel() else b""
