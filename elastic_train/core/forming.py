"""Rules about forming a world: who shall be in it, acknowledgements, the seal, and doing without."""

from __future__ import annotations

from dataclasses import replace

from elastic_train.core.draft import Draft
from elastic_train.core.effects import MembershipChange, NoteMembershipEpoch, ProposeWorld, SealWorld
from elastic_train.core.events import WorkerAcknowledged, WorldPublished
from elastic_train.core.evolve import evolve
from elastic_train.core.losing import ask, bury, revive
from elastic_train.core.records import Cause, Stage, Standing, WorkerId, WorldRecord
from elastic_train.core.world import Change, Life, Phase, Proposal, Sealing, Worker, World


def choose(d: Draft, *, planned: bool, admit: bool = True) -> tuple[WorkerId, ...]:
    """Return who shall be in the next world, most senior first: members in their order, then joiners as they appeared.

    A drained member stays while nobody takes its place and its time has not come. One member at least carries the state
    over, where that is possible; an empty roster means that all leave, and save before they do. With ``admit=False``
    nobody joins.
    """
    survivors = d.survivors()
    if d.is_finishing:
        return tuple(worker.worker_id for worker in survivors)  # no more launches, no more joiners, no more bounds
    wanted, most = d.state.wanted, d.bounds.max_workers
    staying = [worker for worker in survivors if worker.drain is None][:wanted]
    ready = (worker for worker in d.state.workers.values() if worker.life is Life.READY and worker.drain is None)
    fresh = sorted(ready, key=_appearance)[: wanted - len(staying)] if admit else []
    leaving = [worker for worker in survivors if worker.drain is not None and worker.drain.due_s > d.now_s]
    kept = leaving[: wanted - len(staying) - len(fresh)]
    if survivors and not staying and not kept and (fresh or not planned):
        kept = survivors[:1] if fresh else survivors  # carries the state over, and leaves in the next change
        fresh = fresh[: most - 1]
        if planned and not fresh:
            return ()
    stays = {worker.worker_id for worker in (*staying, *kept)}
    return tuple(worker.worker_id for worker in (*(w for w in survivors if w.worker_id in stays), *fresh))


def _appearance(worker: Worker) -> int:
    return worker.appeared


def is_enough(d: Draft, members: int) -> bool:
    """Say whether a world of this size may train; the tail of a job, once somebody finished, needs no minimum."""
    return members >= d.bounds.min_workers or (d.is_finishing and members > 0)


def propose(d: Draft, members: tuple[WorkerId, ...], cause: Cause, *, planned: bool) -> None:
    """Ask these workers to form the next world."""
    state = d.state
    ready = "1 worker is ready" if len(members) == 1 else f"{len(members)} workers are ready"
    change = state.change or Change(d.now_s, cause, (ready,))
    before = () if state.world is None else state.world.members
    record = WorldRecord(
        membership_epoch=state.membership_epoch + 1,
        stage=Stage.PROPOSED,
        members=members,
        joining=tuple(sorted(set(members).difference(before), key=members.index)) if before else members,
        planned=planned,
        cause=change.cause,
        reason=change.reason,
        standing=Standing(state.world.membership_epoch, before, state.fence) if planned and state.world else None,
    )
    d.do(ProposeWorld(record))
    size = len(members) or "nobody"
    d.say(f"membership epoch {record.membership_epoch} of {size} is proposed ({change.cause}: {change.reason})")
    proposal = Proposal(record, d.now_s, frozenset(members))
    probe = state.probe if planned else None
    d.state = evolve(state, membership_epoch=record.membership_epoch, proposal=proposal, probe=probe, change=change)
    if planned:
        d.enter(Phase.SWITCHING if cause is not Cause.STOP else Phase.STOPPING)
    else:
        d.enter(Phase.FORMING, d.now_s + d.bounds.acknowledge_s(len(members)))


def admission_s(d: Draft) -> float:
    """Return before when nobody should join, because workers keep dying young."""
    deaths, bounds = d.state.young_deaths, d.bounds
    return deaths.last_s + deaths.delay_s(bounds.relaunch_delay_s, bounds.relaunch_delay_max_s)


def reform(d: Draft) -> None:
    """Form a world of whoever is there, or pause."""
    members = choose(d, planned=False, admit=d.now_s >= admission_s(d))
    if is_enough(d, len(members)):
        propose(d, members, Cause.LOSS, planned=False)
    else:
        pause(d, f"{len(members)} of at least {d.bounds.min_workers} workers are left")


def pause(d: Draft, reason: str) -> None:
    """Wait for workers; the survivors keep their state."""
    short_s = d.now_s if d.state.short_s is None else d.state.short_s
    d.state = evolve(d.state, proposal=None, probe=None, short_s=short_s)
    d.enter(Phase.GATHERING if d.state.world is None else Phase.PAUSED)
    d.say(reason)


# ---------------------------------------------------------------------- answers


def acknowledge(d: Draft, event: WorkerAcknowledged) -> None:
    """Take a member's answer to the open proposal, or to one before it."""
    revive(d, event.worker_id)
    proposal = d.state.proposal
    if proposal is None or proposal.record.membership_epoch != event.membership_epoch:
        d.say(f"{event.worker_id} acknowledged membership epoch {event.membership_epoch}, which is overtaken")
        return
    if event.worker_id not in proposal.missing:
        d.say(f"{event.worker_id} acknowledged again")
        return
    missing = proposal.missing - {event.worker_id}
    proposal = evolve(proposal, missing=missing, version=max(proposal.version, event.version))
    d.state = evolve(d.state, proposal=proposal)
    d.say(f"{event.worker_id} acknowledged membership epoch {event.membership_epoch}")
    if d.state.phase is Phase.FORMING and d.state.due_s is not None:  # the line is not dead: the others answer soon too
        d.state = evolve(d.state, due_s=min(d.state.due_s, d.now_s + d.bounds.acknowledge_s(len(proposal.members))))
    if proposal.record.planned and event.worker_id not in proposal.record.joining:
        note_parting(d)
    if not missing:
        _complete(d, proposal)


def note_parting(d: Draft) -> None:
    """Note that a first member left the old world at a step boundary: the others are about to."""
    proposal = d.state.proposal
    if proposal is None or proposal.parted_at_s is not None:
        return
    patience_s = d.bounds.acknowledge_s(len(proposal.members))
    d.state = evolve(d.state, proposal=evolve(proposal, parted_at_s=d.now_s, patience_s=patience_s))


def _complete(d: Draft, proposal: Proposal) -> None:
    if is_enough(d, len(proposal.members)):
        _seal(d)
    else:
        _dismiss_departed(d, proposal)
        pause(d, f"{len(proposal.members)} of at least {d.bounds.min_workers} workers stay")


def _seal(d: Draft) -> None:
    state = d.state
    proposal, old = state.proposal, state.world
    assert proposal is not None
    assert state.change is not None
    record = replace(proposal.record, stage=Stage.SEALED, standing=None)
    d.do(SealWorld(record, 0 if old is None else old.membership_epoch))
    d.say(f"membership epoch {record.membership_epoch} of {len(record.members)} is sealed")
    for member in record.members:
        if d.state.workers[member].life is Life.READY:
            d.move(member, Life.MEMBER)
    departed = _dismiss_departed(d, proposal)
    growths = state.growths
    if record.planned and record.joining:
        growths = growths.after_quiet(d.now_s, d.bounds.stable_s).again(d.now_s, d.now_s)
    d.state = evolve(
        d.state,
        world=World(record, d.now_s),
        sealing=Sealing(proposal, state.change, departed, d.now_s),
        proposal=None,
        change=None,
        growths=growths,
        short_s=None,
    )
    d.enter(Phase.RUNNING)


def _dismiss_departed(d: Draft, proposal: Proposal) -> tuple[WorkerId, ...]:
    """Take those members of the old world that are not in the proposed one to be on their way out; return them all."""
    chosen = frozenset(proposal.members)
    departed = () if d.state.world is None else tuple(m for m in d.state.world.members if m not in chosen)
    for member in departed:
        worker = d.state.workers.get(member)
        if worker is not None and worker.life in (Life.MEMBER, Life.FINISHED):
            d.dismiss(member)
    return departed


def publish(d: Draft, event: WorldPublished) -> None:
    """Note that the sealed world is written, and its fence."""
    sealing = d.state.sealing
    d.state = evolve(d.state, fence=max(d.state.fence, event.fence))
    if sealing is None or sealing.proposal.record.membership_epoch != event.membership_epoch:
        d.say(f"membership epoch {event.membership_epoch} was published late")
        return
    record = sealing.proposal.record
    change = MembershipChange(
        membership_epoch=record.membership_epoch,
        fence=event.fence,
        members=record.members,
        cause=record.cause,
        reason=record.reason,
        planned=record.planned,
        joined=record.joining,
        left=sealing.departed,
        version=sealing.proposal.version,
        took_s=sealing.sealed_at_s - sealing.change.first_sign_s,
        sealed_at_s=sealing.sealed_at_s,
    )
    d.do(NoteMembershipEpoch(change))
    d.say(f"membership epoch {record.membership_epoch} is published; its fence is {event.fence}")
    d.state = evolve(d.state, sealing=None)


# ---------------------------------------------------------------------- what time decides


def press(d: Draft) -> None:
    """Leave out who does not answer in time (FORMING)."""
    proposal = d.state.proposal
    assert proposal is not None
    if d.is_due:
        waited_s = d.bounds.acknowledge_s(len(proposal.members))
        bear_s = d.bounds.silent_until_s(proposal.proposed_at_s, len(proposal.members), len(proposal.missing))
        if d.now_s < bear_s:
            d.state = evolve(d.state, due_s=bear_s)
            d.say(f"nobody acknowledged membership epoch {proposal.record.membership_epoch} within {waited_s:.1f} s")
            return
        waited_s = d.now_s - proposal.proposed_at_s
        number = proposal.record.membership_epoch
        verdict = f"did not acknowledge membership epoch {number} within {waited_s:.1f} s"
        bury(d, proposal.missing, Cause.FORMATION, verdict)
        d.enter(Phase.BROKEN, d.now_s)


def follow_switch(d: Draft) -> None:
    """Look after a planned change (SWITCHING): joiners answer at once, members leave the old world together."""
    proposal = d.state.proposal
    assert proposal is not None
    if not proposal.members:
        if not d.count(Life.MEMBER, Life.FINISHED):
            pause(d, "all members were drained")
        return
    answer_by_s = proposal.proposed_at_s + d.bounds.acknowledge_s(len(proposal.members))
    late = proposal.missing.intersection(proposal.record.joining)
    if late and d.now_s >= answer_by_s:
        number = proposal.record.membership_epoch
        bury(d, late, Cause.FORMATION, f"was ready, but did not acknowledge membership epoch {number}")
        d.enter(Phase.BROKEN, d.now_s)
        return
    due_s = answer_by_s if late else None
    if proposal.parted_at_s is not None and d.state.probe is None:
        ask_s = proposal.parted_at_s + proposal.patience_s
        if d.now_s >= ask_s:
            d.state = evolve(d.state, proposal=evolve(proposal, patience_s=2 * proposal.patience_s))
            ask(d, "some members left the old world, others have not yet")
        else:
            due_s = ask_s if due_s is None else min(due_s, ask_s)
    d.wait_until(due_s)


def follow_break(d: Draft) -> None:
    """Propose when the moment for further losses has passed (BROKEN)."""
    if d.is_due:
        reform(d)


def gather(d: Draft) -> None:
    """Form a world as soon as enough workers are there (GATHERING, PAUSED)."""
    state, bounds = d.state, d.bounds
    available = _available(d)
    if not is_enough(d, available):
        d.wait_until(None)
        return
    first = state.world is None
    not_before_s = admission_s(d)
    if state.due_s is None:
        window_s = bounds.gather_s if first else bounds.join_batch_s
        d.wait_until(max(d.now_s + window_s, not_before_s))
    coming = bounds.capacity == 0 or d.count(Life.LAUNCHED, Life.STARTING) > 0
    if d.is_due or (d.now_s >= not_before_s and (available >= state.wanted or not coming)):
        cause = Cause.START if first else Cause.RECOVER
        if state.change is not None:
            d.state = evolve(d.state, change=evolve(state.change, cause=cause))
        propose(d, choose(d, planned=False), cause, planned=False)


def _available(d: Draft) -> int:
    if d.state.world is None:  # a thousand workers start at once: count, do not list them for each
        unwanted = sum(d.state.workers[worker_id].life is Life.READY for worker_id in d.state.draining)
        return min(d.state.wanted, d.count(Life.READY) - unwanted)
    return len(choose(d, planned=False))
