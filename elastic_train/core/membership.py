"""The membership protocol's decisions: events in, effects out; no I/O, no clock, no randomness.

`TABLE` says what each event does in each phase and where it may lead; a pair that is not in it cannot happen and
raises. After the event's own rule, the phase's rule draws what follows from the state and the time. See
docs/membership-protocol.md. The shape is that of h11's tables and etcd-io/raft's sans-IO core.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elastic_train.core.bounds import Bounds
from elastic_train.core.draft import Draft
from elastic_train.core.effects import (
    AnswerRequest,
    Effect,
    FinishJob,
    KillWorker,
    LaunchWorkers,
    NoteMembershipEpoch,
    RememberJob,
)
from elastic_train.core.ending import end_if_done, follow_stop
from elastic_train.core.events import Event
from elastic_train.core.forming import follow_break, follow_switch, gather, press
from elastic_train.core.losing import judge
from elastic_train.core.staffing import may_launch, plan, scan, shortage, staff
from elastic_train.core.table import TABLE, WAITING
from elastic_train.core.world import JobState, Phase

__all__ = ["TABLE", "ImpossibleEvent", "Transition", "step", "wake_at"]


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event led to."""

    state: JobState
    effects: tuple[Effect, ...]
    reason: str  # for a person


class ImpossibleEvent(AssertionError):
    """An event that cannot happen in this phase: the caller, or this table, is wrong."""

    def __init__(self, phase: Phase, event: Event) -> None:
        super().__init__(f"{type(event).__name__} cannot happen in phase {phase}: {event}")
        self.phase = phase
        self.event = event


def step(state: JobState, event: Event, bounds: Bounds) -> Transition:
    """Return what follows from an event.

    Raises:
        ImpossibleEvent: The table has no row for it.
    """
    row = TABLE.get((state.phase, type(event)))
    if row is None:
        raise ImpossibleEvent(state.phase, event)
    d = Draft(state, event.at_s, bounds)
    row.handler(d, event)
    _settle(d)
    if d.state.remembered != state.remembered:
        d.do(RememberJob(d.state.remembered))
    d.effects.sort(key=_urgency)
    return Transition(d.state, tuple(d.effects), "; ".join(d.reasons))


def wake_at(state: JobState, bounds: Bounds) -> float | None:
    """Return when the next Tick is due; None: nothing will follow from time alone."""
    if state.phase.is_terminal:
        return None
    times = [state.due_s, state.scan_s, None if state.probe is None else state.probe.deadline_s]
    if state.launch_s > state.now_s and shortage(state) > 0 and may_launch(state) and bounds.capacity != 0:
        times.append(state.launch_s)
    if bounds.pause_timeout_s is not None and state.phase in WAITING and state.short_s is not None:
        times.append(state.short_s + bounds.pause_timeout_s)
    if state.stop_s is not None:
        times.append(state.stop_s + bounds.stop_timeout_s)
    return min((time for time in times if time is not None), default=None)


def _settle(d: Draft) -> None:
    """Draw what follows from the state and the time, until nothing more does."""
    if d.state.scan_s is not None and d.now_s >= d.state.scan_s:
        scan(d)
    if d.state.probe is not None and d.now_s >= d.state.probe.deadline_s:
        judge(d)
    for _ in Phase:
        phase = d.state.phase
        if not phase.is_terminal:
            end_if_done(d)
        if d.state.phase.is_terminal:
            return
        staff(d)
        _RULES[d.state.phase](d)
        if d.state.phase is phase:
            return
    raise AssertionError(f"phases chase each other: {d.reasons}")


def _urgency(effect: Effect) -> int:
    """Sort effects: end what blocks others, then tell the workers, then everybody else, then launch."""
    return _ORDER.get(type(effect), 1)


_ORDER: Mapping[type[Effect], int] = {
    KillWorker: 0,
    AnswerRequest: 2,
    NoteMembershipEpoch: 3,
    RememberJob: 4,  # before launching: a name must never be used twice
    LaunchWorkers: 5,
    FinishJob: 6,
}

_RULES: Mapping[Phase, Callable[[Draft], None]] = {
    Phase.GATHERING: gather,
    Phase.FORMING: press,
    Phase.RUNNING: plan,
    Phase.SWITCHING: follow_switch,
    Phase.BROKEN: follow_break,
    Phase.PAUSED: gather,
    Phase.STOPPING: follow_stop,
}
