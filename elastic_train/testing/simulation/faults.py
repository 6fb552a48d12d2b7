"""The nemesis: which faults there are, a random plan of them, and how one is done to a simulated job."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from elastic_train.core.records import ControlRequest
from elastic_train.ports import Put
from elastic_train.testing.simulation.controller import SimulatedController
from elastic_train.testing.simulation.kernel import Process
from elastic_train.testing.simulation.world import LEADER_TTL_S, WORKER_TTL_S

if TYPE_CHECKING:
    from elastic_train.testing.simulation.job import SimulatedJob
    from elastic_train.testing.simulation.worker import SimulatedWorker


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    `target` counts round the processes that are there; `amount` is what the kind makes of it (0 to 1).
    """

    at_s: float
    kind: str
    target: int = 0
    amount: float = 0.0


def plan_faults(seed: int, count: int, mean_interval_s: float) -> list[Fault]:
    """Draw a plan: faults come alone and in bursts, and repeat a kind that just struck."""
    chance = random.Random(seed * 2654435761 + 1)
    names, weights = zip(*((name, weight) for name, (weight, _) in KINDS.items()), strict=True)
    at_s, plan, kind = 1.0, [], names[0]
    for _ in range(count):
        at_s += chance.expovariate(1.0 / mean_interval_s) if chance.random() < 0.8 else chance.random() * 0.02
        if chance.random() < 0.85:
            kind = chance.choices(names, weights)[0]
        plan.append(Fault(round(at_s, 4), kind, chance.randrange(64), round(chance.random(), 4)))
    return plan


def inflict(job: SimulatedJob, fault: Fault) -> bool:
    """Do it; False if there is nothing that it could be done to."""
    return KINDS[fault.kind][1](job, fault)


# ---------------------------------------------------------------------- workers


def _pick(job: SimulatedJob, fault: Fault) -> SimulatedWorker | None:
    alive = job.world.alive()
    return alive[fault.target % len(alive)] if alive else None


def _kill_worker(job: SimulatedJob, fault: Fault) -> bool:
    worker = _pick(job, fault)
    if worker is not None:
        worker.kill()
    return worker is not None


def _kill_many(job: SimulatedJob, fault: Fault) -> bool:
    alive = job.world.alive()
    victims = alive[fault.target % 3 :: 2][: 1 + int(fault.amount * len(alive) * 0.6)]
    for victim in victims:
        victim.process.post(fault.amount * 0.01, victim.kill)
    return bool(victims)


def _pause(job: SimulatedJob, process: Process, duration_s: float) -> bool:
    process.stop()
    job.world.kernel.after(duration_s, process.resume)
    return True


def _stop_worker(job: SimulatedJob, fault: Fault) -> bool:
    worker = _pick(job, fault)
    # up to well beyond its lease: it comes back as a zombie
    return worker is not None and _pause(job, worker.process, fault.amount**2 * 2.5 * WORKER_TTL_S)


def _reset_connection(job: SimulatedJob, fault: Fault) -> bool:
    worker = _pick(job, fault)
    if worker is None or worker.group is None or worker.view.interrupted:
        return False
    worker.reset_connection()
    return True


def _slow_worker(job: SimulatedJob, fault: Fault) -> bool:
    worker = _pick(job, fault)
    return worker is not None and _pause(job, worker.process, fault.amount * 0.9)  # below any deadline


# ---------------------------------------------------------------------- the network and etcd


def _slow_network(job: SimulatedJob, fault: Fault) -> bool:
    store = job.world.store
    store.slow_by_s, store.slow_until_s = fault.amount * 0.6, job.world.kernel.now_s + 1.0 + fault.target % 3
    return True


def _slow_watch(job: SimulatedJob, fault: Fault) -> bool:
    subscriptions = job.world.store.subscriptions
    if not subscriptions:
        return False
    chosen = subscriptions[fault.target % len(subscriptions)]
    chosen.delay_s = fault.amount * 3.0

    def recover() -> None:
        chosen.delay_s = 0.0

    job.world.kernel.after(2.0, recover)
    return True


def _cut_watch(job: SimulatedJob, fault: Fault) -> bool:
    subscriptions = job.world.store.subscriptions
    if subscriptions:
        subscriptions[fault.target % len(subscriptions)].cut()
    return bool(subscriptions)


def _lose(fate: str, part: str) -> Callable[[SimulatedJob, Fault], bool]:
    def lose(job: SimulatedJob, fault: Fault) -> bool:
        job.losses.append((fate, job.world.keys.root + part, 1 + fault.target % 3))
        return False  # counted when a message is lost

    return lose


def _cut_off(job: SimulatedJob, fault: Fault) -> bool:
    worker = _pick(job, fault)
    if worker is not None:
        job.cut_off[worker.process] = job.world.kernel.now_s + fault.amount * 1.5 * WORKER_TTL_S
    return worker is not None


def _compact(job: SimulatedJob, _: Fault) -> bool:
    job.world.store.compact()
    return True


def _outage(job: SimulatedJob, fault: Fault) -> bool:
    until_s = job.world.kernel.now_s + fault.amount * 1.5
    job.outage_until_s = until_s
    for controller in job.controllers():
        controller.unreachable_until_s = max(controller.unreachable_until_s, until_s + controller.skew_s)
    return True


def _change_leader(job: SimulatedJob, _: Fault) -> bool:
    """Let etcd elect a new leader of its own: every lease begins anew."""
    job.world.store.prolong_all(WORKER_TTL_S)
    return True


# ---------------------------------------------------------------------- controllers and clocks


def _lead(job: SimulatedJob) -> SimulatedController | None:
    return next((controller for controller in job.controllers() if controller.state is not None), None)


def _kill_controller(job: SimulatedJob, _: Fault) -> bool:
    leader = _lead(job)
    if leader is not None:
        leader.kill()
    return leader is not None


def _stop_controller(job: SimulatedJob, fault: Fault) -> bool:
    leader = _lead(job)
    return leader is not None and _pause(job, leader, fault.amount * 2.0 * LEADER_TTL_S)


def _next_write(fate: str) -> Callable[[SimulatedJob, Fault], bool]:
    def spoil(job: SimulatedJob, _: Fault) -> bool:
        leader = _lead(job)
        if leader is not None:
            leader.next_write = fate
        return leader is not None

    return spoil


def _isolate_controller(job: SimulatedJob, fault: Fault) -> bool:
    leader = _lead(job)
    if leader is not None:
        leader.unreachable_until_s = leader.clock() + fault.amount * 2.0 * LEADER_TTL_S
    return leader is not None


def _jump_clock(job: SimulatedJob, fault: Fault) -> bool:
    """Let one process's monotonic clock leap or lag."""
    processes: Sequence[Process] = [*(worker.process for worker in job.world.alive()), *job.controllers()]
    if not processes:
        return False
    process = processes[fault.target % len(processes)]
    process.jump(4.0 * fault.amount if fault.target % 4 else -2.0 * fault.amount)
    return True


# ---------------------------------------------------------------------- requests


def _request(action: str) -> Callable[[SimulatedJob, Fault], bool]:
    def ask(job: SimulatedJob, fault: Fault) -> bool:
        world, bounds = job.world, job.world.bounds
        request = ControlRequest(f"r{world.kernel.events}-{fault.target}", action)
        if action == "resize":
            span = bounds.max_workers - bounds.min_workers + 1
            request = replace(request, workers=bounds.min_workers + fault.target % span)
        else:
            worker = _pick(job, fault)
            if worker is None:
                return False
            deadline_s = None if fault.amount < 0.5 else 20.0 * fault.amount
            request = replace(request, worker_id=worker.worker_id, deadline_s=deadline_s)
            if job.setting.by_hand:  # whoever lends the machine takes it back
                world.kernel.after(deadline_s or 10.0, worker.kill)
        world.store.apply([Put(world.keys.control + request.request_id, request.to_bytes())], ())
        return True

    return ask


def _fail_launch(job: SimulatedJob, fault: Fault) -> bool:
    job.world.launch_fails = 1 + fault.target % 2
    return True


KINDS: dict[str, tuple[float, Callable[[SimulatedJob, Fault], bool]]] = {
    "kill-worker": (10, _kill_worker),
    "kill-many": (3, _kill_many),
    "stop-worker": (8, _stop_worker),
    "slow-worker": (6, _slow_worker),
    "reset-connection": (5, _reset_connection),
    "slow-network": (4, _slow_network),
    "slow-watch": (5, _slow_watch),
    "cut-watch": (5, _cut_watch),
    "lose-suspicion": (4, _lose("request", "suspects/")),
    "duplicate-suspicion": (4, _lose("duplicate", "suspects/")),
    "lose-record": (4, _lose("request", "workers/")),
    "lose-record-answer": (4, _lose("answer", "workers/")),
    "cut-off-worker": (3, _cut_off),
    "compact": (3, _compact),
    "outage": (2, _outage),
    "change-etcd-leader": (2, _change_leader),
    "kill-controller": (2, _kill_controller),
    "stop-controller": (2, _stop_controller),
    "lose-controller-answer": (4, _next_write("lost")),
    "crash-after-write": (2, _next_write("crash")),
    "isolate-controller": (2, _isolate_controller),
    "jump-clock": (4, _jump_clock),
    "resize": (3, _request("resize")),
    "drain": (4, _request("drain")),
    "fail-launch": (2, _fail_launch),
}
"""Every kind of fault: how often it is drawn, and how it is done."""
