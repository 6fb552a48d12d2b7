"""A simulated training thread: takes its place in worlds, brings its state up to date, and runs steps.

Follows `elastic_train.worker.runtime` and `replica`: what blocks there, continues in a callback here. The state is two
integers: how many steps it has seen, and a fingerprint of which worlds they were committed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_train.core.records import Activity, WorkerId, WorkerStatus
from elastic_train.core.transfer import transfer_rounds
from elastic_train.testing.simulation.group import SimulatedGroup
from elastic_train.testing.simulation.invariants import StepPart
from elastic_train.testing.simulation.world import SimulatedWorld

if TYPE_CHECKING:
    from collections.abc import Callable

    from elastic_train.testing.simulation.kernel import Process
    from elastic_train.worker.progress import ProgressDeadline
    from elastic_train.worker.view import SealedWorld, WorldView

_STEP_S = 0.25
_APPLY_S = 0.03  # the optimizer's step, between the reduction and the commit

Hello = tuple[int, bool]
"""A member's version (-1: no valid state), and whether it never had the job's state."""


class Training:
    """What the training thread does; the agent around it is in the subclass."""

    process: Process
    view: WorldView
    progress: ProgressDeadline
    lease_id: int

    def __init__(self, world: SimulatedWorld, worker_id: WorkerId) -> None:
        self.world = world
        self.worker_id = worker_id
        self.version = 0
        self.lineage = 0
        self.group: SimulatedGroup | None = None
        self.trains_in = 0  # the membership epoch whose state this worker has
        self.finished = False
        self._sealed: SealedWorld | None = None
        self._fresh = True
        self._void = False
        self._receiving = False
        self._in_group = False  # blocked in a collective
        self._before = 0  # version when the world began to form

    # ------------------------------------------------------------------ provided by the agent

    @property
    def may_commit(self) -> bool:
        """Say whether this worker has the right to commit a step."""
        raise NotImplementedError

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Ask `condition` now and after every change, until it says that it has acted."""
        raise NotImplementedError

    def suspect(self, detail: str, *, broken: bool, waited_s: float = 0.0) -> None:
        """Report that this world is broken or stuck."""
        raise NotImplementedError

    def acknowledge(self, membership_epoch: int) -> None:
        """Acknowledge a proposal."""
        raise NotImplementedError

    def finish(self, status: WorkerStatus) -> None:
        """Publish how the train function ended."""
        raise NotImplementedError

    # ------------------------------------------------------------------ worlds

    @property
    def has_state(self) -> bool:
        """Say whether this worker holds the job's state, whole."""
        return not self._fresh and not self._void

    def abort(self) -> None:
        """Make the collective that the thread is in, and all later ones of its group, fail now."""
        if self.group is not None:
            self.group.leave(self.worker_id)
            if self._in_group:
                self._interrupt()

    def broken(self, group: SimulatedGroup, detail: str) -> None:
        """Take in that a collective failed."""
        if group is self.group:
            self._interrupt(detail)

    def _interrupt(self, detail: str = "") -> None:
        self._in_group = False
        if self._receiving:
            self._receiving = False
            self._void = self._void or self._fresh
        if detail and not self.view.interrupted:
            self.suspect(detail, broken=True)
        self.drop_step()
        self.rejoin()

    def drop_step(self) -> None:
        """Roll the open step back."""
        self.world.checker.kept_aborted(self, self.version)

    def rejoin(self, *, keep_group: bool = False) -> None:
        """Wait for the next world."""
        if not keep_group:
            self._leave_group()
        self.progress.now(Activity.IDLE)
        after = self.view.membership_epoch

        def come() -> bool:
            sealed = self.view.sealed_after(after)
            if sealed is None:
                return False
            self._take(sealed)
            return True

        self.wait_for(come)

    def _leave_group(self) -> None:
        if self.group is not None:
            self.group.leave(self.worker_id)
            self.group = None

    def _take(self, sealed: SealedWorld) -> None:
        self._leave_group()
        record = sealed.record
        self.view.membership_epoch = record.membership_epoch
        self.world.checker.took_place(self.worker_id, record.membership_epoch, sealed.fence)
        self._sealed = sealed
        self._before = self.version
        self.progress.now(Activity.SWITCHING)
        self.group = self.world.group(record)
        self.group.join(self.worker_id, self)
        self._call("form", None, lambda _: self._greet(self._greeted))
        if self.view.interrupted:
            self.abort()

    def _call(self, kind: str, payload: object, then: Callable[[list[object]], None]) -> None:
        assert self.group is not None
        self._in_group = True

        def returned(payloads: list[object]) -> None:
            self._in_group = False
            then(payloads)

        self.group.call(self.worker_id, kind, payload, returned)

    # ------------------------------------------------------------------ the state (as in worker/replica.py)

    def _greet(self, then: Callable[[list[Hello]], None]) -> None:
        hello = (-1 if self._void else self.version, self._fresh)
        self._call("greet", hello, then)  # type: ignore[arg-type]  # a collective carries anything

    def _greeted(self, hellos: list[Hello]) -> None:
        assert self._sealed is not None
        if all(fresh or version < 0 for version, fresh in hellos):
            founder = next((rank for rank, hello in enumerate(hellos) if hello[0] >= 0), 0)
            if self._rank == founder:
                self._restore()
            self._greet(self._compare)
        else:
            self._compare(hellos)

    @property
    def _rank(self) -> int:
        assert self._sealed is not None
        return self._sealed.record.members.index(self.worker_id)

    def _restore(self) -> None:
        durable = self.world.durable
        if durable.fence:
            self.version, self.lineage = durable.version, durable.lineage
        elif self._void:
            return
        self._fresh = self._void = False

    def newest_of(self, hellos: list[Hello]) -> int:
        """Return the version that all shall have."""
        return max(version for version, _ in hellos)

    def _compare(self, hellos: list[Hello]) -> None:
        newest = self.newest_of(hellos)
        if newest < 0:
            self.view.dismiss("the state was lost in all members and there is no checkpoint")
            self.wait_for(lambda: False)
            return
        holders = [rank for rank, (version, fresh) in enumerate(hellos) if not fresh and version == newest]
        receivers = [rank for rank in range(len(hellos)) if rank not in holders]
        if receivers:
            self._call("describe", None, lambda _: self._transfer(holders, receivers, newest))
        else:
            self._synchronised()

    def _transfer(self, holders: list[int], receivers: list[int], newest: int) -> None:
        assert self._sealed is not None
        for number, pairs in enumerate(transfer_rounds(holders, receivers), start=1):
            for sender, receiver in pairs:
                if receiver == self._rank:
                    self._receive(self._sealed.record.members[sender], number * 0.01, newest)
                    return
        self._synchronised()

    def _receive(self, sender_id: WorkerId, delay_s: float, newest: int) -> None:
        assert self.group is not None
        sender = self.world.workers[sender_id]
        self._receiving = self._in_group = True

        def ready() -> bool:
            return sender.has_state and sender.version >= newest

        def then() -> None:
            self._receiving = self._in_group = False
            self.version, self.lineage = self.sent_by(sender, newest)
            self._fresh = self._void = False
            self._synchronised()

        self.group.receive(self.worker_id, sender_id, delay_s * (0.5 + self.world.kernel.random.random()), ready, then)

    def sent_by(self, sender: Training, newest: int) -> tuple[int, int]:
        """Return the state that a sender had when it began this world."""
        del newest
        return sender.version, sender.lineage

    def _synchronised(self) -> None:
        assert self._sealed is not None
        number = self._sealed.record.membership_epoch
        self.world.checker.synchronised(self, number, self._before)  # type: ignore[arg-type]  # a SimulatedWorker is
        self.trains_in = number
        self.progress.now(Activity.COMPUTING)
        self._loop()

    # ------------------------------------------------------------------ steps

    def _loop(self) -> None:
        if self.version >= self.world.total_steps:
            self._serve()
        elif self.view.interrupted:
            self.drop_step()
            self.rejoin()
        else:
            step_s = _STEP_S * (0.5 + self.world.kernel.random.random())
            self.process.post(step_s, self._computed, self.view.membership_epoch)

    def _computed(self, membership_epoch: int) -> None:
        assert self._sealed is not None
        assert membership_epoch == self.view.membership_epoch
        if self.view.interrupted:
            self.drop_step()
            self.rejoin()
            return
        self.progress.now(Activity.WAITING)
        size = len(self._sealed.record.members)
        part = StepPart(self.version, self.lineage, self._rank, size, self.view.planned is not None)
        self._call("step", part, lambda parts: self._reduced(part, parts))

    def _reduced(self, part: StepPart, parts: list[object]) -> None:
        self.progress.now(Activity.COMPUTING)
        switch = self.agreed_to_switch(part, parts)
        self.process.post(self.world.kernel.random.random() * _APPLY_S, self._commit, part, switch)

    def agreed_to_switch(self, part: StepPart, parts: list[object]) -> bool:
        """Say whether this step is the last one of its world."""
        del part
        return any(isinstance(other, StepPart) and other.switch for other in parts)

    def _commit(self, part: StepPart, switch: bool) -> None:
        def commit() -> bool:
            if not self.may_commit:
                return False
            before = self.version
            self.version += 1
            self.lineage = hash((self.lineage, part.version, self.view.membership_epoch))
            self.world.checker.committed(self, part, before)  # type: ignore[arg-type]  # a SimulatedWorker is
            self.progress.step_took(_STEP_S)
            self._boundary(switch)
            return True

        self.wait_for(commit)

    def _boundary(self, switch: bool) -> None:
        sealed = self._sealed
        assert sealed is not None
        if self.version % self.world.save_every == 0 and self._rank == 0:
            self.process.post(self.world.kernel.random.random(), self._save, self.version, self.lineage, sealed.fence)
        if switch:
            self._switch()
        else:
            self._loop()

    def _save(self, version: int, lineage: int, fence: int) -> None:
        if self.world.durable.commit(version, lineage, fence):
            self.world.checker.saved(self.worker_id, fence)

    def _switch(self) -> None:
        """Go over to the planned world."""

        def go() -> bool:
            proposal = self.view.planned
            if proposal is None and not self.view.interrupted:
                return False
            if proposal is None:
                self.rejoin()
                return True
            self.progress.now(Activity.IDLE)
            if self.worker_id not in proposal.members:
                self.finish(WorkerStatus.LEAVING)
                self.wait_for(lambda: False)  # until it is dismissed
                return True
            self.acknowledge(proposal.membership_epoch)
            self.rejoin(keep_group=True)
            return True

        self.wait_for(go)

    def _serve(self) -> None:
        """After the last step: keep the state available until the job ends."""
        self.progress.now(Activity.IDLE)
        if not self.finished:
            self.finished = True
            self.finish(WorkerStatus.FINISHED)

        def go() -> bool:
            if self.view.interrupted:
                self.rejoin()
            elif self.view.planned is not None:
                self._switch()
            else:
                return False
            return True

        self.wait_for(go)
