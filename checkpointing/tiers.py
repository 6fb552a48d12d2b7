"""Where checkpoints go: the object store, and faster places in front of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from checkpointing.catalog import Pointer
from checkpointing.core.keep import KeepLast, RetentionPolicy
from checkpointing.core.policies import Moment, SavePolicy
from checkpointing.core.urgency import Loss, Option
from checkpointing.repository import Repository
from checkpointing.settings import Settings
from storage.store import ObjectStore

_SMOOTHING = 0.5


@dataclass(frozen=True, slots=True)
class Tier:
    """A place for checkpoints in front of the store.

    Any object store can be one: `memory://` served by other workers, `file:///dev/shm/...` (survives the worker), a
    local disk (survives the worker, not the node), a second bucket.

    Attributes:
        name: For messages.
        store: The store.
        every: When a save goes here too; None means always.
        retention: What is kept here.
        shared: Whether all writers see the same store. If not, each writer keeps a whole copy of a replicated state in
            its own; a sharded state cannot be kept there.
        survives: The greatest loss that what is stored here survives.
        pointer: Says what is committed here; None keeps it in the store.
    """

    name: str
    store: ObjectStore
    every: SavePolicy | None = None
    retention: RetentionPolicy = field(default_factory=lambda: KeepLast(1))
    shared: bool = False
    survives: Loss = Loss.WORKER
    pointer: Pointer | None = None


class Place:
    """A tier at work: its repository, and what it remembers of its saves."""

    def __init__(self, tier: Tier, job: str, settings: Settings, *, is_primary: bool = False) -> None:
        self.tier = tier
        self.is_primary = is_primary
        self.repository = Repository(tier.name, tier.store, job, tier.pointer, settings)
        self._clock = settings.clock
        self._last_step = 0
        self._last_s = settings.clock()
        self._save_cost_s = 0.0
        self._write_s = 0.0
        self._nbytes_per_s = 0.0

    def why_due(self, step: int, *, preempted: bool) -> str:
        """Return why a save of this step goes here, or ""."""
        if self.tier.every is None:
            return "every save goes here"
        return self.tier.every.due(
            Moment(
                step,
                self._clock(),
                self._last_step,
                self._last_s,
                preempted=preempted,
                save_cost_s=self._save_cost_s,
                write_s=self._write_s,
            )
        )

    def note_start(self, step: int) -> None:
        """Remember that a save was staged for this place, or that training begins with this step."""
        self._last_step, self._last_s = step, self._clock()

    def note_saved(self, nbytes: int, stall_s: float, write_s: float) -> None:
        """Remember how long a save took."""
        self._save_cost_s = _smoothed(self._save_cost_s, stall_s)
        self._write_s = _smoothed(self._write_s, write_s)
        if write_s > 0 and nbytes:
            self._nbytes_per_s = _smoothed(self._nbytes_per_s, nbytes / write_s)

    @property
    def option(self) -> Option:
        """Return what an urgent save has to know of this place."""
        return Option(self.tier.name, self.tier.survives, self._nbytes_per_s)


def _smoothed(before: float, now: float) -> float:
    return now if not before else (1 - _SMOOTHING) * before + _SMOOTHING * now
