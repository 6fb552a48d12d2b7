"""The judge: looks at every write, collective and commit of a simulated job. See DESIGN's invariants I1 to I3."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_train.core.data import split
from elastic_train.core.records import Stage, WorkerId, WorkerRecord, WorldRecord
from elastic_train.ports import Delete, Put

if TYPE_CHECKING:
    from elastic_train.testing.simulation.training import Training
    from elastic_train.testing.simulation.worker import SimulatedWorker
    from elastic_train.testing.simulation.world import SimulatedWorld

LOGICAL_SHARDS = 16
decode_world = functools.lru_cache(64)(WorldRecord.from_bytes)
"""Decode what every worker reads, once."""


class Violation(AssertionError):
    """An invariant does not hold.

    Attributes:
        invariant: Its name: "I1", "I2", "I3", "I7" or "I9".
        what: In words.
    """

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant
        self.what = what


@dataclass(frozen=True, slots=True)
class StepPart:
    """What one member brings to a step's reduction."""

    version: int  # committed before it
    lineage: int
    rank: int
    world_size: int
    switch: bool  # knows of a planned change


class Checker:
    """Keeps what must never change, and compares."""

    def __init__(self) -> None:
        self.sealed: list[WorldRecord] = []
        self.fences: dict[int, int] = {}  # membership epoch -> revision of the write that sealed it
        self.commits = 0
        self.last_commit_s = 0.0
        self.world: SimulatedWorld | None = None
        self._newest: WorldRecord | None = None
        self._leaders: dict[int, int] = {}  # membership epoch -> create revision of the leader key at its first write
        self._agreed: dict[int, tuple[int, int]] = {}  # membership epoch -> version and lineage it began with
        self._durable_fence = 0

    # ------------------------------------------------------------------ I3: one world, one leader, rising fences

    def wrote(self, operations: Sequence[Put | Delete]) -> None:
        """Look at what was just written to the store."""
        world = self.world
        assert world is not None
        for operation in operations:
            if isinstance(operation, Put) and operation.key == world.keys.world:
                self._wrote_world(decode_world(operation.value), world)

    def _wrote_world(self, record: WorldRecord, world: SimulatedWorld) -> None:
        number, before = record.membership_epoch, self._newest
        leader = world.store.get(world.keys.leader)
        if leader is None:
            raise Violation("I3", f"membership epoch {number} was written though nobody leads")
        writer = self._leaders.setdefault(number, leader.create_revision)
        if record.stage is not Stage.ENDED and writer != leader.create_revision:
            raise Violation("I3", f"two leaders wrote membership epoch {number}")
        if before is not None and before.stage is Stage.ENDED:
            raise Violation("I3", f"membership epoch {number} was written after the end")
        if record.stage is Stage.PROPOSED and before is not None and number <= before.membership_epoch:
            raise Violation("I3", f"membership epoch {number} is proposed after {before.membership_epoch}")
        if record.stage is Stage.SEALED:
            if before is None or (before.membership_epoch, before.members, before.stage) != (
                number,
                record.members,
                Stage.PROPOSED,
            ):
                raise Violation("I3", f"membership epoch {number} was sealed, but {before} was proposed")
            self._sealed_world(record, world)
        self._newest = record

    def _sealed_world(self, record: WorldRecord, world: SimulatedWorld) -> None:
        number, fence = record.membership_epoch, world.store.revision
        if self.fences and fence <= max(self.fences.values()):
            raise Violation("I3", f"the fence of membership epoch {number} went back to {fence}")
        if self.sealed and self.sealed[-1].membership_epoch >= number:
            raise Violation("I3", f"membership epoch {number} was sealed after {self.sealed[-1].membership_epoch}")
        for member in record.members:
            item = world.store.get(world.keys.worker(member))
            if item is not None and WorkerRecord.from_bytes(item.value).acknowledged < number:
                raise Violation("I3", f"membership epoch {number} was sealed, but {member} has not acknowledged it")
        self.fences[number] = fence
        self.sealed.append(record)

    def took_place(self, worker_id: WorkerId, membership_epoch: int, fence: int) -> None:
        """Look at a worker that begins to form a world."""
        if self.fences.get(membership_epoch) != fence:
            raise Violation(
                "I3", f"{worker_id} forms membership epoch {membership_epoch} under the wrong fence {fence}"
            )

    def saved(self, worker_id: WorkerId, fence: int) -> None:
        """Look at a checkpoint that was committed."""
        if fence < self._durable_fence:
            raise Violation("I3", f"{worker_id}, a zombie, committed a checkpoint under the overtaken fence {fence}")
        self._durable_fence = fence

    def after_each_event(self) -> None:
        """Make sure that one controller at most may act."""
        world = self.world
        assert world is not None
        if len(world.leaders) < 2:
            return
        leading = [controller.name for controller in world.leaders if controller.may_act]
        if len(leading) > 1:
            raise Violation("I3", f"{' and '.join(leading)} lead at once")

    # ------------------------------------------------------------------ I1, I2: samples and steps

    def referee(self, membership_epoch: int) -> Referee:
        """Return the judge of one world's collectives."""
        return Referee(self, membership_epoch)

    def stepped(self, membership_epoch: int, parts: Sequence[StepPart]) -> None:
        """Look at a step's reduction: one state, one step, every sample once."""
        first, size = parts[0], len(parts)
        for rank, part in enumerate(parts):
            if (part.version, part.lineage) != (first.version, first.lineage):
                raise Violation(
                    "I1", f"membership epoch {membership_epoch} reduces gradients of different steps: {parts}"
                )
            if (part.rank, part.world_size) != (rank, size):
                raise Violation("I1", f"membership epoch {membership_epoch}: a member takes the wrong share: {parts}")
        covered = [split(LOGICAL_SHARDS, part.world_size, part.rank) for part in parts]
        if [start for start, _ in covered] != [0, *(stop for _, stop in covered[:-1])]:
            raise Violation("I1", f"membership epoch {membership_epoch}: shards are lost or seen twice: {covered}")

    def committed(self, worker: SimulatedWorker, part: StepPart, before: int) -> None:
        """Look at a worker's commit of the step that it reduced as `part`, with `before` steps in its state."""
        world = self.world
        assert world is not None
        who = worker.worker_id
        if before != part.version or worker.version != part.version + 1:
            raise Violation("I2", f"{who} commits step {part.version} with {before} steps in its state")
        if worker.view.dismissed:
            raise Violation("I3", f"{who}, a zombie, commits step {part.version}: {worker.view.dismissed}")
        if not worker.process.lagged and not world.store.holds(worker.lease_id):
            raise Violation("I3", f"{who}, a zombie without a lease, commits step {part.version}")
        self.commits += 1
        self.last_commit_s = world.kernel.now_s

    def kept_aborted(self, worker: Training, before: int) -> None:
        """Look at a worker that left a step without its result."""
        if worker.version != before:
            raise Violation("I2", f"{worker.worker_id} counts the aborted step {before} as committed")

    def synchronised(self, worker: SimulatedWorker, membership_epoch: int, before: int) -> None:
        """Look at a member that has its world's state, and had `before` steps in its own."""
        world = self.world
        assert world is not None
        state = (worker.version, worker.lineage)
        if self._agreed.setdefault(membership_epoch, state) != state:
            raise Violation("I1", f"{worker.worker_id} begins membership epoch {membership_epoch} with another state")
        if worker.version < before:
            raise Violation("I2", f"{worker.worker_id} went back from {before} to {worker.version} steps")
        members = world.groups[membership_epoch].members
        for peer in (world.workers[member] for member in members):
            if peer.process.alive and peer.has_state and peer.view.membership_epoch <= membership_epoch:
                self._not_ahead(peer, worker, membership_epoch)

    def _not_ahead(self, peer: SimulatedWorker, worker: SimulatedWorker, membership_epoch: int) -> None:
        began = self._agreed[membership_epoch][0]
        ahead = peer.version if peer.trains_in != membership_epoch else began
        if ahead > began:
            raise Violation(
                "I2", f"step {ahead - 1} of {peer.worker_id} is lost: {worker.worker_id} goes on at {began}"
            )


class Referee:
    """Judges the collectives of one world."""

    def __init__(self, checker: Checker, membership_epoch: int) -> None:
        self._checker = checker
        self._membership_epoch = membership_epoch

    def completed(self, kind: str, payloads: list[Any]) -> None:
        """Look at what the members gave, by rank."""
        if kind == "step":
            self._checker.stepped(self._membership_epoch, payloads)

    def mismatched(self, kind: str, other: str) -> None:
        """Hear that two members called different collectives."""
        raise Violation("I1", f"in membership epoch {self._membership_epoch} some call {kind}, others {other}")
