"""The working copy that the membership rules change: the old state, the effects so far, and the reasons given."""

from __future__ import annotations

from elastic_train.core.bounds import Bounds
from elastic_train.core.effects import AnswerRequest, Effect, EndWorld, FinishJob, KillWorker
from elastic_train.core.evolve import evolve
from elastic_train.core.records import Cause, ControlAnswer, Stage, WorkerId, WorldRecord
from elastic_train.core.world import Change, JobState, Life, Phase, Worker

_OUTCOMES = {Phase.SUCCEEDED: "succeeded", Phase.FAILED: "failed", Phase.STOPPED: "stopped"}


class Draft:
    """One transition in the making.

    `state` is replaced, never changed; its `workers` and `census` are copied before the first write, so that the state
    from before stays whole.
    """

    def __init__(self, state: JobState, at_s: float, bounds: Bounds) -> None:
        self.now_s = max(state.now_s, at_s)  # events of several threads may be stamped out of order
        self.state = evolve(state, now_s=self.now_s)
        self.bounds = bounds
        self.effects: list[Effect] = []
        self.reasons: list[str] = []
        self._workers: dict[WorkerId, Worker] | None = None
        self._census: dict[Life, int] = {}

    def say(self, reason: str) -> None:
        """Give a reason for what is decided."""
        self.reasons.append(reason)

    def do(self, effect: Effect) -> None:
        """Add an effect."""
        self.effects.append(effect)

    # ------------------------------------------------------------------ workers

    def count(self, *lives: Life) -> int:
        """Return how many workers stand there."""
        return sum(self.state.census.get(life, 0) for life in lives)

    def put(self, worker: Worker) -> None:
        """Add a worker or replace what is known of it."""
        workers, census = self._writable()
        before = workers.get(worker.worker_id)
        if before is not None:
            census[before.life] -= 1
        census[worker.life] = census.get(worker.life, 0) + 1
        workers[worker.worker_id] = worker

    def move(self, worker_id: WorkerId, life: Life) -> None:
        """Put a worker into another life from now on."""
        self.put(evolve(self.state.workers[worker_id], life=life, since_s=self.now_s))

    def dismiss(self, worker_id: WorkerId) -> None:
        """Take a worker to be on its way out by itself."""
        self.move(worker_id, Life.LEAVING)
        self.state = evolve(self.state, draining=self.state.draining - {worker_id})
        self.scan_by(self.now_s + self.bounds.leave_timeout_s)

    def forget(self, worker_id: WorkerId, *, record_gone: bool) -> None:
        """Drop a worker; what its record still says is ignored until the record is gone."""
        workers, census = self._writable()
        census[workers.pop(worker_id).life] -= 1
        state = self.state
        self.state = evolve(
            state,
            gone=state.gone if record_gone else state.gone | {worker_id},
            draining=state.draining - {worker_id},
        )

    def kill(self, worker_id: WorkerId, reason: str) -> None:
        """End a worker that is known and forget it."""
        self.do(KillWorker(worker_id, reason))
        self.forget(worker_id, record_gone=False)

    @property
    def is_finishing(self) -> bool:
        """Whether some member's train function returned: what is left is the tail of the job."""
        return self.count(Life.FINISHED) > 0

    def survivors(self) -> list[Worker]:
        """Return the members of the sealed world that still are members, most senior first."""
        if self.state.world is None:
            return []
        known = (self.state.workers.get(member) for member in self.state.world.members)
        return [worker for worker in known if worker is not None and worker.life in (Life.MEMBER, Life.FINISHED)]

    def scan_by(self, at_s: float) -> None:
        """Look at all workers' patience then, or earlier."""
        scan_s = self.state.scan_s
        self.state = evolve(self.state, scan_s=at_s if scan_s is None else min(scan_s, at_s))

    # ------------------------------------------------------------------ phases

    def enter(self, phase: Phase, due_s: float | None = None) -> None:
        """Go to a phase and wait there until `due_s` at most."""
        self.state = evolve(self.state, phase=phase, due_s=due_s)

    def wait_until(self, due_s: float | None) -> None:
        """Set when the present phase's wait ends."""
        if self.state.due_s != due_s:
            self.state = evolve(self.state, due_s=due_s)

    @property
    def is_due(self) -> bool:
        """Whether the phase's wait has ended."""
        return self.state.due_s is not None and self.now_s >= self.state.due_s

    def sign(self, cause: Cause, reason: str) -> None:
        """Note a sign that the membership must change."""
        change = self.state.change
        change = Change(self.now_s, cause, (reason,)) if change is None else change.and_also(self.now_s, cause, reason)
        self.state = evolve(self.state, change=change)

    def finish(self, phase: Phase, job: FinishJob) -> None:
        """End the job."""
        state = self.state
        world = WorldRecord(
            membership_epoch=state.membership_epoch,
            stage=Stage.ENDED,
            members=() if state.world is None else state.world.members,
            reason=job.reason,
            outcome=_OUTCOMES[phase],
        )
        self.say(job.reason)
        self.do(EndWorld(world))
        self.do(job)
        self.enter(phase)
        self.state = evolve(self.state, proposal=None, probe=None, scan_s=None)

    def answer(self, request_id: str | None, accepted: bool, message: str) -> None:
        """Answer a control request, if one was made."""
        self.say(message)
        if request_id is not None:
            self.do(AnswerRequest(ControlAnswer(request_id, accepted, message)))

    def _writable(self) -> tuple[dict[WorkerId, Worker], dict[Life, int]]:
        if self._workers is None:
            self._workers, self._census = dict(self.state.workers), dict(self.state.census)
            self.state = evolve(self.state, workers=self._workers, census=self._census)
        return self._workers, self._census
