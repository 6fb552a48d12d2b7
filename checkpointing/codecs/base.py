"""What a codec is: the one door to an array library."""

from __future__ import annotations

import abc
from typing import Any

import numpy as np

from checkpointing.core.division import LeafSpec

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""A flat array of bytes."""


class Source(abc.ABC):
    """A tensor to be saved: this writer's box of it."""

    spec: LeafSpec

    @abc.abstractmethod
    def copy_into(self, start: int, stop: int, out: Bytes) -> None:
        """Copy the bytes `[start, stop)` of the box, in row-major order, into `out`.

        A copy from a device may still be under way on return; :meth:`Codec.synchronize` ends it.
        """

    def host_bytes(self) -> Bytes | None:
        """Return the bytes of the box where they lie, if they lie in host memory one after the other."""
        return None


class Target(abc.ABC):
    """A tensor to be filled: this reader's box of it."""

    spec: LeafSpec

    @abc.abstractmethod
    def buffer(self) -> Bytes:
        """Return where the bytes of the box go: the tensor's own memory where that can be."""

    @abc.abstractmethod
    def finish(self) -> Any:
        """Return the filled tensor; the same object that was to be filled, if there was one and it can be changed."""


class Codec(abc.ABC):
    """Read and write the tensors of one library."""

    #: The kinds (in manifests) that this codec reads.
    kinds: frozenset[str] = frozenset()

    #: The top-level module whose classes it claims.
    module: str = ""

    @abc.abstractmethod
    def source(self, value: Any, path: str) -> Source | None:
        """Return how to save a value, or None if it is no tensor.

        Raises:
            UnsupportedLeaf: A tensor that cannot be stored.
        """

    @abc.abstractmethod
    def target(self, value: Any, path: str) -> Target | None:
        """Return how to fill an existing value, or None if it is no tensor.

        Raises:
            UnsupportedLeaf: A tensor that cannot be stored.
        """

    @abc.abstractmethod
    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make a tensor of `spec`, which has one of `kinds`."""

    def encode(self, value: Any) -> dict[str, Any] | None:
        """Return a value that is no tensor as a JSON object with the key `$`, or None if it is not of this library."""
        del value
        return None

    def decode(self, tag: str, encoded: dict[str, Any]) -> Any:
        """Return what `encode` encoded, or None if the tag is of another codec."""
        del tag, encoded
        return None

    def synchronize(self) -> None:
        """Wait until copies from devices have arrived."""
        return


def flat_bytes(array: np.ndarray) -> Bytes:
    """Return the bytes of a C-contiguous array without a copy."""
    return array.reshape(-1).view(np.uint8)


def allocate(spec: LeafSpec) -> Bytes:
    """Return fresh memory for the box of `spec`."""
    return np.empty(spec.nbytes, dtype=np.uint8)
