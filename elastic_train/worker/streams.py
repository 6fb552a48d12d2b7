"""ElasticStreams: iterable data as V streams, one per logical shard, each of which goes where its shard goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from elastic_train.core.data import Indices
from elastic_train.core.streams import Ends, SavedStream, StreamPlan
from elastic_train.errors import ConfigurationError, UsageError
from elastic_train.worker.batches import Collate, require_positive
from elastic_train.worker.fingerprints import fingerprint, identity
from elastic_train.worker.packing import pack_state, unpack_state

_log = logging.getLogger(__name__)

MakeStream = Callable[[int, int], Iterable[Any]]


class ElasticStreams:
    """The batches of a training run over iterable data, divided among however many workers there are.

    Every logical shard has a stream of its own. A step takes a fixed number of samples of each, so step k has the same
    samples at every world size. When a shard moves to another worker its stream is opened there with the newest known
    state, and what the committed steps have used since is skipped: each sample is used once, whatever happens.

    Args:
        make_stream: Called as ``make_stream(shard, num_shards)``; returns an iterable of samples. Every sample must be
            in the stream of exactly one shard, and a stream must give the same samples in the same order each time it
            is made. Where it has ``state_dict`` and ``load_state_dict`` (Hugging Face's ``IterableDataset``,
            torchdata's ``StatefulDataLoader`` with ``batch_size=None``, ...), these are used; otherwise, samples are
            counted and skipped. Where it has ``set_epoch``, that is called with the data epoch.
        global_batch_size: Samples per step over all workers, as long as all streams last.
        data_epochs: Passes over the streams.
        ends: ``"all"``: a data epoch is over when all streams are exhausted; towards its end the steps are smaller, and
            every sample is used. ``"any"``: it is over before the first step for which one stream lacks samples; every
            step is whole, and the rest is left out.
        collate: Makes a batch of a list of samples; default: the framework's own.
        micro_batch_size: Yield at most so many samples at a time; gradients accumulate over the parts of a step.
        sample_key: Called with a sample, returns what tells it apart (a number or text) in the journal; default: its
            ``__key__`` if it has one, else a checksum of its leading content.
        exchange_every: Steps after which the workers tell each other their streams' states: no more need be skipped for
            a worker that was killed. At planned changes and with checkpoints they are told in any case.

    Raises:
        ConfigurationError: Something cannot work; says what to do.
    """

    def __init__(  # noqa: PLR0913 - keyword-only settings of one thing, each with a default
        self,
        make_stream: MakeStream,
        *,
        global_batch_size: int,
        data_epochs: int = 1,
        ends: Ends = "all",
        collate: Collate | None = None,
        micro_batch_size: int | None = None,
        sample_key: Callable[[Any], int | str | bytes] | None = None,
        exchange_every: int = 50,
    ) -> None:
        if not callable(make_stream):
            raise ConfigurationError(
                "make_stream", f"{make_stream!r} is no function", "Give a function of (shard, num_shards)."
            )
        require_positive("global_batch_size", global_batch_size)
        require_positive("data_epochs", data_epochs)
        require_positive("exchange_every", exchange_every)
        if micro_batch_size is not None:
            require_positive("micro_batch_size", micro_batch_size)
        if ends not in ("all", "any"):
            raise ConfigurationError("ends", f"{ends!r} is no policy", 'Give "all" or "any".')
        self.make_stream = make_stream
        self.global_batch_size = global_batch_size
        self.data_epochs = data_epochs
        self.ends: Ends = ends
        self.collate = collate
        self.micro_batch_size = micro_batch_size
        self.sample_key = sample_key
        self.exchange_every = exchange_every

    def plan(self, logical_shards: int) -> StreamPlan:
        """Return the pure plan of these streams for a job.

        Raises:
            ConfigurationError: The global batch cannot be cut into so many logical shards.
        """
        if self.global_batch_size < logical_shards:
            raise ConfigurationError(
                "global_batch_size",
                f"{self.global_batch_size} samples cannot be cut into {logical_shards} logical shards",
                f"Raise it to at least {logical_shards}, or lower max_workers (or logical_shards) of the trainer.",
            )
        return StreamPlan(self.global_batch_size, logical_shards, self.data_epochs, self.ends)

    def key(self, sample: Any) -> int:
        """Return the number by which the journal knows a sample."""
        return fingerprint(sample) if self.sample_key is None else identity(self.sample_key(sample))


class ShardStream:
    """The open stream of one logical shard in one data epoch, read some steps ahead.

    Positions are samples from the beginning of the data epoch. Samples are kept from the last position that was
    forgotten on, so that an aborted step is served again; the state is kept at every position where reading paused.

    Args:
        streams: What the user gave.
        place: (shard, number of shards, data_epoch).
        saved: The newest known state, or None.
        used: Where to begin.

    Raises:
        UsageError: The stream has fewer samples than it had before.
    """

    def __init__(
        self, streams: ElasticStreams, place: tuple[int, int, int], saved: SavedStream | None, used: int
    ) -> None:
        self.shard, num_shards, self.data_epoch = place
        self.exhausted = False
        self._key = streams.key
        self._source = streams.make_stream(self.shard, num_shards)
        tell_data_epoch = getattr(self._source, "set_epoch", None)  # as PyTorch and Hugging Face call it
        if tell_data_epoch is not None:
            tell_data_epoch(self.data_epoch)
        self._keeps_state = _can_be_resumed(self._source)
        self._states: dict[int, bytes] = {}
        self.skipped = used - self._load(saved, used)
        self._iterator: Iterator[Any] = iter(self._source)
        self._first = used  # position of the first kept sample
        self._samples: list[Any] = []
        self._keys: list[int] = []
        self._skip()

    @property
    def first(self) -> int:
        """Return the position of the first sample that is kept."""
        return self._first

    @property
    def position(self) -> int:
        """Return how many samples have been read of the stream, from its beginning."""
        return self._first + len(self._samples)

    def read_to(self, position: int) -> int:
        """Read on to a position, or to the end of the stream; return how many samples there are up to there."""
        if position > self.position and not self.exhausted:
            self._remember_state()
            for _ in range(position - self.position):
                sample = next(self._iterator, _END)
                if sample is _END:
                    self.exhausted = True
                    break
                self._samples.append(sample)
                self._keys.append(self._key(sample))
        return min(position, self.position)

    def samples(self, start: int, stop: int) -> list[Any]:
        """Return the samples at the positions ``[start, stop)``, which must have been read and not forgotten."""
        return self._samples[start - self._first : stop - self._first]

    def keys(self, start: int, stop: int) -> list[int]:
        """Return the numbers of the samples at the positions ``[start, stop)``."""
        return self._keys[start - self._first : stop - self._first]

    def saved(self, used: int) -> SavedStream | None:
        """Return the newest state at or before a position, None where there is none."""
        position = max((position for position in self._states if position <= used), default=None)
        return None if position is None else SavedStream(self.data_epoch, position, self._states[position])

    def forget(self, before: int) -> None:
        """Drop the samples and states before a position: they are committed (perhaps by others, unread here)."""
        self.read_to(before)
        del self._samples[: before - self._first]
        del self._keys[: before - self._first]
        self._first = max(self._first, before)
        newest = max((position for position in self._states if position <= before), default=0)
        self._states = {position: state for position, state in self._states.items() if position >= newest}

    def close(self) -> None:
        """Let go of the stream; what it has started (reader processes, files) ends with it."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
        del self._iterator, self._source

    def _load(self, saved: SavedStream | None, used: int) -> int:
        """Load a state if it is of use; return its position."""
        if saved is None or saved.data_epoch != self.data_epoch or saved.used > used or not self._keeps_state:
            return 0
        self._source.load_state_dict(unpack_state(saved.state))  # type: ignore[attr-defined]  # it was asked for above
        self._states[saved.used] = saved.state
        return saved.used

    def _skip(self) -> None:
        for skipped in range(self.skipped):
            if next(self._iterator, _END) is _END:
                there = self._first - self.skipped + skipped
                raise UsageError(
                    f"the stream of shard {self.shard} has {there} samples in data epoch {self.data_epoch}, but "
                    f"{self._first} of it were used already: make_stream(shard, num_shards) must give the same samples "
                    "in the same order each time"
                )

    def _remember_state(self) -> None:
        if not self._keeps_state or self.position in self._states:
            return
        try:
            state = self._source.state_dict()  # type: ignore[attr-defined]  # it was asked for before
            self._states[self.position] = pack_state(state)
        except TypeError as error:
            self._keeps_state = False
            _log.warning("the stream of shard %d is resumed by counting and skipping: %s", self.shard, error)


class _End:
    """Marks the end of a stream; None may be a sample."""


_END = _End()


def _can_be_resumed(source: Any) -> bool:
    """Say whether a stream's own state brings back exactly the place where it was taken."""
    if not (hasattr(source, "state_dict") and hasattr(source, "load_state_dict")):
        return False
    operations = [getattr(source, "_ex_iterable", None)]  # Hugging Face's tree of them
    while operations:
        operation = operations.pop()
        if "BufferShuffled" in type(operation).__name__:  # its state leaves out the buffer: those samples would be lost
            return False
        if operation is not None:
            operations += [getattr(operation, "ex_iterable", None), *getattr(operation, "ex_iterables", ())]
    return True


def ids_of(keys: list[int]) -> Indices:
    """Return samples' numbers as an array, to be checksummed as indices are."""
    return np.array(keys, dtype=np.int64)
