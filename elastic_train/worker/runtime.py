"""The training thread's side: takes its place in worlds, brings its state up to date, and runs transactions.

A *transaction* is a step or an evaluation. Between two of them every member of a world has the same state and the same
`version` (the number of transactions committed). A world that breaks inside one is formed anew; the members compare
versions, the most advanced is the truth, and the transaction is run again by those who did not commit it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import msgpack

from elastic_train.context import Context
from elastic_train.core.records import Activity, JobRecord, Keys, WorkerRecord, WorkerStatus
from elastic_train.core.transfer import transfer_rounds
from elastic_train.errors import GroupBroken, StateNotRestorable, UsageError, WorkerLeaving
from elastic_train.ports import Coordination, Formation, Framework, Group, StepEngine
from elastic_train.worker.agent import Agent, SealedWorld
from elastic_train.worker.exchange import CoordinationExchange

_log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Where a worker's history goes."""

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append one record; never raises into training."""


class Checkpoints(Protocol):
    """What the runtime needs of durable storage."""

    def due(self, version: int) -> bool:
        """Say whether this worker asks for a checkpoint at the next boundary (the others follow)."""

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
    END = "end"  # its train function has returned


@dataclass(slots=True)
class Progress:
    """The part of the training state that is the runtime's own; travels and is saved with the rest."""

    version: int = 0
    positions: dict[str, int] = field(default_factory=dict)  # loop -> committed steps
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)  # where in the program -> metrics

    def advance(self, loop: str) -> None:
        """Count one more committed step of a loop; forget evaluations that nobody can come by again.

        Kept are those that stand between two loops (a worker that joins passes there) and those of this very step.
        """
        position = self.positions[loop] = self.positions.get(loop, 0) + 1
        before = sum(self.positions.values()) - position
        if self.evaluations:
            steps_at = {name: int(name.partition("/")[0]) for name in self.evaluations}
            for name, steps in steps_at.items():
                if before < steps < before + position:
                    del self.evaluations[name]

    def as_tree(self) -> dict[str, Any]:
        """Return plain values."""
        return {"version": self.version, "positions": dict(self.positions), "evaluations": dict(self.evaluations)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Progress:
        """Read what `as_tree` wrote."""
        return cls(int(tree["version"]), dict(tree["positions"]), dict(tree["evaluations"]))


@dataclass(frozen=True, slots=True)
class _Hello:
    """What every member tells the others when a world has formed."""

    version: int  # -1: no valid state
    fresh: bool  # never had the job's state
    transaction: str


class Runtime:
    """Everything between the user's loop and the ports. Used by the training thread only."""

    def __init__(  # noqa: PLR0913 - the composition root's one call
        self,
        *,
        job: JobRecord,
        agent: Agent,
        worker: WorkerRecord,
        local_rank: int,
        coordination: Coordination,
        framework: Framework,
        journal: Recorder,
        checkpoints: Checkpoints,
        formation_timeout_s: float,
    ) -> None:
        self.job = job
        self.agent = agent
        self.framework = framework
        self.journal = journal
        self.progress = Progress()
        self.where: tuple[int, tuple[int, int]] | None = None  # the open step and its samples, for error messages
        self._worker = worker
        self._local_rank = local_rank
        self._keys = Keys(job.job)
        self._coordination = coordination
        self._checkpoints = checkpoints
        self._formation_timeout_s = formation_timeout_s
        self._engine: StepEngine | None = None
        self._group: Group | None = None
        self._world: SealedWorld | None = None
        self._announced = False  # this worker has said that it is ready
        self._fresh = True  # has not yet received or restored the job's state
        self._void = False  # a transfer broke off half-way: what is in memory is nobody's state
        self._switch_agreed = False
        self._save_agreed = False
        self._align = False  # members may stand at different transactions: ask before the next one

    # ------------------------------------------------------------------ what the user's objects see

    @property
    def engine(self) -> StepEngine:
        """Return the bound engine.

        Raises:
            UsageError: No TrainState was made yet.
        """
        if self._engine is None:
            raise UsageError("make a TrainState(model=..., optimizer=...) before the first step")
        return self._engine

    def bind(self, items: Mapping[str, Any]) -> None:
        """Bind the user's training state, once per worker.

        Raises:
            UsageError: There is one already.
            StateNotRestorable: An item cannot be sent or saved.
        """
        if self._engine is not None:
            raise UsageError(
                "a train function makes one TrainState; give all models and optimizers to it: "
                "TrainState(generator=..., discriminator=..., optimizer_g=..., optimizer_d=...)"
            )
        self._engine = self.framework.bind(items)

    @property
    def rank(self) -> int:
        """Return this worker's rank in its current world; 0 before the first."""
        return self._group.rank if self._group is not None else 0

    @property
    def world_size(self) -> int:
        """Return the size of the current world; 0 before the first."""
        return self._group.world_size if self._group is not None else 0

    @property
    def membership_epoch(self) -> int:
        """Return the current membership epoch; 0 before the first."""
        return self._world.record.membership_epoch if self._world is not None else 0

    @property
    def group(self) -> Group:
        """Return the current group; only between `enter` and the end of a transaction."""
        if self._group is None:
            raise AssertionError("no transaction is open")
        return self._group

    def context(self) -> Context:
        """Return what the user may know about this worker's place."""
        return Context(
            job=self.job.job,
            worker_id=self._worker.worker_id,
            rank=self.rank,
            world_size=self.world_size,
            membership_epoch=self.membership_epoch,
            node=self._worker.node,
            local_rank=self._local_rank,
            min_workers=self.job.min_workers,
            max_workers=self.job.max_workers,
        )

    # ------------------------------------------------------------------ transactions

    def join(self) -> None:
        """Take this worker's place in its first world, once; later calls cost nothing."""
        if not self._announced:
            self._announced = True
            self.agent.ready()
            self._rejoin(Transaction.STEP)

    def enter(self, transaction: Transaction) -> bool:
        """Come to the beginning of a transaction, in a whole world with an up-to-date state.

        Returns:
            True if the members are at this transaction; False if they are at an evaluation that this worker, having
            just joined in the middle of a loop, knows nothing of: it takes part without samples, then asks again.
        """
        if self.agent.interrupted:
            self.recover(transaction)
        while self._align:
            try:
                kinds = self.group.all_gather_bytes(transaction.encode())
            except GroupBroken as error:
                self.recover(transaction, error)
                continue
            self._align = len(set(kinds)) > 1
            if self._align and transaction is Transaction.STEP:
                return False
            break
        return True

    def control(self) -> list[float]:
        """Return what this worker has to say to the others in this step's reduction: [switch, save]."""
        switch = self.agent.planned is not None
        return [float(switch), float(self._checkpoints.due(self.progress.version + 1))]

    def heard(self, control: list[float]) -> None:
        """Take in the sum of all members' control values: what is agreed happens after this step, for everyone."""
        self._switch_agreed = control[0] > 0
        self._save_agreed = control[1] > 0

    def boundary(self) -> None:
        """Do between two steps what was agreed in the one before: save, switch to another world."""
        if self._save_agreed:
            self._save_agreed = False
            self.save(wait=False)
        if self._switch_agreed:
            self._switch_agreed = False
            self._switch(Transaction.STEP)

    def recover(self, transaction: Transaction, error: BaseException | None = None) -> None:
        """Leave a broken world, take a place in the next one, and get the newest state."""
        if error is not None and not self.agent.interrupted:
            self.agent.suspect(str(error), broken=True)
        self._switch_agreed = self._save_agreed = False
        self._rejoin(transaction)

    def commit(self) -> None:
        """Count one more committed transaction.

        Raises:
            WorkerLeaving: This worker has lost the right to commit anything: the world went on without it.
        """
        if not self.agent.may_commit():
            self.agent.await_right_to_commit()
        self.progress.version += 1
        self.agent.committed(self.progress.version)

    def save(self, *, wait: bool) -> None:
        """Save a checkpoint of the committed state, together with all members."""
        if self._world is None:
            return
        tree = {"state": self.engine.export(), "progress": self.progress.as_tree()}
        self._checkpoints.save(self.progress.version, tree, self._world.fence, wait=wait)

    # ------------------------------------------------------------------ the end

    def serve_until_ended(self) -> None:
        """After the train function returned: keep the state available to the others until the job ends.

        Raises:
            WorkerLeaving: It ended (always, in the end).
        """
        self.agent.progress.now(Activity.IDLE)
        while True:
            self.agent.await_end()
            if self.agent.interrupted:
                self._rejoin(Transaction.END)
            else:
                self._switch(Transaction.END)

    def close(self) -> None:
        """Leave the world and finish saving."""
        self._leave_group()
        self._checkpoints.close()

    # ------------------------------------------------------------------ worlds

    def _switch(self, transaction: Transaction) -> None:
        """Go over to the planned world: acknowledge, and leave the old group once everybody has."""
        proposal = self.agent.await_planned()
        if proposal is None:
            self._rejoin(transaction)
            return
        if self._world is not None and not set(proposal.members) & set(self._world.record.members):
            self.save(wait=True)  # nobody carries the state over: it must outlive us all
        self.agent.progress.now(Activity.IDLE)
        if self._worker.worker_id not in proposal.members:
            self.agent.finish(WorkerStatus.LEAVING)
            self.agent.await_end()  # the others may still be reading our last bytes: stay until they have sealed
        self.agent.acknowledge(proposal.membership_epoch, self.progress.version)
        self._rejoin(transaction, keep_group=True)

    def _rejoin(self, transaction: Transaction, *, keep_group: bool = False) -> None:
        if not keep_group:
            self._leave_group()
        while True:
            self.agent.progress.now(Activity.IDLE)
            sealed = self.agent.await_world(after=self.membership_epoch)
            self._leave_group()
            self._world = sealed
            self.agent.progress.now(Activity.SWITCHING)
            try:
                self._form(sealed)
                self._synchronise(transaction)
            except GroupBroken as error:
                _log.info("membership epoch %d did not form: %s", sealed.record.membership_epoch, error)
                self._leave_group()
                if not self.agent.interrupted:
                    self.agent.suspect(str(error), broken=True)
                continue
            self.agent.progress.now(Activity.COMPUTING)
            return

    def _form(self, sealed: SealedWorld) -> None:
        started_at = time.monotonic()
        world = sealed.record
        rank = world.members.index(self._worker.worker_id)
        with CoordinationExchange(self._coordination, self._keys.group(world.membership_epoch)) as exchange:
            self.agent.block_in(_AbortFormation(exchange.abort, self.framework.abort_formation))
            formation = Formation(world, rank, self._worker.address, exchange, self._formation_timeout_s)
            self._group = self.framework.form(formation)
        self.agent.block_in(self._group)
        self.journal.record(
            "group_formed",
            membership_epoch=world.membership_epoch,
            rank=rank,
            world_size=len(world.members),
            fence=sealed.fence,
            form_s=round(time.monotonic() - started_at, 6),
        )

    def _leave_group(self) -> None:
        if self._group is None:
            return
        self.agent.block_in(None)
        if self._engine is not None:
            self._engine.attach(None)
        self._group.abort()
        self._group.close()
        self._group = None

    # ------------------------------------------------------------------ state

    def _synchronise(self, transaction: Transaction) -> None:
        """Bring every member to the most advanced state among them (or, where nobody has one, to the newest checkpoint)."""
        group = self.group
        self.engine.attach(group)
        hellos = self._greet(transaction)
        if all(hello.fresh or hello.version < 0 for hello in hellos):
            if group.rank == _founder(hellos):
                self._restore()
            hellos = self._greet(transaction)
        newest = max(hello.version for hello in hellos)
        holders = [rank for rank, hello in enumerate(hellos) if not hello.fresh and hello.version == newest]
        receivers = [rank for rank in range(len(hellos)) if rank not in holders]
        if newest < 0:
            raise WorkerLeaving("the state was lost in all members and there is no checkpoint; start afresh")
        if receivers:
            self._transfer(holders, receivers)
        self._align = any(hello.fresh for hello in hellos) or len({hello.transaction for hello in hellos}) > 1
        self._checkpoints.take_place(group.rank, group.world_size)

    def _greet(self, transaction: Transaction) -> list[_Hello]:
        version = -1 if self._void else self.progress.version
        payload = msgpack.packb([version, self._fresh, str(transaction)])
        return [_Hello(*msgpack.unpackb(hello)) for hello in self.group.all_gather_bytes(payload)]

    def _restore(self) -> None:
        """Load the newest checkpoint into this member, or keep its initial state where there is none."""
        tree = self._checkpoints.restore()
        if tree is not None:
            self.engine.load(tree["state"])
            self.progress = Progress.from_tree(tree["progress"])
            self.journal.record("checkpoint_restored", version=self.progress.version)
        elif self._void:
            return  # a torn state is no initial state
        self._fresh = self._void = False

    def _transfer(self, holders: list[int], receivers: list[int]) -> None:
        group = self.group
        payload = b""
        if group.rank == holders[0]:
            payload = msgpack.packb([self.engine.describe(), self.progress.as_tree()])
        description, progress = msgpack.unpackb(group.all_gather_bytes(payload)[holders[0]])
        for pairs in transfer_rounds(holders, receivers):
            for sender, receiver in pairs:
                if group.rank == sender:
                    self.engine.send(description, receiver)
                elif group.rank == receiver:
                    self._receive(description, progress, sender)

    def _receive(self, description: bytes, progress: Mapping[str, Any], sender: int) -> None:
        started_at = time.monotonic()
        try:
            self.engine.receive(description, sender)
        except StateNotRestorable:
            self._void = True
            raise
        except GroupBroken:
            self._void = self._fresh or self._void
            raise
        self._void = self._fresh = False
        self.progress = Progress.from_tree(progress)
        self.agent.committed(self.progress.version)
        self.journal.record(
            "state_received",
            membership_epoch=self.membership_epoch,
            peer=sender,
            version=self.progress.version,
            seconds=round(time.monotonic() - started_at, 6),
        )


@dataclass(frozen=True, slots=True)
class _AbortFormation:
    exchange: Callable[[], None]
    framework: Callable[[], None]

    def abort(self) -> None:
        self.exchange()
        self.framework()


def _founder(hellos: list[_Hello]) -> int:
    """Return the rank that restores a checkpoint or whose initial state is taken: the first whose state is whole."""
    return next((rank for rank, hello in enumerate(hellos) if hello.version >= 0), 0)
