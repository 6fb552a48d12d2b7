"""Known bugs of a membership protocol, each in one overridden method: the checks must notice every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from elastic_train.controller.performer import Performer, Surroundings
from elastic_train.core.bounds import Backoff
from elastic_train.core.events import Event, Tick, WorkerAcknowledged, WorkerLost, WorldSuspected
from elastic_train.core.membership import Transition
from elastic_train.core.records import Suspicion
from elastic_train.core.world import JobState, Phase
from elastic_train.ports import Guard, Put
from elastic_train.testing.simulation.controller import SimulatedController, SimulatedLeadership
from elastic_train.testing.simulation.job import Setting
from elastic_train.testing.simulation.scenario import faults_of
from elastic_train.testing.simulation.training import Hello, Training
from elastic_train.testing.simulation.worker import SimulatedWorker
from elastic_train.testing.simulation.world import Durable

# ---------------------------------------------------------------------- controllers


class SealsOnTheFirstAcknowledgement(SimulatedController):
    """Does not wait for all members."""

    def decide(self, state: JobState, event: Event) -> Transition:
        if isinstance(event, WorkerAcknowledged) and state.proposal is not None:
            state = replace(state, proposal=replace(state.proposal, missing=frozenset({event.worker_id})))
        return super().decide(state, event)


class GuardsNothing(SimulatedController):
    """Writes the world whether or not it still leads."""

    def make_performer(self, around: Surroundings, leadership: SimulatedLeadership, world_revision: int) -> Performer:
        return _Unguarded(around, leadership, world_revision)


class _Unguarded(Performer):
    def _world_guards(self) -> list[Guard]:
        return []


class ForgetsTheEpochAtTakeover(SimulatedController):
    """Begins to count membership epochs anew."""

    def decide(self, state: JobState, event: Event) -> Transition:
        if state.membership_epoch > 3 and isinstance(event, Tick):
            state = replace(state, membership_epoch=state.membership_epoch - 3)
        return super().decide(state, event)


class IgnoresLosses(SimulatedController):
    """Believes that whoever trains lives for ever."""

    def decide(self, state: JobState, event: Event) -> Transition:
        if isinstance(event, WorkerLost) and state.world is not None and event.worker_id in state.world.members:
            event = Tick(at_s=event.at_s)
        return super().decide(state, event)


class IgnoresSuspicions(SimulatedController):
    """Does not care for what members say of each other."""

    def decide(self, state: JobState, event: Event) -> Transition:
        return super().decide(state, Tick(at_s=event.at_s) if isinstance(event, WorldSuspected) else event)


class ReformsAgainAndAgain(SimulatedController):
    """Takes whatever it hears for a broken world, and never waits longer."""

    def decide(self, state: JobState, event: Event) -> Transition:
        first = super().decide(state, event)
        world = first.state.world
        if first.state.phase is not Phase.RUNNING or world is None:
            return first
        suspicion = Suspicion(world.members[0], world.membership_epoch, broken=True, waited_s=0.0, version=0)
        broken = WorldSuspected(at_s=event.at_s, suspicion=suspicion)
        second = super().decide(replace(first.state, breaks=Backoff()), broken)
        return Transition(second.state, (*first.effects, *second.effects), second.reason)


class NamesWorkersAfterItself(SimulatedController):
    """Does not remember which names were given before it took over."""

    def decide(self, state: JobState, event: Event) -> Transition:
        return super().decide(replace(state, launched=len(self.launcher.workers)), event)


# ---------------------------------------------------------------------- workers


class KeepsTheAbortedStep(SimulatedWorker):
    """Counts a step whose result it never got."""

    def drop_step(self) -> None:
        before = self.version
        if self.has_state:
            self.version += 1
        self.world.checker.kept_aborted(self, before)


class KeepsTheAbortedStepQuietly(SimulatedWorker):
    """Counts a step whose result it never got, and hides it from the check of a single worker."""

    def drop_step(self) -> None:
        if self.has_state and self.group is not None and self.trains_in == self.view.membership_epoch:
            self.version += 1
            self.lineage ^= 1


class TakesTheOldestState(SimulatedWorker):
    """Goes on from the least advanced member."""

    def newest_of(self, hellos: list[Hello]) -> int:
        return min(version for version, fresh in hellos if not fresh and version >= 0)


class CommitsWithoutALease(SimulatedWorker):
    """Does not fence itself."""

    @property
    def may_commit(self) -> bool:
        return True


class TransfersOldState(SimulatedWorker):
    """Sends a state that is one step behind."""

    def sent_by(self, sender: Training, newest: int) -> tuple[int, int]:
        return max(0, newest - 1), 0


class ForgetsUnsaidSuspicions(SimulatedWorker):
    """Says a suspicion once, whether or not it was written."""

    def _say(self, put: Put) -> None:
        super()._say(put)
        self._unsaid = None


class TakesEveryFence(Durable):
    """Takes checkpoints of worlds that were overtaken."""

    def commit(self, version: int, lineage: int, fence: int) -> bool:
        self.version, self.lineage, self.fence = version, lineage, fence
        return True


def with_worker(worker_class: type[SimulatedWorker]) -> Callable[[Setting], Setting]:
    """Return what puts a faulty worker into a setting."""
    return lambda setting: replace(setting, worker_class=worker_class)


def with_controller(controller_class: type[SimulatedController]) -> Callable[[Setting], Setting]:
    """Return what puts a faulty controller into a setting."""
    return lambda setting: replace(setting, controller_class=controller_class)


def by_zombies(change: Callable[[Setting], Setting]) -> Callable[[Setting], Setting]:
    """Return the same change, under faults of one kind: workers that nobody can kill are stopped for very long."""

    def spoil(setting: Setting) -> Setting:
        stops = tuple(replace(fault, kind="stop-worker", amount=0.9) for fault in faults_of(setting)[::6])
        return change(replace(setting, faults=stops, by_hand=True, workers=4, total_steps=None))

    return spoil


def with_store(durable_class: type[Durable]) -> Callable[[Setting], Setting]:
    """Return what puts a faulty checkpoint store into a setting."""
    return lambda setting: replace(setting, durable_class=durable_class)
