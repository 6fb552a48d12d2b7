"""The framework port: group formation, collectives and the step engine of a deep learning framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from elastic_train.core.records import WorldRecord


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
