"""What one worker knows of the job's worlds, and what follows for it: pure, so that it can be simulated."""

from __future__ import annotations

from dataclasses import dataclass

from elastic_train.core.records import Stage, WorkerId, WorldRecord


@dataclass(frozen=True, slots=True)
class SealedWorld:
    """A world to form, and its fence."""

    record: WorldRecord
    fence: int


class WorldView:
    """The newest records of the ``world`` key, as they concern one worker. Whoever shares it between threads locks.

    Attributes:
        membership_epoch: Of the newest world in which the training thread took its place; 0: none yet.
        dismissed: Why this worker must leave; empty: it may stay.
    """

    def __init__(self, worker_id: WorkerId) -> None:
        self.membership_epoch = 0
        self.dismissed = ""
        self._worker_id = worker_id
        self._newest: WorldRecord | None = None  # any stage
        self._sealed: SealedWorld | None = None  # newest sealed one with this worker in it
        self._due = 0  # newest membership epoch for which the training thread must leave its world at once

    @property
    def interrupted(self) -> bool:
        """Whether the training thread must leave its world now (an unplanned change, or this worker is dismissed)."""
        return bool(self.dismissed) or self._due > self.membership_epoch

    @property
    def planned(self) -> WorldRecord | None:
        """Return the planned proposal that is to take this world's place at a step boundary, if there is one."""
        world = self._newest
        if (
            world is not None
            and world.planned
            and world.stage is Stage.PROPOSED
            and world.membership_epoch > self.membership_epoch
            and not self.interrupted
        ):
            return world
        return None

    def sealed_after(self, membership_epoch: int) -> SealedWorld | None:
        """Return the newest sealed world with this worker in it, unless it is not newer, or broken up already."""
        sealed = self._sealed
        if sealed is None or sealed.record.membership_epoch <= membership_epoch:
            return None
        return sealed if sealed.record.membership_epoch >= self._due else None

    def learn(self, world: WorldRecord, revision: int) -> bool:
        """Take in a record of the ``world`` key; say whether it must be acknowledged at once.

        What is known already (a snapshot after a re-list) changes nothing.
        """
        if self._newest is not None and _order(world) <= _order(self._newest):
            return False
        if world.standing is not None:  # a snapshot may show the proposal only
            standing = world.standing
            self.learn(WorldRecord(standing.membership_epoch, Stage.SEALED, standing.members), standing.fence)
        self._newest = world
        member = self._worker_id in world.members
        proposed = world.stage is Stage.PROPOSED
        took_part = self.membership_epoch > 0
        if world.stage is Stage.SEALED and member:
            self._sealed = SealedWorld(world, revision)
        if not (proposed and world.planned):
            self._due = world.membership_epoch
            if world.stage is Stage.ENDED:
                self.dismiss(world.reason or "the job ended")
            elif not member and took_part:
                self.dismiss(f"left out of membership epoch {world.membership_epoch}: {world.reason}")
        return proposed and (member if not world.planned else self._worker_id in world.joining)

    def dismiss(self, reason: str) -> None:
        """Note that this worker must leave; the first reason stands."""
        self.dismissed = self.dismissed or reason


_STAGES = (Stage.PROPOSED, Stage.SEALED, Stage.ENDED)
"""In the order in which a membership epoch goes through them."""


def _order(world: WorldRecord) -> tuple[int, int]:
    return world.membership_epoch, _STAGES.index(world.stage)
