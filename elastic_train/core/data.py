"""Which samples belong to which step: a pure function of (plan, step), the same at every world size.

A data epoch is a seeded permutation of the dataset, cut into global batches, each cut into V logical shards. A
worker holds a contiguous run of logical shards, so a change of the world moves runs and nothing else, and the
whole position in the data is one integer: the step.

The permutation is never materialised: index ``p`` is sent through a Feistel network with cycle walking
(Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), so a step costs O(batch) time and memory for
a dataset of any size, and no library version can change the order.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_ROUNDS = 6
_MASK64 = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers to 64 bits (splitmix64 finalizer, Steele et al. 2014), for seeds that must not collide."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & _MASK64)) & _MASK64
        state = (state + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def permute(positions: Indices, size: int, seed: int) -> Indices:
    """Send positions through the pseudorandom permutation of ``[0, size)`` that `seed` names.

    Args:
        positions: [n] integers in ``[0, size)``.
        size: Size of the domain, at least 1.
        seed: Any integer.

    Returns:
        [n] integers in ``[0, size)``; a bijection over the whole domain.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    keys = [np.uint64(mix(seed, size, round_)) for round_ in range(_ROUNDS)]
    values = positions.astype(np.uint64)
    pending = np.arange(len(values))
    while len(pending):  # cycle walking: values that fell outside are sent through again; fewer than 4 passes expected
        values[pending] = _feistel(values[pending], half, mask, keys)
        pending = pending[values[pending] >= size]
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, mask: np.uint64, keys: list[np.uint64]) -> NDArray[np.uint64]:
    left, right = values >> half, values & mask
    for key in keys:
        mixed = (right ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
    return (left << half) | right


def split(total: int, parts: int, part: int) -> tuple[int, int]:
    """Return the half-open range of `part` when ``[0, total)`` is cut into contiguous, even runs."""
    return part * total // parts, (part + 1) * total // parts


@dataclass(frozen=True, slots=True)
class Share:
    """One worker's part of one global batch."""

    step: int
    data_epoch: int
    shards: tuple[int, int]  # half-open run of logical shards
    start: int  # half-open range of positions in the data epoch's order
    stop: int
    batch_start: int  # the same for the whole global batch
    batch_stop: int
    base: int = 0  # samples of all data epochs before

    @property
    def samples_of_all_data_epochs(self) -> tuple[int, int]:
        """Return the half-open range of positions in the order of all data epochs, one after the other."""
        return self.base + self.start, self.base + self.stop

    @property
    def samples(self) -> int:
        """Return how many samples this worker computes."""
        return self.stop - self.start

    @property
    def global_samples(self) -> int:
        """Return how many samples the whole global batch has."""
        return self.batch_stop - self.batch_start


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The order and the cutting of a dataset.

    Args:
        dataset_size: Samples in one data epoch, at least 1.
        global_batch_size: Samples of one step over all workers; the last batch of a data epoch is smaller where it does
            not divide, unless `drop_last`.
        logical_shards: V; every world size up to V divides the batch into runs of them.
        data_epochs: Passes over the data.
        seed: Of the order; each data epoch has its own permutation.
        shuffle: False keeps the dataset's order.
        drop_last: Leave out the incomplete batch at the end of each data epoch.
    """

    dataset_size: int
    global_batch_size: int
    logical_shards: int
    data_epochs: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    @property
    def steps_per_data_epoch(self) -> int:
        """Return the number of global batches in one data epoch."""
        whole, rest = divmod(self.dataset_size, self.global_batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    @property
    def total_steps(self) -> int:
        """Return the number of steps in all data epochs."""
        return self.steps_per_data_epoch * self.data_epochs

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """Return what the worker of this rank computes in this step."""
        return self.share_of_shards(step, split(self.logical_shards, world_size, rank))

    def share_of_shards(self, step: int, shards: tuple[int, int]) -> Share:
        """Return the samples of a half-open run of logical shards."""
        data_epoch, batch = divmod(step, self.steps_per_data_epoch)
        batch_start = batch * self.global_batch_size
        batch_stop = min(batch_start + self.global_batch_size, self.dataset_size)
        samples = batch_stop - batch_start
        start = batch_start + shards[0] * samples // self.logical_shards
        stop = batch_start + shards[1] * samples // self.logical_shards
        base = data_epoch * self.dataset_size
        return Share(step, data_epoch, shards, start, stop, batch_start, batch_stop, base)

    def indices(self, data_epoch: int, start: int, stop: int) -> Indices:
        """Return the dataset indices at the positions ``[start, stop)`` of a data epoch's order."""
        positions = np.arange(start, stop, dtype=np.int64)
        if not self.shuffle:
            return positions
        return permute(positions, self.dataset_size, mix(self.seed, data_epoch))


def indices_crc(indices: Indices) -> int:
    """Return the CRC-32 of indices as little-endian int64: the journal's proof of which samples were read."""
    return zlib.crc32(indices.astype("<i8").tobytes())
