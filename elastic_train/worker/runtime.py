"""The training thread's side: takes its place in worlds, brings its state up to date, and runs transactions.

A *transaction* is a step or an evaluation. Between two of them every member of a world has the same state and the same
`version` (the number of transactions committed). A world that breaks inside one is formed anew; the members compare
versions, the most advanced is the truth, and the transaction is run again by those who did not commit it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elastic_train.context import Context
from elastic_train.core.records import Activity, JobRecord, Keys, WorkerRecord, WorkerStatus
from elastic_train.errors import GroupBroken, UsageError
from elastic_train.ports import (
    Coordination,
    DeterministicEngine,
    DeterministicFramework,
    Formation,
    Framework,
    Group,
    StepEngine,
)
from elastic_train.worker.agent import Agent
from elastic_train.worker.comparison import Comparison
from elastic_train.worker.exchange import CoordinationExchange
from elastic_train.worker.replica import Checkpoints, Progress, Recorder, Replica, Transaction
from elastic_train.worker.view import SealedWorld

_log = logging.getLogger(__name__)


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
        self.where: tuple[int, tuple[int, int]] | None = None  # the open step and its samples, for error messages
        self.deterministic_engine: DeterministicEngine | None = None
        """The bound engine, where it can keep logical shards apart; always in a deterministic job."""
        self.comparison = Comparison(self)
        self._worker = worker
        self._local_rank = local_rank
        self._keys = Keys(job.job)
        self._coordination = coordination
        self._checkpoints = checkpoints
        self._formation_timeout_s = formation_timeout_s
        self._replica = Replica(journal, checkpoints)
        self._group: Group | None = None
        self._world: SealedWorld | None = None
        self._announced = False  # this worker has said that it is ready
        self._switch_agreed = False
        self._save_agreed = False
        self._align = False  # members of a new world may stand at different transactions: ask before the first

    # ------------------------------------------------------------------ what the user's objects see

    @property
    def engine(self) -> StepEngine:
        """Return the bound engine.

        Raises:
            UsageError: No TrainState was made yet.
        """
        if self._replica.engine is None:
            raise UsageError("make a TrainState(model=..., optimizer=...) before the first step")
        return self._replica.engine

    @property
    def progress(self) -> Progress:
        """Return what has been committed so far."""
        return self._replica.progress

    def prepare(self) -> None:
        """Make this process ready for user code.

        Raises:
            UsageError: The job is to be deterministic, and this framework's adapter cannot be.
        """
        if not self.job.deterministic:
            return
        if not isinstance(self.framework, DeterministicFramework):
            raise self._not_deterministic()
        self.framework.make_deterministic(self.job.seed)

    def bind(self, items: Mapping[str, Any]) -> None:
        """Bind the user's training state, once per worker.

        Raises:
            UsageError: There is one already.
            StateNotRestorable: An item cannot be sent or saved.
        """
        if self._replica.engine is not None:
            raise UsageError(
                "a train function makes one TrainState; give all models and optimizers to it: "
                "TrainState(generator=..., discriminator=..., optimizer_g=..., optimizer_d=...)"
            )
        engine = self.framework.bind(items)
        if isinstance(engine, DeterministicEngine):
            self.deterministic_engine = engine
        elif self.job.deterministic:
            raise self._not_deterministic()
        self._replica.engine = engine

    def _not_deterministic(self) -> UsageError:
        name = self.framework.name
        return UsageError(f"deterministic=True is not available with framework={name!r}: leave it out, or use torch")

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
            self._rejoin()

    def enter(self, transaction: Transaction) -> bool:
        """Come to the beginning of a transaction, in a whole world with an up-to-date state.

        Returns:
            True if the members are at this transaction; False if they are at an evaluation that this worker, having
            just joined in the middle of a loop, knows nothing of: it takes part without samples, then asks again.
        """
        if self.agent.interrupted:
            self.recover()
        while self._align:
            try:
                kinds = self.group.all_gather_bytes(transaction.encode())
            except GroupBroken as error:
                self.recover(error)
                continue
            self._align = len(set(kinds)) > 1
            if self._align and transaction is Transaction.STEP:
                return False
            break
        return True

    def control(self) -> list[float]:
        """Return what this worker has to say to the others in this step's reduction: [switch, save]."""
        switch = self.agent.planned is not None
        return [float(switch), float(self._checkpoints.due(self.progress.steps + 1))]

    def heard(self, control: list[float]) -> None:
        """Take in the sum of all members' control values: what is agreed happens after this step, for everyone."""
        self._switch_agreed = control[0] > 0
        self._save_agreed = control[1] > 0

    @property
    def change_agreed(self) -> bool:
        """Say whether `boundary` will save or switch, in all members alike."""
        return self._switch_agreed or self._save_agreed

    def boundary(self) -> None:
        """Do between two steps what was agreed in the one before: save, switch to another world."""
        if self._save_agreed:
            self._save_agreed = False
            self.save(wait=False)
        if self._switch_agreed:
            self._switch_agreed = False
            self._switch()

    def recover(self, error: BaseException | None = None) -> None:
        """Leave a broken world, take a place in the next one, and get the newest state."""
        if error is not None and not self.agent.interrupted:
            self.agent.suspect(str(error), broken=True)
        self._switch_agreed = self._save_agreed = False
        self._rejoin()

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
                self._rejoin()
            else:
                self._switch()

    def close(self) -> None:
        """Leave the world and finish saving."""
        self._leave_group()
        self._checkpoints.close()

    # ------------------------------------------------------------------ worlds

    def _switch(self) -> None:
        """Go over to the planned world: acknowledge, and leave the old group once everybody has."""
        proposal = self.agent.await_planned()
        if proposal is None:
            self._rejoin()
            return
        if self._world is not None and not set(proposal.members) & set(self._world.record.members):
            self.save(wait=True)  # nobody carries the state over: it must outlive us all
        self.agent.progress.now(Activity.IDLE)
        if self._worker.worker_id not in proposal.members:
            self.agent.finish(WorkerStatus.LEAVING)
            self.agent.await_dismissal()  # not sooner: the others may still be reading our last bytes
        self.agent.acknowledge(proposal.membership_epoch, self.progress.version)
        self._rejoin(keep_group=True)

    def _rejoin(self, *, keep_group: bool = False) -> None:
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
                self._replica.synchronise(self.group, self.membership_epoch)
            except GroupBroken as error:
                _log.info("membership epoch %d did not form: %s", sealed.record.membership_epoch, error)
                self._leave_group()
                if not self.agent.interrupted:
                    self.agent.suspect(str(error), broken=True)
                continue
            self._align = True
            self._checkpoints.take_place(self.group.rank, self.group.world_size)
            self.agent.committed(self.progress.version)
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
        if self._replica.engine is not None:
            self._replica.engine.attach(None)
        self._group.abort()
        self._group.close()
        self._group = None


@dataclass(frozen=True, slots=True)
class _AbortFormation:
    exchange: Callable[[], None]
    framework: Callable[[], None]

    def abort(self) -> None:
        self.exchange()
        self.framework()
