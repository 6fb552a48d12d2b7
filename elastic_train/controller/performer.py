"""Carries out the core's effects: guarded writes, launches, kills, and lines in the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from elastic_train.controller.election import Leadership
from elastic_train.controller.inbox import Inbox
from elastic_train.core.effects import (
    AnswerRequest,
    Effect,
    EndWorld,
    FinishJob,
    KillWorker,
    LaunchWorkers,
    MembershipChange,
    NoteMembershipEpoch,
    ProbeWorld,
    ProposeWorld,
    RememberJob,
    SealWorld,
)
from elastic_train.core.events import LaunchFailed, WorldPublished
from elastic_train.core.records import Keys, WorldRecord
from elastic_train.errors import CoordinationUnavailable, GuardFailed, LaunchError
from elastic_train.ports import Coordination, Delete, Guard, Launcher, Put

_log = logging.getLogger(__name__)

_RETRY_S = 0.1
_ANSWER_TTL_S = 60.0


class Journal(Protocol):
    """Where the controller's history goes."""

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append one record; never raises."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a controller works with, whichever term it serves."""

    coordination: Coordination
    keys: Keys
    launcher: Launcher
    journal: Journal
    inbox: Inbox
    clock: Callable[[], float]


class Performer:
    """Performs effects during one term of leadership.

    Every write is guarded by the leader key, and a write of the world also by the one before it: a write whose answer
    was lost is looked up rather than repeated, so that a fence is one number for everybody.

    Args:
        around: What to work with.
        leadership: The term.
        world_revision: mod_revision of the world's key as found, 0 if there is none.
    """

    def __init__(self, around: Surroundings, leadership: Leadership, world_revision: int) -> None:
        self._around = around
        self._keys = around.keys
        self._leadership = leadership
        self._world_revision = world_revision
        self.history: list[MembershipChange] = []
        self.outcome: FinishJob | None = None
        self._how: dict[type[Effect], Callable[[Any], None]] = {
            ProposeWorld: self._propose,
            SealWorld: self._seal,
            EndWorld: self._end,
            ProbeWorld: self._probe,
            RememberJob: self._remember,
            LaunchWorkers: self._launch,
            KillWorker: self._kill,
            AnswerRequest: self._answer,
            NoteMembershipEpoch: self._note,
            FinishJob: self._finish,
        }

    def perform(self, effect: Effect) -> None:
        """Carry out one effect; return when it is done or on its way.

        Raises:
            GuardFailed: Somebody else leads now.
            LeaseExpired: This term is over.
            CoordinationDenied: The service refuses this controller.
        """
        self._how[type(effect)](effect)

    # ------------------------------------------------------------------ the world

    def _propose(self, effect: ProposeWorld) -> None:
        record = effect.record
        self._write_world(record, [])
        self._record(
            "world_proposed",
            membership_epoch=record.membership_epoch,
            members=record.members,
            cause=record.cause,
            reason=record.reason,
            planned=record.planned,
        )

    def _seal(self, effect: SealWorld) -> None:
        stale = []
        if effect.previous_membership_epoch:
            stale = [
                Delete(self._keys.group(effect.previous_membership_epoch), prefix=True),
                Delete(f"{self._keys.suspects}{effect.previous_membership_epoch}/", prefix=True),
            ]
        fence = self._write_world(effect.record, stale)
        published = WorldPublished(
            at_s=self._around.clock(), membership_epoch=effect.record.membership_epoch, fence=fence
        )
        self._around.inbox.put(published)

    def _end(self, effect: EndWorld) -> None:
        self._write_world(effect.record, [])

    def _write_world(self, record: WorldRecord, with_it: Sequence[Delete]) -> int:
        value = record.to_bytes()
        operations: list[Put | Delete] = [Put(self._keys.world, value), *with_it]
        while True:
            try:
                self._world_revision = self._around.coordination.commit(operations, self._world_guards())
            except (CoordinationUnavailable, GuardFailed) as error:
                written = self._look_up_world(value, error)
                if written is None:
                    continue
                self._world_revision = written
            return self._world_revision

    def _world_guards(self) -> list[Guard]:
        return [self._leadership.guard, Guard(self._keys.world, self._world_revision)]

    def _look_up_world(self, value: bytes, error: CoordinationUnavailable | GuardFailed) -> int | None:
        """Return the revision of a write whose answer was lost; None: it was not carried out."""
        while True:
            self._leadership.check()
            try:
                found = self._around.coordination.get(self._keys.world)
            except CoordinationUnavailable as again:
                _log.warning("the world was not written, trying again: %s", again)
                self._leadership.wait(_RETRY_S)
                continue
            if found is not None and found.value == value:
                return found.mod_revision
            if isinstance(error, GuardFailed):
                raise error
            return None

    # ------------------------------------------------------------------ other writes

    def _probe(self, effect: ProbeWorld) -> None:
        self._write([Put(self._keys.probe, effect.record.to_bytes())])

    def _remember(self, effect: RememberJob) -> None:
        self._write([Put(self._keys.controller, effect.record.to_bytes())])

    def _answer(self, effect: AnswerRequest) -> None:
        request_id = effect.answer.request_id
        lease_id = 0
        try:
            lease_id = self._around.coordination.grant(_ANSWER_TTL_S).lease_id
        except CoordinationUnavailable as error:
            _log.warning("the answer to request %s has no lease: %s", request_id, error)
        answer = Put(self._keys.answers + request_id, effect.answer.to_bytes(), lease_id)
        self._write([answer, Delete(self._keys.control + request_id)])

    def _write(self, operations: Sequence[Put | Delete]) -> None:
        """Write what may be written twice without harm."""
        while True:
            self._leadership.check()
            try:
                self._around.coordination.commit(operations, [self._leadership.guard])
            except CoordinationUnavailable as error:
                _log.warning("not written, trying again: %s", error)
                self._leadership.wait(_RETRY_S)
            else:
                return

    # ------------------------------------------------------------------ workers

    def _launch(self, effect: LaunchWorkers) -> None:
        for worker_id in effect.worker_ids:
            self._record("worker_launched", worker_id=worker_id)
        try:
            self._around.launcher.launch(effect.worker_ids)
        except LaunchError as error:
            now_s = self._around.clock()
            for worker_id in effect.worker_ids:
                self._around.inbox.put(LaunchFailed(at_s=now_s, worker_id=worker_id, detail=str(error)))

    def _kill(self, effect: KillWorker) -> None:
        _log.info("ending %s: %s", effect.worker_id, effect.reason)
        self._around.launcher.kill(effect.worker_id)

    # ------------------------------------------------------------------ history

    def _note(self, effect: NoteMembershipEpoch) -> None:
        change = effect.change
        self.history.append(change)
        self._record(
            "world_sealed",
            membership_epoch=change.membership_epoch,
            fence=change.fence,
            world_size=change.world_size,
            members=change.members,
            cause=change.cause,
            reason=change.reason,
            planned=change.planned,
            joined=change.joined,
            left=change.left,
            version=change.version,
            change_s=round(change.took_s, 6),
        )

    def _finish(self, effect: FinishJob) -> None:
        self.outcome = effect
        self._record("job_ended", outcome=effect.ending, reason=effect.reason)

    def _record(self, kind: str, **fields: Any) -> None:
        self._around.journal.record(kind, **fields)
