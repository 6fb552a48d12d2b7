"""ElasticBatches: a dataset cut into the same global batches at every world size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from elastic_train.core.data import BatchPlan, Indices, Share
from elastic_train.core.order import DrawnOrder, OrderedPlan, SampleOrder
from elastic_train.errors import ConfigurationError
from elastic_train.ports import LoaderSettings, Piece, ReadPiece

_START_METHODS = ("forkserver", "spawn", "fork")
_LOOKAHEAD = 4096  # positions whose indices are computed at a time: the fixed cost is shared by many steps


class SizedDataset(Protocol):
    """A map-style dataset: ``len(dataset)`` samples, ``dataset[index]``."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: Any, /) -> Any: ...


Collate = Callable[[list[Any]], Any]


class ElasticBatches:
    """The batches of a training run, divided among however many workers there are.

    Step k has the same samples at every world size: a seeded permutation of each data epoch is cut into global
    batches, and each of those into logical shards, of which every worker takes a contiguous run.

    Args:
        dataset: Map-style: has a length and indexing. ``TensorDataset`` and anything with ``__getitems__`` are read a
            batch at a time.
        global_batch_size: Samples per step over all workers, at least the number of logical shards (``max_workers``
            unless said otherwise).
        data_epochs: Passes over the dataset.
        seed: Of the order; None takes the job's.
        shuffle: False keeps the dataset's order.
        order: Which samples a data epoch has, and in which order, instead of all of them shuffled: a pure function
            called as ``order(data_epoch, seed)``, e.g. `WeightedOrder` or `BucketedOrder`.
        drop_last: Leave out the incomplete batch at the end of each data epoch (otherwise it is a smaller step).
        collate: Makes a batch of a list of samples; default: the framework's own
            (``torch.utils.data.default_collate``).
        micro_batch_size: Yield at most so many samples at a time; gradients accumulate over the parts of a step.
        num_workers: Processes that read ahead; 0 reads in the step. Random augmentations in them are seeded for each
            step and logical shard, so that they are the same at every world size.
        pin_memory: Put batches into page-locked memory, where there is an accelerator.
        prefetch_factor: Parts of steps that each of these processes reads ahead.
        worker_init_fn: Called with its number in each of these processes.
        start_method: Of these processes: "forkserver" (or "spawn") sends the dataset to them once; "fork" inherits it,
            and with it the connections of this worker, whose death the others then notice late.

    Raises:
        ConfigurationError: Something cannot work; says what to do.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings of one thing, each with a default
        self,
        dataset: SizedDataset,
        *,
        global_batch_size: int,
        data_epochs: int = 1,
        seed: int | None = None,
        shuffle: bool = True,
        order: SampleOrder | None = None,
        drop_last: bool = False,
        collate: Collate | None = None,
        micro_batch_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
        worker_init_fn: Callable[[int], None] | None = None,
        start_method: str = "forkserver",
    ) -> None:
        self._size = _length(dataset)
        if order is not None and not callable(order):
            raise ConfigurationError("order", f"{order!r} is no function", "Give a function of (data_epoch, seed).")
        require_positive("global_batch_size", global_batch_size)
        require_positive("data_epochs", data_epochs)
        if micro_batch_size is not None:
            require_positive("micro_batch_size", micro_batch_size)
        if num_workers:
            require_positive("num_workers", num_workers)
        require_positive("prefetch_factor", prefetch_factor)
        if start_method not in _START_METHODS:
            raise ConfigurationError("start_method", f"{start_method!r} is none", f"Give one of {_START_METHODS}.")
        if drop_last and order is None and self._size < global_batch_size:
            raise _nothing_left(self._size, global_batch_size)
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.data_epochs = data_epochs
        self.seed = seed
        self.shuffle = shuffle
        self.order = order
        self.drop_last = drop_last
        self.micro_batch_size = micro_batch_size
        self.loading = LoaderSettings(num_workers, pin_memory, prefetch_factor, worker_init_fn, start_method)
        self._collate = collate
        self._blocks: list[_Block] = []  # the last two: whoever reads ahead may stand in another than the step

    def plan(self, logical_shards: int, job_seed: int) -> BatchPlan:
        """Return the pure plan of these batches for a job.

        Raises:
            ConfigurationError: The global batch cannot be cut into so many logical shards, or the order is none.
        """
        if self.global_batch_size < logical_shards:
            raise ConfigurationError(
                "global_batch_size",
                f"{self.global_batch_size} samples cannot be cut into {logical_shards} logical shards",
                f"Raise it to at least {logical_shards}, or lower max_workers (or logical_shards) of the trainer.",
            )
        seed = job_seed if self.seed is None else self.seed
        plan = BatchPlan(
            dataset_size=self._size,
            global_batch_size=self.global_batch_size,
            logical_shards=logical_shards,
            data_epochs=self.data_epochs,
            seed=seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )
        if self.order is None:
            return plan
        drawn = DrawnOrder(self.order, self._size, seed)
        if self.drop_last and drawn.samples < self.global_batch_size:
            raise _nothing_left(drawn.samples, self.global_batch_size)
        return OrderedPlan(**(asdict(plan) | {"dataset_size": drawn.samples}), order=drawn)

    def indices(self, plan: BatchPlan, share: Share) -> Indices:
        """Return the dataset indices of a share: [samples]."""
        for block in self._blocks:
            if block.holds(share):
                break
        else:
            stop = min(max(share.batch_start + _LOOKAHEAD, share.batch_stop), plan.dataset_size)
            indices = plan.indices(share.data_epoch, share.batch_start, stop)
            block = _Block(share.data_epoch, share.batch_start, indices)
            self._blocks = [*self._blocks[-1:], block]
        return block.indices[share.start - block.start : share.stop - block.start]

    def read(self, indices: Indices, default_collate: Collate) -> Any:
        """Return the samples of these indices as one batch.

        Args:
            indices: [n] dataset indices, at least one.
            default_collate: The framework's own, used where the user gave none.
        """
        columns = _tensor_columns(self.dataset) if self._collate is None else None
        if columns is not None:
            return tuple(column[indices] for column in columns)
        return (self._collate or default_collate)(_samples(self.dataset, indices.tolist()))

    def read_piece(self) -> ReadPiece:
        """Return what reads a piece in a reader process."""
        return _ReadPiece(self.dataset, self._collate)


@dataclass(frozen=True, slots=True)
class _Block:
    """The indices of a run of positions, from `start` on."""

    data_epoch: int
    start: int
    indices: Indices

    def holds(self, share: Share) -> bool:
        stop = self.start + len(self.indices)
        return self.data_epoch == share.data_epoch and self.start <= share.start and share.stop <= stop


@dataclass(frozen=True, slots=True)
class _ReadPiece:
    dataset: SizedDataset
    collate: Collate | None

    def __call__(self, piece: Piece, seed: Callable[[int], None], default_collate: Collate, /) -> Any:
        samples: list[Any] = []
        for run_seed, indices in piece.runs:
            seed(run_seed)
            samples += _samples(self.dataset, indices)
        seed(piece.runs[0][0])  # collate may be random too
        return (self.collate or default_collate)(samples)


def _samples(dataset: Any, indices: Sequence[int]) -> list[Any]:
    get_many = getattr(dataset, "__getitems__", None)  # torch's protocol for reading a batch at a time
    if get_many is not None:
        return list(get_many(list(indices)))
    return [dataset[index] for index in indices]


def _tensor_columns(dataset: Any) -> Sequence[Any] | None:
    """Return the columns of a torch TensorDataset, to be indexed by a whole batch at once; else None."""
    kind = type(dataset)
    if kind.__name__ == "TensorDataset" and kind.__module__ == "torch.utils.data.dataset":
        columns: Sequence[Any] = dataset.tensors
        return columns
    return None


def _length(dataset: Any) -> int:
    try:
        size = len(dataset)
    except TypeError as error:
        raise ConfigurationError(
            "dataset",
            f"{type(dataset).__name__} has no length",
            "Give a map-style dataset (__len__ and __getitem__), so that every sample is used exactly once.",
        ) from error
    if size < 1:
        raise ConfigurationError("dataset", "it is empty", "Give at least one sample.")
    return size


def _nothing_left(samples: int, global_batch_size: int) -> ConfigurationError:
    return ConfigurationError(
        "drop_last",
        f"a data epoch has {samples} samples, fewer than one global batch of {global_batch_size}",
        "Nothing would be left to train on: lower global_batch_size or leave drop_last=False.",
    )


def require_positive(name: str, value: Any) -> None:
    """Raise ConfigurationError unless a setting is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(name, f"{value!r} is not a whole number of at least 1", "Give a positive integer.")
