"""Orders of a dataset's samples that a user gives: weighted, bucketed, or any pure function of (data epoch, seed).

An order is called as ``order(data_epoch, seed)`` and returns the dataset indices of that data epoch, as many in each.
It is cut into global batches and logical shards as the built-in permutation is, so the position stays one integer.
It must be pure: every worker calls it for itself, and so does whoever takes over later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from elastic_train.core.data import BatchPlan, Indices, indices_crc, mix, permute
from elastic_train.errors import ConfigurationError, UsageError

SampleOrder = Callable[[int, int], Sequence[int] | Indices]

_KEPT = 2  # data epochs whose order is kept: the present one, and the next where somebody reads ahead


@dataclass(frozen=True)
class WeightedOrder:
    """Draw samples with given weights, anew in each data epoch.

    Args:
        weights: One per sample of the dataset, none negative, in any scale.
        num_samples: Samples drawn for one data epoch.
        replacement: Draw each sample as often as it comes; without, at most once (successive sampling: Efraimidis &
            Spirakis, "Weighted random sampling with a reservoir", IPL 97, 2006).

    Raises:
        ConfigurationError: The weights cannot be drawn from.
    """

    weights: Sequence[float] | NDArray[np.floating[Any]]
    num_samples: int
    replacement: bool = True

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.ndim != 1 or not len(weights) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ConfigurationError("weights", "they are not one finite number >= 0 per sample", "Give such a list.")
        drawable = int(np.count_nonzero(weights))
        if not drawable:
            raise ConfigurationError("weights", "all of them are 0", "Give at least one sample a positive weight.")
        if self.num_samples < 1 or (not self.replacement and self.num_samples > drawable):
            raise ConfigurationError(
                "num_samples",
                f"{self.num_samples} cannot be drawn from {drawable} samples of positive weight",
                "Give at least 1, and without replacement at most as many as there are.",
            )
        object.__setattr__(self, "weights", weights)

    def __call__(self, data_epoch: int, seed: int) -> Indices:
        """Return the indices drawn for a data epoch: [num_samples]."""
        weights: NDArray[np.float64] = np.asarray(self.weights)
        if self.replacement:
            sums = np.cumsum(weights)
            wanted = uniforms(self.num_samples, mix(seed, data_epoch)) * sums[-1]
            drawn = cast("Indices", np.searchsorted(sums, wanted, side="right"))
            drawn[drawn >= len(weights)] = np.flatnonzero(weights)[-1]  # a product rounded up to the whole sum
            return drawn.astype(np.int64)
        candidates: Indices = np.flatnonzero(weights).astype(np.int64)
        keys = -np.log1p(-uniforms(len(weights), mix(seed, data_epoch))[candidates]) / weights[candidates]
        return candidates[np.argsort(keys, kind="stable")[: self.num_samples]]


@dataclass(frozen=True)
class BucketedOrder:
    """Put samples of similar length into the same global batch, to pad less; every sample once per data epoch.

    All samples are shuffled and cut into pools; each pool is sorted by length and cut into batches; the batches of all
    pools are shuffled (the incomplete one, if any, stays last).

    Args:
        lengths: One per sample of the dataset.
        batch_size: The global batch size.
        pool_batches: Batches in one pool: more pad less, fewer are more random.

    Raises:
        ConfigurationError: A size is not positive, or there are no lengths.
    """

    lengths: Sequence[int] | NDArray[np.int64]
    batch_size: int
    pool_batches: int = 50

    def __post_init__(self) -> None:
        lengths = np.asarray(self.lengths)
        if lengths.ndim != 1 or not len(lengths):
            raise ConfigurationError("lengths", "they are not one number per sample", "Give such a list.")
        for name in ("batch_size", "pool_batches"):
            if getattr(self, name) < 1:
                raise ConfigurationError(name, f"{getattr(self, name)} is not positive", "Give at least 1.")
        object.__setattr__(self, "lengths", lengths)

    def __call__(self, data_epoch: int, seed: int) -> Indices:
        """Return the indices of a data epoch, each once: [len(lengths)]."""
        lengths = np.asarray(self.lengths)
        size, pool = len(lengths), self.batch_size * self.pool_batches
        shuffled = permute(np.arange(size, dtype=np.int64), size, mix(seed, data_epoch))
        pools = np.arange(size) // pool
        grouped = shuffled[np.lexsort((lengths[shuffled], pools))]
        whole = size // self.batch_size
        if not whole:
            return grouped
        batches = grouped[: whole * self.batch_size].reshape(whole, self.batch_size)
        batches = batches[permute(np.arange(whole, dtype=np.int64), whole, mix(seed, data_epoch, 1))]
        return np.concatenate([batches.reshape(-1), grouped[whole * self.batch_size :]])


def uniforms(count: int, seed: int) -> NDArray[np.float64]:
    """Return `count` numbers of [0, 1), the same with every library version (splitmix64 of a counter)."""
    values = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(seed))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


class DrawnOrder:
    """What an order returns, drawn once per data epoch and checked.

    Args:
        order: The user's.
        dataset_size: Every index must be below it.
        seed: Given to the order.

    Raises:
        ConfigurationError: It returns what cannot be a sample order, or something else when it is called again.
    """

    def __init__(self, order: SampleOrder, dataset_size: int, seed: int) -> None:
        self._order = order
        self._dataset_size = dataset_size
        self._seed = seed
        self._drawn: dict[int, Indices] = {}
        self._crc: tuple[int, int, int] | None = None  # of the data epoch asked for last: data_epoch, used, checksum
        first = self._drawn[0] = self._draw(0)
        self.samples = len(first)
        if not np.array_equal(first, self._draw(0)):
            raise ConfigurationError(
                "order",
                f"{self.name} returned two different orders for the same data epoch and seed",
                "Make it a pure function of (data_epoch, seed): "
                "draw from np.random.default_rng([seed, data_epoch]), not from a global generator.",
            )

    @property
    def name(self) -> str:
        """Return what to call it in messages."""
        return str(getattr(self._order, "__qualname__", type(self._order).__qualname__))

    def of(self, data_epoch: int) -> Indices:
        """Return the indices of a data epoch: [samples].

        Raises:
            UsageError: There are not as many as in the others.
            ConfigurationError: They cannot be a sample order.
        """
        drawn = self._drawn.get(data_epoch)
        if drawn is None:
            drawn = self._draw(data_epoch)
            if len(drawn) != self.samples:
                raise UsageError(
                    f"the order {self.name} has {len(drawn)} samples in data epoch {data_epoch} and {self.samples} in "
                    "data epoch 0: return as many in each, so that a step's number says where it stands"
                )
            for old in sorted(self._drawn)[: len(self._drawn) - _KEPT + 1]:
                del self._drawn[old]
            self._drawn[data_epoch] = drawn
        return drawn

    def crc(self, data_epoch: int, used: int) -> int:
        """Return the checksum of the first `used` indices of a data epoch."""
        if self._crc is None or self._crc[:2] != (data_epoch, used):
            self._crc = data_epoch, used, indices_crc(self.of(data_epoch)[:used])
        return self._crc[2]

    def _draw(self, data_epoch: int) -> Indices:
        drawn = np.asarray(self._order(data_epoch, self._seed))
        if drawn.ndim != 1 or not len(drawn) or not np.issubdtype(drawn.dtype, np.integer):
            raise ConfigurationError(
                "order",
                f"{self.name} returned {drawn.dtype} of shape {drawn.shape} for data epoch {data_epoch}",
                "Return a non-empty sequence of dataset indices.",
            )
        if int(drawn.min()) < 0 or int(drawn.max()) >= self._dataset_size:
            raise ConfigurationError(
                "order",
                f"{self.name} returned indices in [{drawn.min()}, {drawn.max()}] for data epoch {data_epoch}",
                f"The dataset has the indices [0, {self._dataset_size - 1}].",
            )
        return drawn.astype(np.int64)


@dataclass(frozen=True)
class OrderedPlan(BatchPlan):
    """A plan whose order is the user's; `dataset_size` is the length of that order."""

    order: DrawnOrder | None = None

    def indices(self, data_epoch: int, start: int, stop: int) -> Indices:
        """Return the dataset indices at the positions ``[start, stop)`` of a data epoch's order."""
        if self.order is None:
            raise AssertionError("an ordered plan has an order")
        return self.order.of(data_epoch)[start:stop]

    def order_crc(self, data_epoch: int) -> int:
        """Return the checksum of what is used of a data epoch's order: the same on every worker, if it is pure."""
        if self.order is None:
            raise AssertionError("an ordered plan has an order")
        return self.order.crc(data_epoch, min(self.dataset_size, self.steps_per_data_epoch * self.global_batch_size))

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain values, with the order's name in its place."""
        values = {field.name: getattr(self, field.name) for field in fields(BatchPlan)}
        return values | {"order": self.order.name if self.order is not None else ""}


def describe(plan: BatchPlan) -> dict[str, Any]:
    """Return a plan as plain values, for the journal."""
    return plan.describe() if isinstance(plan, OrderedPlan) else asdict(plan)
