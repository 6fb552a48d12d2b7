"""Rules about losing members: exits, ended leases, broken and stuck worlds, probes."""

from __future__ import annotations

from collections.abc import Iterable

from elastic_train.core.draft import Draft
from elastic_train.core.effects import Ending, FinishJob, ProbeWorld
from elastic_train.core.events import LaunchFailed, Loss, WorkerAnsweredProbe, WorkerLost, WorldSuspected
from elastic_train.core.evolve import evolve
from elastic_train.core.records import Activity, Cause, ProbeRecord, WorkerId
from elastic_train.core.world import Life, Phase, Probe, Worker

_UNBORN = (Life.LAUNCHED, Life.STARTING)
_MEMBERS = (Life.MEMBER, Life.FINISHED)
_TRAINING = (Phase.RUNNING, Phase.SWITCHING, Phase.STOPPING)


def lose(d: Draft, event: WorkerLost) -> None:
    """Take a worker for gone."""
    worker = d.state.workers.get(event.worker_id)
    obituary = _obituary(event)
    if event.worker_id in d.state.silent:
        silent = {who: other for who, other in d.state.silent.items() if who != event.worker_id}
        d.state = evolve(d.state, silent=silent)
    if worker is None:
        if event.why is Loss.LEASE:
            d.state = evolve(d.state, gone=d.state.gone - {event.worker_id})
        d.say(f"{obituary}, and was known to be gone")
    elif worker.life is Life.LEAVING and worker.ours and event.why is Loss.LEASE:
        d.say(f"{obituary}; its process is about to exit")  # or is killed when it takes too long
    elif worker.life is Life.LEAVING:
        _remove(d, worker, event.why, obituary)
        d.say(f"{obituary}, as expected")
    elif event.exit_code == 0 and is_left_out(d, worker):
        _remove(d, worker, event.why, obituary)
        d.say(f"{event.worker_id} left")
    else:
        _remove(d, worker, event.why, obituary)
        _mourn(d, worker, Cause.LOSS, obituary)


def miss_launch(d: Draft, event: LaunchFailed) -> None:
    """Note that a worker that was asked for never came up."""
    worker = d.state.workers.get(event.worker_id)
    obituary = f"{event.worker_id} could not be started: {event.detail}"
    if worker is None:
        d.say(obituary)
        return
    d.forget(event.worker_id, record_gone=False)
    _mourn(d, worker, Cause.LOSS, obituary)


def bury(d: Draft, worker_ids: Iterable[WorkerId], cause: Cause, verdict: str) -> None:
    """Take workers for lost that the launcher has not seen exit, and end them; `verdict` follows their names.

    Those that others started are not ours to end: they may come back.
    """
    for worker_id in sorted(worker_ids):
        worker = d.state.workers[worker_id]
        obituary = f"{worker_id} {verdict}"
        d.kill(worker_id, obituary)
        if not worker.ours:
            d.state = evolve(d.state, silent={**d.state.silent, worker_id: worker})
        _mourn(d, worker, cause, obituary)


def revive(d: Draft, worker_id: WorkerId) -> None:
    """Take a worker back that was taken for lost too soon: it speaks.

    If a world that it took part in has gone on without it, it leaves as soon as it learns of that, and is lost again.
    """
    worker = d.state.silent.get(worker_id)
    if worker is None:
        return
    silent = {who: other for who, other in d.state.silent.items() if who != worker_id}
    draining = d.state.draining | {worker_id} if worker.drain is not None else d.state.draining
    d.state = evolve(d.state, silent=silent, gone=d.state.gone - {worker_id}, draining=draining)
    member = d.state.world is not None and worker_id in d.state.world.members
    d.put(worker if member or worker.life not in _MEMBERS else evolve(worker, life=Life.READY, since_s=d.now_s))
    d.say(f"{worker_id} lives after all")


def part_badly(d: Draft, worker: Worker, reason: str) -> None:
    """Take a worker for lost that is about to exit by itself."""
    d.dismiss(worker.worker_id)
    _mourn(d, worker, Cause.LOSS, reason)


def break_world(d: Draft, wait_s: float) -> None:
    """Give up the world or proposal; `wait_s` from now at the latest, another one is proposed."""
    due_s = d.now_s + wait_s
    if d.state.phase is Phase.BROKEN and d.state.due_s is not None:
        due_s = min(due_s, d.state.due_s)
    d.state = evolve(d.state, proposal=None, probe=None)
    d.enter(Phase.BROKEN, due_s)


def _mourn(d: Draft, worker: Worker, cause: Cause, obituary: str) -> None:
    """Draw the conclusions from the loss of a worker that has been forgotten already."""
    d.say(obituary)
    if worker.life in _UNBORN:
        _count_start_failure(d, worker, obituary)
        return
    _count_young_death(d, worker)
    if worker.life in _MEMBERS:
        d.state = evolve(d.state, breaks=type(d.state.breaks)())  # there was a reason: not a world that just breaks
    if d.state.phase is Phase.PAUSED:
        d.sign(cause, obituary)
    elif _is_needed(d, worker):
        d.sign(cause, obituary)
        break_world(d, d.bounds.coalescing_s(0 if d.state.world is None else len(d.state.world.members)))


def _is_needed(d: Draft, worker: Worker) -> bool:
    """Say whether the world or the proposal cannot go on without this worker."""
    member = worker.life in _MEMBERS
    proposal = d.state.proposal
    proposed = proposal is not None and worker.worker_id in proposal.members
    if d.state.phase is Phase.FORMING:
        return proposed
    return member or proposed


def is_left_out(d: Draft, worker: Worker) -> bool:
    """Say whether the open proposal asks this member to exit; its last record may arrive after the exit."""
    proposal = d.state.proposal
    return worker.life in _MEMBERS and proposal is not None and worker.worker_id not in proposal.members


def _remove(d: Draft, worker: Worker, why: Loss, reason: str) -> None:
    if why is Loss.EXITED:
        d.forget(worker.worker_id, record_gone=False)
    else:
        d.kill(worker.worker_id, reason)
        if why is Loss.LEASE:
            d.state = evolve(d.state, gone=d.state.gone - {worker.worker_id})


# ---------------------------------------------------------------------- back-off


def _count_start_failure(d: Draft, worker: Worker, obituary: str) -> None:
    failures = d.state.start_failures.again(d.now_s, worker.began_s)
    d.state = evolve(d.state, start_failures=failures)
    if not worker.ours:
        return
    delay_s = failures.delay_s(d.bounds.relaunch_delay_s, d.bounds.relaunch_delay_max_s)
    d.state = evolve(d.state, launch_s=max(d.state.launch_s, failures.last_s + delay_s))
    if failures.count >= d.bounds.max_start_failures and d.state.phase is Phase.GATHERING:
        reason = (
            f"{failures.count} times in a row workers ended before they were ready, and none ever was; the last: "
            f"{obituary}. See the log of {worker.worker_id}"
        )
        d.finish(Phase.FAILED, FinishJob(Ending.NO_START, reason))


def _count_young_death(d: Draft, worker: Worker) -> None:
    bounds = d.bounds
    if d.now_s - worker.since_s >= bounds.stable_s:
        return
    deaths = d.state.young_deaths.after_quiet(d.now_s, bounds.stable_s + bounds.relaunch_delay_max_s)
    deaths = deaths.again(d.now_s, worker.since_s)
    delay_s = deaths.delay_s(bounds.relaunch_delay_s, bounds.relaunch_delay_max_s)
    launch_s = max(d.state.launch_s, deaths.last_s + delay_s) if worker.ours else d.state.launch_s
    d.state = evolve(d.state, young_deaths=deaths, launch_s=launch_s)


# ---------------------------------------------------------------------- suspicion


def suspect(d: Draft, event: WorldSuspected) -> None:
    """Weigh a member's report that its world is broken or stuck."""
    suspicion, world = event.suspicion, d.state.world
    current = world is not None and suspicion.membership_epoch == world.membership_epoch
    if world is None or not current or d.state.phase not in _TRAINING:
        d.say(f"{suspicion.reporter} suspects membership epoch {suspicion.membership_epoch}, which is given up already")
    elif suspicion.broken:
        reason = f"a collective of {suspicion.reporter} failed: {suspicion.detail or 'no detail'}"
        quiet_s = d.bounds.stable_s + d.bounds.relaunch_delay_max_s
        breaks = d.state.breaks.after_quiet(d.now_s, quiet_s).again(d.now_s, world.sealed_at_s)
        d.state = evolve(d.state, breaks=breaks)
        d.sign(Cause.BROKEN, reason)
        d.say(f"{reason}; waiting for the loss behind it to become known")
        delay_s = breaks.delay_s(2 * d.bounds.grace_s, d.bounds.relaunch_delay_max_s)
        break_world(d, max(d.bounds.grace_s, delay_s))
    elif d.state.probe is None:
        ask(d, f"{suspicion.reporter} has waited for {suspicion.waited_s:.1f} s")
    else:
        d.say(f"{suspicion.reporter} waits too; a probe is under way")


def ask(d: Draft, why: str) -> None:
    """Ask all members for a sign of life."""
    world = d.state.world
    assert world is not None
    asked = frozenset(worker.worker_id for worker in d.survivors())
    number = d.state.probes + 1
    deadline_s = d.now_s + d.bounds.acknowledge_s(len(asked))
    d.state = evolve(d.state, probes=number, probe=Probe(number, d.now_s, deadline_s, asked, why))
    d.do(ProbeWorld(ProbeRecord(number, world.membership_epoch)))
    d.say(f"{why}: all members are asked for a sign of life")


def hear(d: Draft, event: WorkerAnsweredProbe) -> None:
    """Take a member's answer to a probe."""
    revive(d, event.worker_id)
    probe = d.state.probe
    if probe is None or probe.number != event.probe or event.worker_id not in probe.missing:
        d.say(f"{event.worker_id} answered probe {event.probe}, which is closed")
        return
    d.say(f"{event.worker_id} lives: {event.activity} for {event.activity_s:.1f} s")
    missing = probe.missing - {event.worker_id}
    answers = {**probe.answers, event.worker_id: (event.activity, event.activity_s)}
    deadline_s = min(probe.deadline_s, d.now_s + d.bounds.acknowledge_s(len(missing) + len(answers)))
    d.state = evolve(d.state, probe=evolve(probe, deadline_s=deadline_s, missing=missing, answers=answers))
    if not missing:
        judge(d)


def judge(d: Draft) -> None:
    """Decide by what was answered who is lost, if anybody."""
    probe, bounds = d.state.probe, d.bounds
    assert probe is not None
    bear_s = bounds.silent_until_s(probe.asked_at_s, len(probe.missing) + len(probe.answers), len(probe.missing))
    if d.now_s < bear_s:
        d.state = evolve(d.state, probe=evolve(probe, deadline_s=bear_s))
        d.say(f"nobody answered probe {probe.number} yet")
        return
    d.state = evolve(d.state, probe=None)
    silent = {worker.worker_id for worker in d.survivors()} & probe.missing
    patience_s = bounds.hang_timeout_s
    busy = {who: spent_s for who, (what, spent_s) in probe.answers.items() if what is Activity.COMPUTING}
    idle = {who: spent_s for who, (what, spent_s) in probe.answers.items() if what is not Activity.COMPUTING}
    hung = [who for who, spent_s in busy.items() if spent_s > patience_s]
    if silent:
        waited_s = d.now_s - probe.asked_at_s
        bury(d, silent, Cause.LOSS, f"gave no sign of life within {waited_s:.1f} s: its process is stopped or blocked")
    elif hung and idle:
        bury(d, hung, Cause.LOSS, f"computes for more than {patience_s:.0f} s while others wait: it hangs")
    elif not busy and idle and min(idle.values()) > patience_s:
        reason = f"all members wait for each other for more than {patience_s:.0f} s"
        d.say(reason)
        d.sign(Cause.BROKEN, reason)
        break_world(d, 0.0)
    else:
        d.say(f"{probe.suspicion}, but all members live and some compute: this is slow, not stuck")


def _obituary(event: WorkerLost) -> str:
    detail = f" ({event.detail})" if event.detail else ""
    if event.why is Loss.LEASE:
        return f"the lease of {event.worker_id} ended{detail}"
    if event.exit_code is None:
        return f"{event.worker_id} is gone{detail}"
    if event.exit_code < 0:
        return f"{event.worker_id} was ended by {_signal_name(-event.exit_code)}{detail}"
    return f"{event.worker_id} exited with code {event.exit_code}{detail}"


_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
    24: "SIGXCPU",
    31: "SIGSYS",
}
"""As Linux numbers them."""


def _signal_name(number: int) -> str:
    return _SIGNALS.get(number, f"signal {number}")
