"""Draw the controller's transition table: writes docs/state-diagram.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from elastic_train.core.events import Event, LaunchFailed, Tick, WorkerFailed, WorkerLeft, WorkerLost
from elastic_train.core.table import IMPOSSIBLE, LIVE, TABLE
from elastic_train.core.world import Phase

PATH = Path(__file__).parent.parent / "docs" / "state-diagram.md"

_ABOUT = {
    Phase.GATHERING: "no world was ever sealed; waits for enough ready workers",
    Phase.FORMING: "an unplanned proposal is open: nobody trains",
    Phase.RUNNING: "the world is sealed, and trains",
    Phase.SWITCHING: "a planned proposal is open: the old world trains to its next step boundary",
    Phase.BROKEN: "the world lost members or broke; others may follow within moments",
    Phase.PAUSED: "below the minimum; survivors keep their state",
    Phase.STOPPING: "all members were asked to leave",
    Phase.SUCCEEDED: "the train function returned in every worker",
    Phase.FAILED: "user code failed too often, workers never start, or too few for too long",
    Phase.STOPPED: "somebody asked for it",
}

_LABELS = {Tick: "time", **dict.fromkeys((WorkerLeft, WorkerFailed, WorkerLost, LaunchFailed), "a worker's end")}


def diagram() -> str:
    """Return the document."""
    return "\n".join([*_head(), *_picture(), *_table()]) + "\n"


def _head() -> Iterator[str]:
    yield "# The controller's states"
    yield ""
    yield "Made of `elastic_train/core/table.py` by `python -m scripts.state_diagram`; a test keeps it true."
    yield ""
    yield "| phase | |"
    yield "|---|---|"
    yield from (f"| {phase} | {_ABOUT[phase]} |" for phase in Phase)
    yield ""


def _picture() -> Iterator[str]:
    edges: dict[tuple[Phase, Phase], list[str]] = defaultdict(list)
    for (phase, event), row in TABLE.items():
        for target in row.goes_to:
            edges[phase, target].append(_LABELS.get(event, event.__name__))
    order = list(Phase)
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {Phase.GATHERING}"
    for (source, target), causes in sorted(edges.items(), key=lambda edge: tuple(map(order.index, edge[0]))):
        yield f"    {source} --> {target}: {', '.join(dict.fromkeys(causes))}"
    yield from (f"    {phase} --> [*]" for phase in Phase if phase.is_terminal)
    yield "```"
    yield ""


def _table() -> Iterator[str]:
    """Yield what each event may lead to; every one may also lead where time does."""
    events = list(dict.fromkeys(event for _, event in TABLE))
    yield "What each event may lead to by itself (the phase itself always; `x`: cannot happen, and raises):"
    yield ""
    yield f"| event | {' | '.join(LIVE)} |"
    yield "|---" * (len(LIVE) + 1) + "|"
    for event in events:
        yield f"| {event.__name__} | {' | '.join(_cell(phase, event) for phase in LIVE)} |"


def _cell(source: Phase, event: type[Event]) -> str:
    if (source, event) in IMPOSSIBLE:
        return "x"
    return ", ".join(phase for phase in Phase if phase in TABLE[source, event].goes_to)


if __name__ == "__main__":
    PATH.write_text(diagram())
