"""This worker's replica of the job's state, and how the members of a new world bring theirs to the same point."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgpack

from elastic_train.core.transfer import transfer_rounds
from elastic_train.errors import UsageError, WorkerLeaving
from elastic_train.ports import Group, StepEngine


class Recorder(Protocol):
    """Where a worker's history goes."""

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append one record; never raises into training."""


class Checkpoints(Protocol):
    """What the runtime needs of durable storage."""

    def due(self, steps: int) -> bool:
        """Say whether this worker asks for a checkpoint after so many committed steps (the others follow)."""

    def take_place(self, rank: int, world_size: int) -> None:
        """Say which part of a save is this worker's from now on."""

    def save(self, version: int, tree: Mapping[str, Any], fence: int, *, wait: bool) -> None:
        """Stage and write in the background; with `wait`, return when it is committed."""

    def restore(self) -> Mapping[str, Any] | None:
        """Return the newest whole checkpoint's tree, or None if there is none."""

    def close(self) -> None:
        """Finish what is under way."""


class Transaction(StrEnum):
    """What a member is about to do."""

    STEP = "step"
    EVALUATION = "evaluation"


@dataclass(slots=True)
class Progress:
    """The part of the training state that is the runtime's own; travels and is saved with the rest."""

    version: int = 0
    positions: dict[str, int] = field(default_factory=dict)  # loop -> committed steps
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)  # where in the program -> metrics
    data: dict[str, dict[str, Any]] = field(default_factory=dict)  # loop -> what its reader needs beside the position

    @property
    def steps(self) -> int:
        """Return the number of steps committed in all loops."""
        return sum(self.positions.values())

    def advance(self, loop: str) -> None:
        """Count one more committed step of a loop; forget evaluations that nobody can come by again.

        Kept are those that stand between two loops (a worker that joins passes there) and those of this very step.
        """
        position = self.positions[loop] = self.positions.get(loop, 0) + 1
        before = self.steps - position
        if self.evaluations:
            steps_at = {name: int(name.partition("/")[0]) for name in self.evaluations}
            for name, steps in steps_at.items():
                if before < steps < before + position:
                    del self.evaluations[name]

    def as_tree(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "version": self.version,
            "positions": dict(self.positions),
            "evaluations": dict(self.evaluations),
            "data": dict(self.data),
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Progress:
        """Read what `as_tree` wrote."""
        data = dict(tree.get("data", {}))  # absent in checkpoints of before there was any
        return cls(int(tree["version"]), dict(tree["positions"]), dict(tree["evaluations"]), data)


@dataclass(frozen=True, slots=True)
class _Hello:
    """What every member tells the others when a world has formed."""

    version: int  # -1: no valid state
    fresh: bool  # never had the job's state


class Replica:
    """The state in this process: the user's objects behind an engine, and the runtime's own progress.

    It is *fresh* until it has once become the job's state (received, restored, or taken as the initial one).
    """

    def __init__(self, journal: Recorder, checkpoints: Checkpoints) -> None:
        self.engine: StepEngine | None = None
        self.progress = Progress()
        self._journal = journal
        self._checkpoints = checkpoints
        self._fresh = True

    def synchronise(self, group: Group, membership_epoch: int) -> None:
        """Bring every member to the most advanced state among them; where nobody has one, to the newest checkpoint.

        Raises:
            GroupBroken: A member was lost meanwhile.
            WorkerLeaving: There is no state left anywhere to go on from.
            UsageError: No TrainState was made.
            StateNotRestorable: The state does not fit this program.
        """
        engine = self._require_engine()
        engine.attach(group)
        hellos = self._greet(group)
        if all(hello.fresh or hello.version < 0 for hello in hellos):
            if group.rank == _founder(hellos):
                self._restore(engine)
            hellos = self._greet(group)
        newest = max(hello.version for hello in hellos)
        if newest < 0:
            raise WorkerLeaving("the state was lost in all members and there is no checkpoint: start afresh")
        holders = [rank for rank, hello in enumerate(hellos) if not hello.fresh and hello.version == newest]
        receivers = [rank for rank in range(len(hellos)) if rank not in holders]
        if receivers:
            self._transfer(group, membership_epoch, holders, receivers)

    def _require_engine(self) -> StepEngine:
        if self.engine is None:
            raise UsageError("make a TrainState(model=..., optimizer=...) before the first step")
        return self.engine

    def _greet(self, group: Group) -> list[_Hello]:
        version = self.progress.version if self._require_engine().intact else -1
        payload = msgpack.packb([version, self._fresh])
        return [_Hello(*msgpack.unpackb(hello)) for hello in group.all_gather_bytes(payload)]

    def _restore(self, engine: StepEngine) -> None:
        """Load the newest checkpoint, or take this member's initial state for the job's where there is none."""
        tree = self._checkpoints.restore()
        if tree is not None:
            engine.load(tree["state"])
            self.progress = Progress.from_tree(tree["progress"])
            self._journal.record("checkpoint_restored", version=self.progress.version)
        elif not engine.intact:
            return  # a torn state is no initial state
        self._fresh = False

    def _transfer(self, group: Group, membership_epoch: int, holders: list[int], receivers: list[int]) -> None:
        engine = self._require_engine()
        payload = b""
        if group.rank == holders[0]:
            payload = msgpack.packb([engine.describe(), self.progress.as_tree()])
        description, progress = msgpack.unpackb(group.all_gather_bytes(payload)[holders[0]])
        for pairs in transfer_rounds(holders, receivers):
            for sender, receiver in pairs:
                started_at = time.monotonic()
                if group.rank == sender:
                    engine.send(description, receiver)
                    self._note("state_sent", membership_epoch, receiver, started_at)
                elif group.rank == receiver:
                    engine.receive(description, sender)
                    self._fresh = False
                    self.progress = Progress.from_tree(progress)
                    self._note("state_received", membership_epoch, sender, started_at)

    def _note(self, kind: str, membership_epoch: int, peer: int, started_at: float) -> None:
        self._journal.record(
            kind,
            membership_epoch=membership_epoch,
            peer=peer,
            version=self.progress.version,
            seconds=round(time.monotonic() - started_at, 6),
        )


def _founder(hellos: list[_Hello]) -> int:
    """Return the rank that restores a checkpoint or whose initial state is taken: the first whose state is whole."""
    return next((rank for rank, hello in enumerate(hellos) if hello.version >= 0), 0)
