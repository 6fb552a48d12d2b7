"""Scenario files: plain text, one input a line, what it led to indented below it.

    bounds min=2 max=4 wanted=3      the job; further names are fields of Bounds
    running                          all wanted workers are launched, start and form a world (not shown)
    +0.010 lost w0002 exited -9      10 ms later, an event; see _INPUTS for the others
        running -> broken            what it led to, recorded
        ...
    wake                             go to the moment the core asked to be woken at

`RECORD_SCENARIOS=1 pytest tests/unit/core/test_scenarios.py` writes the indented lines anew; read the diff.
The form is that of etcd-io/raft's interaction tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import (
    AnswerRequest,
    Effect,
    EndWorld,
    FinishJob,
    KillWorker,
    LaunchWorkers,
    NoteMembershipEpoch,
    ProbeWorld,
    ProposeWorld,
    RememberJob,
    SealWorld,
)
from elastic_train.core.events import (
    DrainRequested,
    Event,
    LaunchFailed,
    Loss,
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
from elastic_train.core.membership import step, wake_at
from elastic_train.core.records import Activity, Failure, Suspicion, WorkerId
from elastic_train.core.world import JobState, Life, Phase

_INDENT = "    "


class Scenario:
    """Plays one scenario."""

    def __init__(self) -> None:
        self.bounds = Bounds(1, 1, 1)
        self.state = JobState.initial(self.bounds, 0.0)
        self.now_s = 0.0
        self.fence = 100

    def play(self, text: str) -> str:
        """Return the text with what its inputs lead to now."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(_INDENT):
                continue
            lines.append(line)
            if line and not line.startswith("#"):
                lines += [_INDENT + shown for shown in self._input(line.split())]
        return "\n".join(lines) + "\n"

    def _input(self, words: list[str]) -> Iterator[str]:
        if words[0].startswith("+"):
            self.now_s += float(words.pop(0))
        verb, *arguments = words
        if verb == "bounds":
            self._bounds(dict(word.split("=") for word in arguments))
        elif verb == "running":
            for _ in self._form():
                pass
            assert self.state.phase is Phase.RUNNING, self.state.phase
        elif verb == "form":
            yield from self._form()
        elif verb == "wake":
            yield from self._wake()
        else:
            for event in _INPUTS[verb](self, *arguments):
                yield from self._feed(event)

    def _bounds(self, given: dict[str, str]) -> None:
        sizes = [int(given.pop(name)) for name in ("min", "max", "wanted")]
        limits: dict[str, Any] = {name: float(value) if "." in value else int(value) for name, value in given.items()}
        self.bounds = Bounds(*sizes, **limits)
        self.state = JobState.initial(self.bounds, 0.0)

    def _form(self) -> Iterator[str]:
        """Let all workers start and all members acknowledge, until the world runs with what is wanted."""
        yield from self._feed(Tick(at_s=self.now_s))
        while True:
            coming = [w for w in self.state.workers.values() if w.life in (Life.LAUNCHED, Life.STARTING)]
            if coming:
                for event in _start(self, *(worker.worker_id for worker in coming)):
                    yield from self._feed(event)
            elif self.state.proposal is not None:
                for event in _acknowledge(self):
                    yield from self._feed(event)
            else:
                return

    def _wake(self) -> Iterator[str]:
        at_s = wake_at(self.state, self.bounds)
        if at_s is None:
            yield "(nothing will follow from time alone)"
            return
        self.now_s = max(self.now_s, at_s)
        yield f"(at {self.now_s:.3f})"
        yield from self._feed(Tick(at_s=self.now_s))

    def _feed(self, event: Event) -> Iterator[str]:
        before = self.state
        transition = step(before, event, self.bounds)
        self.state = transition.state
        if self.state.phase is not before.phase:
            yield f"{before.phase} -> {self.state.phase}"
        if transition.reason:
            yield f"# {transition.reason}"
        for effect in transition.effects:
            yield _shown(effect)
        for effect in transition.effects:
            if isinstance(effect, SealWorld):
                self.fence += 1
                epoch = effect.record.membership_epoch
                yield from self._feed(WorldPublished(at_s=self.now_s, membership_epoch=epoch, fence=self.fence))


# ---------------------------------------------------------------------- inputs


def _each(make: Callable[..., Event]) -> Callable[..., Iterator[Event]]:
    """Return an input that makes one event for each worker named."""

    def events(scenario: Scenario, *worker_ids: str) -> Iterator[Event]:
        for worker_id in worker_ids:
            yield make(at_s=scenario.now_s, worker_id=WorkerId(worker_id))

    return events


def _start(scenario: Scenario, *worker_ids: str) -> Iterator[Event]:
    for worker_id in worker_ids:
        yield WorkerAppeared(at_s=scenario.now_s, worker_id=WorkerId(worker_id))
        yield WorkerReady(at_s=scenario.now_s, worker_id=WorkerId(worker_id))


def _acknowledge(scenario: Scenario, *worker_ids: str) -> Iterator[Event]:
    """Acknowledge the open proposal: those named, or all who have not."""
    proposal = scenario.state.proposal
    assert proposal is not None, "no proposal is open"
    epoch = proposal.record.membership_epoch
    for worker_id in worker_ids or tuple(member for member in proposal.members if member in proposal.missing):
        yield WorkerAcknowledged(at_s=scenario.now_s, worker_id=WorkerId(worker_id), membership_epoch=epoch, version=10)


def _acknowledge_late(scenario: Scenario, epoch: str, worker_id: str) -> Iterator[Event]:
    yield WorkerAcknowledged(at_s=scenario.now_s, worker_id=WorkerId(worker_id), membership_epoch=int(epoch))


def _lost(scenario: Scenario, worker_id: str, why: str, code: str | None = None) -> Iterator[Event]:
    yield WorkerLost(
        at_s=scenario.now_s,
        worker_id=WorkerId(worker_id),
        why=Loss(why),
        exit_code=None if code is None else int(code),
    )


def _suspect(scenario: Scenario, worker_id: str, *, broken: bool) -> Iterator[Event]:
    assert scenario.state.world is not None
    epoch = scenario.state.world.membership_epoch
    suspicion = Suspicion(WorkerId(worker_id), epoch, broken, 2.0, 10, "connection reset" if broken else "")
    yield WorldSuspected(at_s=scenario.now_s, suspicion=suspicion)


def _answer(scenario: Scenario, worker_id: str, activity: str, seconds: str) -> Iterator[Event]:
    yield WorkerAnsweredProbe(
        at_s=scenario.now_s,
        worker_id=WorkerId(worker_id),
        probe=scenario.state.probes,
        activity=Activity(activity),
        activity_s=float(seconds),
    )


def _failed(scenario: Scenario, worker_id: str, *message: str) -> Iterator[Event]:
    epoch = 0 if scenario.state.world is None else scenario.state.world.membership_epoch
    failure = Failure("ValueError", " ".join(message), "", membership_epoch=epoch)
    yield WorkerFailed(at_s=scenario.now_s, worker_id=WorkerId(worker_id), failure=failure)


def _drain(scenario: Scenario, worker_id: str, deadline: str | None = None) -> Iterator[Event]:
    at_s = None if deadline is None else scenario.now_s + float(deadline)
    yield DrainRequested(
        at_s=scenario.now_s, worker_ids=(WorkerId(worker_id),), deadline_at_s=at_s, reason="notice", request_id="d1"
    )


def _launch_failed(scenario: Scenario, worker_id: str, *detail: str) -> Iterator[Event]:
    yield LaunchFailed(at_s=scenario.now_s, worker_id=WorkerId(worker_id), detail=" ".join(detail))


_INPUTS: dict[str, Callable[..., Iterator[Event]]] = {
    "appear": _each(WorkerAppeared),
    "ready": _each(WorkerReady),
    "start": _start,
    "ack": _acknowledge,
    "late-ack": _acknowledge_late,
    "left": _each(WorkerLeft),
    "finished": _each(WorkerFinished),
    "failed": _failed,
    "lost": _lost,
    "launch-failed": _launch_failed,
    "broken": lambda scenario, worker_id: _suspect(scenario, worker_id, broken=True),
    "stuck": lambda scenario, worker_id: _suspect(scenario, worker_id, broken=False),
    "answer": _answer,
    "resize": lambda scenario, n: iter([ResizeRequested(at_s=scenario.now_s, workers=int(n), request_id="r1")]),
    "drain": _drain,
    "stop": lambda scenario: iter([StopRequested(at_s=scenario.now_s, reason="enough", request_id="s1")]),
    "tick": lambda scenario: iter([Tick(at_s=scenario.now_s)]),
}


# ---------------------------------------------------------------------- effects


def _shown(effect: Effect) -> str:  # noqa: PLR0911 - one line for each effect
    match effect:
        case ProposeWorld(record) | SealWorld(record):
            kind = "propose" if isinstance(effect, ProposeWorld) else "seal"
            how = "planned" if record.planned else "unplanned"
            members = " ".join(record.members) or "nobody"
            return f"{kind} {record.membership_epoch} {how} ({record.cause}): {members}"
        case EndWorld(record):
            return f"end {record.membership_epoch}: {record.outcome}"
        case ProbeWorld(record):
            return f"probe {record.number} of membership epoch {record.membership_epoch}"
        case RememberJob(record):
            return f"remember wanted={record.wanted} launched={record.launched} failures={record.failures}"
        case LaunchWorkers(worker_ids):
            return f"launch {' '.join(worker_ids)}"
        case KillWorker(worker_id):
            return f"kill {worker_id}"
        case AnswerRequest(answer):
            return f"answer {answer.request_id} {'yes' if answer.accepted else 'no'}: {answer.message}"
        case NoteMembershipEpoch(change):
            joined, left = (" ".join(who) or "nobody" for who in (change.joined, change.left))
            return (
                f"note {change.membership_epoch} of {change.world_size}, fence {change.fence}, {change.cause}, "
                f"took {change.took_s:.3f} s, joined: {joined}, left: {left}"
            )
        case FinishJob(ending, reason, failure):
            raised = "" if failure is None else f" ({failure.error_type})"
            return f"finish {ending}{raised}: {reason}"
    raise AssertionError(f"no line for {effect}")
