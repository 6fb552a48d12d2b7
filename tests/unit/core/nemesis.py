"""What befalls a SimulatedJob, and how it is put right again."""

from __future__ import annotations

from elastic_train.core.events import DrainRequested, LaunchFailed, Loss, ResizeRequested, StopRequested, WorkerLost
from tests.unit.core.simulated_job import Choose, SimulatedJob, first
from tests.unit.core.simulated_worker import SimulatedWorker


def nemesis(job: SimulatedJob, choose: Choose) -> None:
    """Do one thing: most often let the job go on, sometimes hurt it."""
    alive = [worker for worker in job.workers.values() if worker.alive]
    what = choose(80)
    if what < 63:
        _go_on(job, what, choose)
    elif what == 63:
        job.join()
    elif what == 64:
        workers = choose(job.bounds.max_workers + 2)
        job.request(ResizeRequested(at_s=job.now_s, workers=workers, request_id=f"r{job.now_s}"))
    elif what == 65 and choose(6) == 0:
        job.request(StopRequested(at_s=job.now_s, reason="enough", request_id="stop"))
    elif what == 66 and choose(3) == 0:
        job.finish_world()
    elif alive:
        _hurt(job, alive[choose(len(alive))], what, choose)


def _go_on(job: SimulatedJob, what: int, choose: Choose) -> None:
    if what < 30:
        job.deliver(choose)
    elif what < 48:
        job.progress(choose)
    elif what < 52:
        job.tick()
    elif what < 60:
        job.pass_time((0.001, 0.01, 0.03, 0.1, 0.5, 2.0, 15.0, 100.0)[choose(8) if choose(4) == 0 else choose(4)])
    else:
        job.complain()


def _hurt(job: SimulatedJob, worker: SimulatedWorker, what: int, choose: Choose) -> None:
    if what in (67, 68, 69):
        job.kill(worker)
    elif what == 70:
        job.kill(worker, why=Loss.LEASE)
    elif what in (71, 72):
        worker.stopped = True
    elif what == 73:
        job.wake(worker)
    elif what == 74 and worker.ready and choose(4) == 0:
        job.fail(worker)
    elif what in (75, 76):
        deadline = (None, job.now_s + 1.0, job.now_s + 60.0)[choose(3)]
        job.request(
            DrainRequested(at_s=job.now_s, worker_ids=(worker.worker_id,), deadline_at_s=deadline, request_id=None)
        )
    elif what == 77 and not worker.ready and not worker.external:
        worker.alive = False
        worker.said.clear()
        worker.said.append(LaunchFailed(at_s=0, worker_id=worker.worker_id, detail="fork failed"))
    elif what == 79:
        job.take_over()
    elif what == 78:
        worker.said.append(WorkerLost(at_s=0, worker_id=worker.worker_id, why=Loss.SUSPECTED, detail="actor died"))


def heal(job: SimulatedJob, limit: int = 2000) -> int:
    """End all faults, let all behave, and return how many moves it took until training went on or the job ended."""
    for worker in job.workers.values():
        if worker.stopped and worker.external:
            worker.alive = False  # its machine is given up: the lease ends
            worker.said.append(WorkerLost(at_s=0, worker_id=worker.worker_id, why=Loss.LEASE))
    for moves in range(limit):
        if job.state.phase.is_terminal or (
            job.is_healthy and not any(w.said for w in job.workers.values()) and not job.internal
        ):
            return moves
        if job.deliver(first) or job.progress(first) or (not job.state.probe and job.complain()):
            continue
        if not job.tick():
            job.pass_time(3.0)  # until somebody complains
            job.expire_leases()
    raise AssertionError("stuck: " + "\n".join(job.log[-40:]) + f"\n{job.state}")
