"""The transition table: what each event does in each phase, and where it may lead; drawn in docs/state-diagram.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from elastic_train.core.draft import Draft
from elastic_train.core.ending import fail, finish, leave, refuse, stop
from elastic_train.core.events import (
    DrainRequested,
    Event,
    LaunchFailed,
    RequestNotUnderstood,
    ResizeRequested,
    StopRequested,
    Tick,
    WorkerAcknowledged,
    WorkerAnsweredProbe,
    WorkerAppeared,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
    WorkerLost,
    WorkerReady,
    WorldPublished,
    WorldSuspected,
)
from elastic_train.core.forming import acknowledge, publish
from elastic_train.core.losing import hear, lose, miss_launch, suspect
from elastic_train.core.staffing import appear, drain, resize, welcome
from elastic_train.core.world import Phase

GATHERING, FORMING, RUNNING, SWITCHING = Phase.GATHERING, Phase.FORMING, Phase.RUNNING, Phase.SWITCHING
BROKEN, PAUSED, STOPPING = Phase.BROKEN, Phase.PAUSED, Phase.STOPPING
SUCCEEDED, FAILED, STOPPED = Phase.SUCCEEDED, Phase.FAILED, Phase.STOPPED


@dataclass(frozen=True, slots=True)
class Row:
    """What an event does in a phase, and the other phases to which it may lead.

    Every event carries the time, and may be the first that a controller sees which took over: what follows from time
    or from the records alone stands in the Tick's row.
    """

    handler: Callable[[Draft, Any], None]
    goes_to: frozenset[Phase]


Going = Mapping[Phase, tuple[Phase, ...]]


def _pass(d: Draft, event: Tick) -> None:
    """Let time pass: the phase's own rule does the rest."""


_BY_TIME: Going = {
    GATHERING: (FORMING, FAILED, STOPPED),
    FORMING: (GATHERING, PAUSED, SUCCEEDED, STOPPED, FAILED),
    RUNNING: (SWITCHING, BROKEN, FORMING, STOPPING, SUCCEEDED, STOPPED),
    SWITCHING: (BROKEN, FORMING, PAUSED, SUCCEEDED, STOPPED),
    BROKEN: (FORMING, GATHERING, PAUSED, SUCCEEDED, STOPPED, FAILED),
    PAUSED: (FORMING, FAILED),
    STOPPING: (STOPPED, BROKEN, FORMING, SUCCEEDED),
}
_BY_LOSS: Going = {
    GATHERING: (FORMING, FAILED),
    FORMING: (BROKEN, SUCCEEDED),
    RUNNING: (BROKEN, SWITCHING, SUCCEEDED),
    SWITCHING: (BROKEN, FORMING, PAUSED, SUCCEEDED, STOPPED),
    BROKEN: (SUCCEEDED,),
    PAUSED: (FORMING, SUCCEEDED),
    STOPPING: (BROKEN, STOPPED, SUCCEEDED),
}
_BY_END: Going = {**dict.fromkeys(_BY_TIME, (SUCCEEDED, FAILED)), GATHERING: (FAILED,)}

_EVENTS: Mapping[type[Event], tuple[Callable[[Draft, Any], None], Going]] = {
    Tick: (_pass, _BY_TIME),
    WorkerAppeared: (appear, {}),
    WorkerReady: (welcome, {GATHERING: (FORMING,), PAUSED: (FORMING,), RUNNING: (SWITCHING,)}),
    WorkerAcknowledged: (
        acknowledge,
        {
            FORMING: (RUNNING,),
            SWITCHING: (RUNNING, PAUSED, FORMING, STOPPED, SUCCEEDED),
        },
    ),
    WorkerAnsweredProbe: (
        hear,
        dict.fromkeys((RUNNING, SWITCHING, STOPPING), (BROKEN, FORMING, SUCCEEDED)),
    ),
    WorkerLeft: (leave, _BY_LOSS),
    WorkerFinished: (finish, {**_BY_END, PAUSED: (*_BY_END[PAUSED], FORMING)}),
    WorkerFailed: (fail, {phase: (*goes_to, FAILED) for phase, goes_to in _BY_LOSS.items()}),
    WorkerLost: (lose, _BY_LOSS),
    LaunchFailed: (miss_launch, _BY_LOSS),
    WorldSuspected: (suspect, dict.fromkeys((RUNNING, SWITCHING, STOPPING), (BROKEN,))),
    WorldPublished: (publish, {RUNNING: (SWITCHING, STOPPING)}),  # what waited for the fence
    ResizeRequested: (resize, {GATHERING: (FORMING,), PAUSED: (FORMING,), RUNNING: (SWITCHING,)}),
    DrainRequested: (drain, {GATHERING: (FORMING,), PAUSED: (FORMING,), RUNNING: (SWITCHING,)}),
    StopRequested: (stop, {GATHERING: (STOPPED,), PAUSED: (STOPPED,), RUNNING: (STOPPING,)}),
    RequestNotUnderstood: (refuse, {}),
}

LIVE = tuple(phase for phase in Phase if not phase.is_terminal)
WAITING = frozenset({GATHERING, PAUSED})
"""Phases in which there is no world for want of workers."""

IMPOSSIBLE = frozenset(
    {(phase, event) for phase in Phase if phase.is_terminal for event in _EVENTS}  # the loop has ended
    | {(GATHERING, WorldPublished)}  # from the first seal on, no phase leads back to it
)
"""Pairs without a row: they cannot happen, and raise."""

TABLE: Mapping[tuple[Phase, type[Event]], Row] = {
    (phase, event): Row(handler, frozenset(goes_to.get(phase, ())))
    for phase in LIVE
    for event, (handler, goes_to) in _EVENTS.items()
    if (phase, event) not in IMPOSSIBLE
}
