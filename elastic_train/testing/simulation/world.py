"""What the simulated processes of one job share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from elastic_train.core.bounds import Bounds
from elastic_train.core.records import Keys, WorkerId, WorldRecord
from elastic_train.testing.simulation.group import SimulatedGroup
from elastic_train.testing.simulation.invariants import Checker
from elastic_train.testing.simulation.kernel import Kernel
from elastic_train.testing.simulation.store import SimulatedStore

if TYPE_CHECKING:
    from elastic_train.testing.simulation.controller import SimulatedController
    from elastic_train.testing.simulation.worker import SimulatedWorker

WORKER_TTL_S = 6.0
LEADER_TTL_S = 4.0
_SAVE_EVERY = 4  # steps


@dataclass
class Durable:
    """The checkpoint store: takes a checkpoint only if no newer fence has committed one."""

    version: int = 0
    lineage: int = 0
    fence: int = 0

    def commit(self, version: int, lineage: int, fence: int) -> bool:
        """Commit a checkpoint, if its fence is not overtaken; say whether it was."""
        if fence < self.fence:
            return False
        self.version, self.lineage, self.fence = version, lineage, fence
        return True


class Owner(Protocol):
    """Whoever started a worker."""

    def on_exit(self, worker_id: WorkerId, exit_code: int | None) -> None:
        """Hear that its process has ended (None: never came up)."""


@dataclass
class SimulatedWorld:
    """The parts of a simulated job; `spawn` and `on_exit` are filled in by whoever composes them."""

    kernel: Kernel
    bounds: Bounds
    store: SimulatedStore
    checker: Checker
    keys: Keys = field(default_factory=lambda: Keys("simulated"))
    total_steps: int = 1 << 30
    save_every: int = _SAVE_EVERY
    durable: Durable = field(default_factory=Durable)
    workers: dict[WorkerId, SimulatedWorker] = field(default_factory=dict)
    controllers: list[SimulatedController] = field(default_factory=list)
    leaders: list[SimulatedController] = field(default_factory=list)  # that believe to lead
    groups: dict[int, SimulatedGroup] = field(default_factory=dict)
    spawn: Callable[[WorkerId, Owner], None] = lambda *_: None
    launch_fails: int = 0  # of the next launches
    ended: bool = False

    def group(self, record: WorldRecord) -> SimulatedGroup:
        """Return the collectives of a sealed world."""
        found = self.groups.get(record.membership_epoch)
        if found is None:
            found = SimulatedGroup(self.kernel, record.members, self.checker.referee(record.membership_epoch))
            self.groups[record.membership_epoch] = found
            for old in [number for number in self.groups if number < record.membership_epoch - 50]:
                del self.groups[old]
        return found

    def alive(self) -> list[SimulatedWorker]:
        """Return the workers whose processes run or are stopped."""
        return [worker for worker in self.workers.values() if worker.process.alive]
