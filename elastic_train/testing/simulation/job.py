"""One simulated job from a seed: composed, hurt by a plan of faults, healed, and judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from elastic_train.core.bounds import Bounds
from elastic_train.core.records import WorkerId
from elastic_train.ports import Delete, Put
from elastic_train.testing.simulation.controller import SimulatedController
from elastic_train.testing.simulation.faults import Fault, inflict, plan_faults
from elastic_train.testing.simulation.group import COLLECTIVE_TIMEOUT_S
from elastic_train.testing.simulation.invariants import Checker, Violation
from elastic_train.testing.simulation.kernel import Kernel, Process
from elastic_train.testing.simulation.store import SimulatedStore
from elastic_train.testing.simulation.worker import SimulatedWorker
from elastic_train.testing.simulation.world import LEADER_TTL_S, WORKER_TTL_S, Durable, Owner, SimulatedWorld

_CANDIDATES = 3
_REFORMATIONS_PER_FAULT = 0.35  # most faults hurt nobody, or come together
_REFORMATIONS = 6
_MAX_JOB_S = 600.0


@dataclass(frozen=True)
class Setting:
    """What is simulated.

    Args:
        seed: Decides everything.
        workers: Wanted at the start.
        faults: The plan; None: drawn from the seed.
        fault_count: How many are drawn.
        mean_interval_s: Between two of them.
        by_hand: Others start the workers, and replace them; no controller can end them.
        total_steps: After which the job ends even if faults are still to come; None: it goes on until they are over.
        worker_class: The workers' behaviour; a test puts a known bug in.
        controller_class: The controllers'.
        durable_class: The checkpoint store's.
    """

    seed: int
    workers: int = 4
    faults: Sequence[Fault] | None = None
    fault_count: int = 120
    mean_interval_s: float = 0.35
    by_hand: bool = False
    total_steps: int | None = None
    worker_class: type[SimulatedWorker] = SimulatedWorker
    controller_class: type[SimulatedController] = SimulatedController
    durable_class: type[Durable] = Durable


def setting_for(seed: int) -> Setting:
    """Return the job that a seed stands for: 2 to 8 workers, one in three by hand; one of four ends early."""
    return Setting(seed, workers=2 + seed % 7, by_hand=seed % 3 == 2, total_steps=40 if seed % 4 == 3 else None)


@dataclass
class Report:
    """What came of one simulated job."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    events: int = 0
    commits: int = 0
    worlds: int = 0
    simulated_s: float = 0.0
    resumed_s: float = 0.0  # from the last fault to the next committed step
    violation: Violation | None = None


def bounds_for(setting: Setting) -> Bounds:
    """Return the bounds of a simulated job: quick, so that patience does not hide what goes wrong."""
    return Bounds(
        min_workers=1 + setting.seed % 2,
        max_workers=2 * setting.workers,
        num_workers=setting.workers,
        capacity=0 if setting.by_hand else None,
        gather_s=1.0,
        hang_timeout_s=15.0,
        start_timeout_s=10.0,
        ready_timeout_s=20.0,
        leave_timeout_s=10.0,
        relaunch_delay_max_s=2.0,
        stable_s=4.0,
        max_start_failures=1000,
        drain_wait_s=5.0,
    )


def resume_bound_s(bounds: Bounds) -> float:
    """Return how long after the last fault the next step is committed at the latest (invariant I7).

    A leader's lease and a worker's; one collective that times out, and one that fails to form; the longest back-offs; a
    worker that is launched and never comes up.
    """
    return (
        LEADER_TTL_S
        + WORKER_TTL_S
        + 2 * COLLECTIVE_TIMEOUT_S
        + 2 * bounds.relaunch_delay_max_s
        + bounds.start_timeout_s
        + 4 * bounds.acknowledge_s(bounds.max_workers)
    )


class SimulatedJob:
    """A job, its processes and its nemesis.

    Args:
        setting: What is simulated.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        kernel = Kernel(setting.seed)
        bounds = bounds_for(setting)
        checker = Checker()
        self.world = SimulatedWorld(kernel, bounds, SimulatedStore(kernel), checker)
        self.world.durable = setting.durable_class()
        self.losses: list[tuple[str, str, int]] = []  # fate, prefix, how many more
        self.cut_off: dict[Process, float] = {}
        self.outage_until_s = 0.0
        self.report = Report(setting.seed)
        checker.world = self.world
        self.world.spawn = self._spawn
        self.world.store.on_write = checker.wrote
        self.world.store.lose = self._lose
        kernel.after_each = checker.after_each_event
        if setting.total_steps is not None:
            self.world.total_steps = setting.total_steps
        self._started_s = kernel.now_s
        self._born = 0
        for _ in range(_CANDIDATES):
            self._start_controller()
        kernel.after(1.0, self._replace_controllers)
        if setting.by_hand:
            kernel.after(0.1, self._start_by_hand)

    def run(self) -> Report:
        """Simulate the job to its end; what it breaks is in the report."""
        report, kernel, checker = self.report, self.world.kernel, self.world.checker
        try:
            self._live()
        except Violation as violation:
            report.violation = violation
        report.events, report.commits, report.worlds = kernel.events, checker.commits, len(checker.sealed)
        report.simulated_s = kernel.now_s - self._started_s
        return report

    def controllers(self) -> list[SimulatedController]:
        """Return the candidates whose processes live."""
        return [controller for controller in self.world.controllers if controller.alive]

    # ------------------------------------------------------------------ the course of things

    def _live(self) -> None:
        setting, kernel = self.setting, self.world.kernel
        plan = setting.faults
        if plan is None:
            plan = plan_faults(setting.seed, setting.fault_count, setting.mean_interval_s)
        for fault in plan:
            kernel.run(self._started_s + fault.at_s, self._is_over)
            if self._is_over():
                return
            if inflict(self, fault):
                self.report.faults[fault.kind] += 1
        self._heal()
        self._must_resume()
        self._must_end()

    def _is_over(self) -> bool:
        return self.world.ended

    def _heal(self) -> None:
        """End what still goes wrong; processes that are stopped are continued."""
        world = self.world
        self.losses.clear()
        self.cut_off.clear()
        self.outage_until_s = world.store.slow_until_s = 0.0
        world.launch_fails = 0
        for worker in world.alive():
            worker.process.resume()
        for controller in self.controllers():
            controller.resume()
            controller.unreachable_until_s, controller.next_write = 0.0, ""
        for subscription in world.store.subscriptions:
            subscription.delay_s = 0.0

    def _must_resume(self) -> None:
        kernel, checker = self.world.kernel, self.world.checker
        healed_s, commits = kernel.now_s, checker.commits
        bound_s = resume_bound_s(self.world.bounds)
        kernel.run(healed_s + bound_s, lambda: self._is_over() or checker.commits > commits)
        if not self._is_over() and checker.commits == commits:
            raise Violation("I7", f"no step was committed within {bound_s:.0f} s after the last fault: {self._where()}")
        self.report.resumed_s = kernel.now_s - healed_s

    def _must_end(self) -> None:
        world = self.world
        if self.setting.total_steps is None:
            world.total_steps = max((worker.version for worker in world.alive()), default=0) + 6
        world.kernel.run(world.kernel.now_s + _MAX_JOB_S, self._is_over)
        self._must_not_have_churned()
        if not world.ended:
            raise Violation("I7", f"the job did not end within {_MAX_JOB_S:.0f} s: {self._where()}")

    def _must_not_have_churned(self) -> None:
        faults, worlds = self.report.faults.total(), len(self.world.checker.sealed)
        if worlds > _REFORMATIONS_PER_FAULT * faults + _REFORMATIONS:
            raise Violation("I9", f"{faults} faults cost {worlds} worlds")

    def _where(self) -> str:
        leader = next((c for c in self.controllers() if c.state is not None), None)
        lines = [f"leader {leader.name}: {leader.state}" if leader else "nobody leads"]
        lines += [worker.describe() for worker in self.world.alive()]
        return "\n  ".join(lines)

    # ------------------------------------------------------------------ what the parts ask of the job

    def _spawn(self, worker_id: WorkerId, owner: Owner) -> None:
        if worker_id in self.world.workers:
            raise Violation("I3", f"the name {worker_id} is given to a second worker")
        self.world.workers[worker_id] = self.setting.worker_class(self.world, worker_id, owner)

    def _start_by_hand(self) -> None:
        """Do as somebody who keeps as many workers as were wanted at the start."""
        for _ in range(self.setting.workers - len(self.world.alive())):
            self._spawn(WorkerId(f"x{len(self.world.workers):04d}"), _Nobody())
        self.world.kernel.after(1.0, self._start_by_hand)

    def _start_controller(self) -> None:
        self._born += 1
        controller = self.setting.controller_class(self.world, f"candidate-{self._born}")
        controller.unreachable_until_s = self.outage_until_s
        self.world.controllers.append(controller)

    def _replace_controllers(self) -> None:
        """Bring up new candidates for those that died, and forget what is gone for good."""
        self.world.controllers = living = self.controllers()
        if len(living) < _CANDIDATES:
            self._start_controller()
        self.world.kernel.after(1.0, self._replace_controllers)

    def _lose(self, owner: Process, operations: Sequence[Put | Delete]) -> str:
        now_s = self.world.kernel.now_s
        if now_s < self.outage_until_s:
            return "request"
        until_s = self.cut_off.get(owner)
        if until_s is not None:
            if now_s < until_s:
                return "request"
            del self.cut_off[owner]
        for number, (fate, prefix, left) in enumerate(self.losses):
            if operations and operations[0].key.startswith(prefix):
                self.report.faults[f"{fate} {operations[0].key.split('/')[3]}"] += 1
                self.losses[number : number + 1] = [(fate, prefix, left - 1)] if left > 1 else []
                return fate
        return ""


class _Nobody:
    def on_exit(self, worker_id: WorkerId, exit_code: int | None) -> None:
        """Tell nobody: the worker's key goes with its lease."""
