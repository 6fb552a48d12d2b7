"""The ports: what elastic_train needs of the world, and what an adapter must promise.

Each port is a Protocol; adapters live in ``adapters/<port>/<technology>.py`` and translate whatever
their library raises into ``elastic_train.errors``. One conformance suite runs on every adapter of a port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from elastic_train.core.records import WorkerId, WorldRecord

# --------------------------------------------------------------------------- coordination


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as the service holds it."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """A condition of a write: the key's create or mod revision equals `revision` (0 = the key is absent)."""

    key: str
    revision: int
    of: str = "mod"  # "mod" | "create"


@dataclass(frozen=True, slots=True)
class Put:
    """Write one key, attached to a lease where `lease_id` is not 0."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or with ``prefix=True`` all keys that begin with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a watched prefix at one revision: the first batch, and again whenever events may have been missed."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One key written (`value` is bytes) or deleted (`value` is None)."""

    key: str
    value: bytes | None
    mod_revision: int
    create_revision: int = 0


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in revision order, none missing since the batch before."""

    changes: tuple[Change, ...]
    revision: int


class Watch(Protocol):
    """An open watch. Iterating blocks; `close` (any thread) ends the iteration."""

    def __iter__(self) -> Iterator[Snapshot | Changes]: ...

    def close(self) -> None:
        """End the watch and its iteration. From any thread; idempotent."""
        ...


class Lease(Protocol):
    """A right that runs out unless renewed.

    `expires_at` is on this process's monotonic clock, counted from *before* the renewal was sent, so it is
    never later than the service's own deadline would be.
    """

    @property
    def lease_id(self) -> int:
        """Return the service's name for this lease."""
        ...

    @property
    def ttl_s(self) -> float:
        """Return how long one renewal lasts."""
        ...

    @property
    def expires_at(self) -> float:
        """Return when it has run out for certain, on the monotonic clock."""
        ...

    def renew(self) -> None:
        """Renew once.

        Raises:
            LeaseExpired: It is gone (the service answered TTL 0, or the local deadline passed).
            CoordinationUnavailable: No answer; the lease may still live until `expires_at`.
        """

    def revoke(self) -> None:
        """Give the lease back; its keys are deleted at once. Gone already: no-op."""
        ...


class Coordination(Protocol):
    """A linearizable key-value store with leases, guarded writes and watches (etcd v3's model).

    Every method may raise CoordinationUnavailable (after `deadline_s` of trying all endpoints) or
    CoordinationDenied. Safe from many threads; an instance must not be used in a forked child.
    """

    def get(self, key: str) -> KeyValue | None:
        """Return one key, or None when it is absent."""
        ...

    def list(self, prefix: str) -> Snapshot:
        """Return all keys of a prefix at one revision."""
        ...

    def commit(self, operations: Sequence[Put | Delete], guards: Sequence[Guard] = ()) -> int:
        """Apply all operations at once if every guard holds; return the revision they made.

        A commit whose answer was lost is resolved (by re-reading) or raised as CoordinationUnavailable; it is never
        applied twice.

        Raises:
            GuardFailed: A guard did not hold; nothing was written.
        """
        ...

    def grant(self, ttl_s: float) -> Lease:
        """Grant a lease that runs out after `ttl_s` unless renewed."""
        ...

    def watch(self, prefix: str) -> Watch:
        """Watch a prefix: first a Snapshot, then Changes; a new Snapshot after compaction or a gap."""
        ...

    def close(self) -> None:
        """Close all connections and watches. Leases run out by themselves."""
        ...


# --------------------------------------------------------------------------- launcher


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The process of a worker runs."""

    worker_id: WorkerId
    pid: int
    node: str


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The process of a worker is gone. `exit_code` < 0: killed by that signal. None: never came up (see `detail`)."""

    worker_id: WorkerId
    exit_code: int | None
    detail: str = ""


LauncherSink = Callable[[WorkerStarted | WorkerExited], None]


class Launcher(Protocol):
    """Starts and ends worker processes.

    Calls return at once; what happened comes back through the sink (any thread).
    """

    def start(self, sink: LauncherSink) -> None:
        """Make ready to launch; report to `sink` from now on."""
        ...

    def launch(self, worker_ids: Sequence[WorkerId]) -> None:
        """Start a worker process for each id."""
        ...

    def kill(self, worker_id: WorkerId) -> None:
        """End a worker for good (SIGKILL; also if stopped). Unknown or dead: no-op."""

    def capacity(self) -> int | None:
        """Return how many workers this launcher can run at once, None if it does not know."""
        ...

    def close(self) -> None:
        """End every worker and every helper process; return when they are gone."""


# --------------------------------------------------------------------------- framework


class Exchange(Protocol):
    """Where the members of one world put small values for each other while they form their group."""

    def set(self, key: str, value: bytes) -> None:
        """Put a value where every member can read it."""
        ...

    def get(self, keys: Sequence[str], timeout_s: float) -> list[bytes]:
        """Wait until all keys are there.

        Raises:
            GroupBroken: The timeout passed or the formation was aborted.
        """
        ...


@dataclass(frozen=True, slots=True)
class Formation:
    """All that is needed to form the group of one world."""

    world: WorldRecord
    rank: int
    address: str  # this worker's own
    exchange: Exchange
    timeout_s: float

    @property
    def world_size(self) -> int:
        """Return the number of members."""
        return len(self.world.members)


class Group(Protocol):
    """The collectives of one membership epoch. A world of one has a group too; its collectives are trivial.

    Every method but `abort` is called by the training thread only and raises GroupBroken when a member is gone.
    """

    @property
    def rank(self) -> int:
        """Return this worker's index in the world."""
        ...

    @property
    def world_size(self) -> int:
        """Return the number of members."""
        ...

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every member's payload, by rank (any sizes)."""
        ...

    def abort(self) -> None:
        """Make every collective of this group, under way or later, fail now. From any thread; idempotent."""

    def close(self) -> None:
        """Free the group's sockets and threads. Never blocks on a broken group."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """This worker's share of one step, as the engine needs it.

    Attributes:
        seed: For this step and this worker's first logical shard; with `per_shard` for the step alone.
        samples: In this worker's share.
        per_shard: Whether every logical shard is computed by itself, and summed along `core.summation`'s tree.
        shards: Half-open run of this worker's.
        logical_shards: How many there are, all members together.
    """

    step: int
    seed: int
    samples: int
    global_samples: int
    per_shard: bool = False
    shards: tuple[int, int] = (0, 1)
    logical_shards: int = 1


class StepEngine(Protocol):
    """What a framework does with the training state inside a step and between worlds.

    Bound once to the objects of TrainState; lives as long as the worker.
    """

    @property
    def intact(self) -> bool:
        """Return whether the state here is that of a whole step: not after a transfer or rollback that broke off."""
        ...

    def attach(self, group: Group | None) -> None:
        """Use this group from now on (None: no world; nothing may be reduced)."""

    def begin(self, plan: StepPlan) -> None:
        """Open a step: zero gradients, seed the generators, remember what a rollback needs."""

    def backward(self, loss: Any, samples: int, *, last: bool) -> Any:
        """Accumulate the gradient of ``loss * samples / global_samples``; return the detached loss.

        On the last part, start reducing.
        """
        ...

    def reduce(self, control: Sequence[float]) -> list[float]:
        """Complete the reduction of gradients; return `control` summed elementwise over the world.

        The control values ride on the last gradient bucket: no collective of their own.
        """
        ...

    def commit(self) -> None:
        """Close the step: forget what a rollback needs."""

    def rollback(self) -> None:
        """Undo every trace of the open step: parameters, optimizers, buffers, gradients."""

    def evaluation(self) -> AbstractContextManager[None]:
        """Return a context without gradients, with every model in evaluation mode."""
        ...

    # ---- state

    def describe(self) -> bytes:
        """Return structure, dtypes, shapes and small values of the state (msgpack); tensors' bytes not included."""
        ...

    def send(self, description: bytes, receiver: int) -> None:
        """Send the state's tensors to the member with that rank, in the order of `description`."""

    def receive(self, description: bytes, sender: int) -> None:
        """Replace the state by the sender's, all or nothing.

        Raises:
            GroupBroken: It failed half-way; the state is marked void.
        """

    def export(self) -> dict[str, Any]:
        """Return the state as a tree of tensors and plain values for a checkpoint (no copies)."""
        ...

    def load(self, tree: Mapping[str, Any]) -> None:
        """Replace the state by a tree that `export` made.

        Raises:
            StateNotRestorable: The tree does not fit; says which keys.
        """


class Framework(Protocol):
    """A deep learning framework: group formation and the step engine."""

    @property
    def name(self) -> str:
        """Return what it is called in settings and messages."""
        ...

    @property
    def preload(self) -> tuple[str, ...]:
        """Return the modules a warm worker pool imports in advance."""
        ...

    def prepare_process(self, worker_index: int) -> None:
        """Set up a fresh worker process (threads, devices) before user code runs."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch of a list of samples, where the user gave no function for it."""
        ...

    def form(self, formation: Formation) -> Group:
        """Form the group of a world.

        Raises:
            GroupBroken: A member did not come, or `abort_formation` was called.
        """
        ...

    def is_group_error(self, error: Exception) -> bool:
        """Say whether an exception of the user's own collective means that a member of the world is gone."""
        ...

    def abort_formation(self) -> None:
        """Make a `form` under way in another thread fail now."""

    def bind(self, items: Mapping[str, Any]) -> StepEngine:
        """Bind the objects of a TrainState.

        Raises:
            StateNotRestorable: One of them has no state that could be sent or saved; says which.
        """
        ...


# --------------------------------------------------------------------------- deterministic mode


@runtime_checkable
class DeterministicEngine(StepEngine, Protocol):
    """A step engine that can keep logical shards apart: it understands plans with `per_shard`."""

    def open_part(self, shard: int, samples: int, seed: int) -> None:
        """Come to the next part of a step with `per_shard`: a piece of this shard; seed the generators.

        Args:
            shard: Which. Shards come in order, the parts of each one after the other.
            samples: In this part; 0: it counts for nothing.
            seed: For every generator that user code draws from.
        """

    def seed(self, seed: int) -> None:
        """Seed every generator that user code draws from."""

    def digests(self) -> dict[str, str]:
        """Return a short digest of every tensor of the state by its path, and of all other values together."""
        ...


@runtime_checkable
class DeterministicFramework(Framework, Protocol):
    """A framework whose results can be the same bits on every worker."""

    def make_deterministic(self, seed: int) -> None:
        """Use deterministic kernels only from now on, and seed every generator, before user code runs."""

    def arithmetic(self) -> str:
        """Return what else the bits of a result depend on, to be compared: device, threads, version."""
        ...


# --------------------------------------------------------------------------- reader processes


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read at a time, as one batch.

    Attributes:
        name: Tells it apart from all others of its loop.
        runs: Of each logical shard in it: (seed for whatever is random in reading, dataset indices).
    """

    name: tuple[int, int, int]
    runs: tuple[tuple[int, Sequence[int]], ...]


class ReadPiece(Protocol):
    """Reads a piece, in a reader process. Can be sent there, with the user's dataset in it."""

    def __call__(
        self, piece: Piece, seed: Callable[[int], None], default_collate: Callable[[Sequence[Any]], Any], /
    ) -> Any:
        """Return the piece as a batch; `seed` seeds every generator that user code is likely to use."""
        ...


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How pieces are read ahead; each as ``torch.utils.data.DataLoader`` has it.

    Attributes:
        num_workers: Reader processes; 0 reads in this one.
        pin_memory: Put batches into page-locked memory, where there is an accelerator.
        prefetch_factor: Pieces that each reader process reads ahead.
        worker_init_fn: Called with its number in each reader process.
        start_method: "forkserver", "spawn" or "fork".
    """

    num_workers: int = 0
    pin_memory: bool = False
    prefetch_factor: int = 2
    worker_init_fn: Callable[[int], None] | None = None
    start_method: str = "forkserver"


class Loader(Protocol):
    """Reads pieces ahead, in other processes; used by the training thread only."""

    def start(self) -> None:
        """Draw pieces from the feed, as many as may be under way. When none is under way: at first, or again."""
        ...

    def next(self) -> Any:
        """Return the batch of the oldest piece that is under way; draw one more.

        Raises:
            Exception: What the user's dataset or collate raised.
        """
        ...

    def close(self) -> None:
        """End the reader processes; idempotent."""


@runtime_checkable
class HasLoader(Protocol):
    """A framework that can read in other processes."""

    def open_loader(self, read: ReadPiece, feed: Iterator[Piece], settings: LoaderSettings) -> Loader:
        """Return a loader of the pieces that `feed` gives. The feed may run dry and go on later."""
        ...
