"""Drive torchrun as its users do, and measure what it does when workers die, join and start.

torchrun 2.13 as shipped did not recover on one machine: restarted workers read their predecessors' keys in the shared
store (pytorch issues 135712 and 167288), so ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` is set for it.

Run as a program, it measures each thing once: ``python -m benchmarks.peers.torchrun``.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.common import ROOT, finish, median, parse_arguments
from scripts.processes import RUN_MARK, end_processes, marked_processes

_POLL_S = 0.005
_DEADLINE_S = 120.0
_ENDLESS = 10_000_000


class PeerFailed(Exception):
    """The peer did not do what it was started for; the end of its output is in the message."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One rank's line for one committed step; `time_s` is CLOCK_MONOTONIC."""

    time_s: float
    step: int
    rank: int
    world_size: int
    pid: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one SIGKILL of one worker cost."""

    recovery_s: float  # from the signal to the next committed step that was not under way when it came
    steps_redone: int  # steps committed before the signal and again after it
    workers_replaced: int  # processes that are new, of all in the world


@dataclass(frozen=True, slots=True)
class Growth:
    """What the joining of one more agent cost."""

    grow_s: float  # from its start to the first step at the larger world
    stall_s: float  # the largest gap between two steps of rank 0 meanwhile
    steps_redone: int


class TorchrunJob:
    """One job under torchrun: one agent with all workers, or one agent a worker as on several nodes.

    Use as a context manager: whatever happens, all its processes end with the block.

    Args:
        workers: Workers at the start.
        agents: 1, or the same as `workers`.
        max_workers: Up to how many workers agents may join later; only with an agent a worker.
        script: The module's file that the workers run.
        steps: How many steps they train.
        workload: The module of model and data, for scripts that leave the choice.
    """

    def __init__(
        self,
        workers: int,
        *,
        agents: int = 1,
        max_workers: int | None = None,
        script: str = "torchrun_mlp.py",
        steps: int = _ENDLESS,
        workload: str = "benchmarks.workload",
    ) -> None:
        if agents not in (1, workers):
            raise ValueError(f"agents={agents}: give 1, or one a worker ({workers})")
        self._workers_per_agent = workers // agents
        self._nodes = f"1:{max_workers or agents}" if agents > 1 or max_workers else "1"
        self._script = Path(__file__).with_name(script)
        self._directory = Path(tempfile.mkdtemp(prefix="et-torchrun-"))
        self._events = self._directory / "events"
        self._port = _free_port()
        self._mark = uuid.uuid4().hex
        self._agents: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            RUN_MARK: self._mark,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PEER_EVENTS": str(self._events),
            "PEER_SNAPSHOT": str(self._directory / "snapshot.pt"),
            "PEER_STEPS": str(steps),
            "PEER_WORKLOAD": workload,
        }
        self.started_s = time.monotonic()
        for _ in range(agents):
            self.add_agent()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_agent(self) -> None:
        """Start one more agent, as on one more node."""
        output = (self._directory / f"agent-{len(self._agents)}.log").open("wb")
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={self._nodes}"]
        command += [f"--nproc-per-node={self._workers_per_agent}", "--max-restarts=1000", "--rdzv-backend=c10d"]
        command += [f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=peer", "--local-addr=127.0.0.1"]
        with output:
            self._agents.append(
                subprocess.Popen(
                    [*command, str(self._script)],
                    env=self._environment,
                    cwd=self._directory,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def commits(self) -> list[Commit]:
        """Return all ranks' commits so far, in the order of their times."""
        if not self._events.exists():
            return []
        lines = self._events.read_bytes().split(b"\n")[:-1]
        return sorted((Commit(**json.loads(line)) for line in lines), key=lambda commit: commit.time_s)

    def wait_for(self, condition: Callable[[list[Commit]], bool], what: str) -> list[Commit]:
        """Wait until the commits fulfil a condition and return them.

        Raises:
            PeerFailed: They did not in time, or all agents ended before.
        """
        deadline = time.monotonic() + _DEADLINE_S
        while not condition(commits := self.commits()):
            if time.monotonic() > deadline or all(agent.poll() is not None for agent in self._agents):
                raise PeerFailed(f"torchrun: no {what}. {len(commits)} commits. Its output ended with:\n{self._tail()}")
            time.sleep(_POLL_S)
        return commits

    def wait_for_end(self) -> None:
        """Wait until every agent has ended by itself.

        Raises:
            PeerFailed: One failed, or they did not end in time.
        """
        deadline = time.monotonic() + _DEADLINE_S
        for agent in self._agents:
            try:
                code = agent.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise PeerFailed(f"torchrun did not end. Its output ended with:\n{self._tail()}") from None
            if code != 0:
                raise PeerFailed(f"torchrun ended with exit code {code}. Its output ended with:\n{self._tail()}")

    @property
    def events(self) -> Path:
        """The file that the workers write to."""
        return self._events

    def close(self) -> None:
        """End all agents and workers and remove their files."""
        end_processes(marked_processes(self._mark), grace_s=0.0)
        for agent in self._agents:
            agent.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _tail(self) -> str:
        logs = sorted(self._directory.glob("agent-*.log"))
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in logs)


def measure_recovery(
    workers: int = 4, *, agents: int = 1, after_step: int = 30, victim_rank: int | None = None
) -> Recovery:
    """Kill one worker (the last rank unless said) and measure until the next committed step.

    Raises:
        PeerFailed: It did not start or not recover.
    """
    with TorchrunJob(workers, agents=agents) as job:
        before = job.wait_for(lambda commits: _reached(commits, after_step, workers), f"step {after_step}")
        rank = workers - 1 if victim_rank is None else victim_rank
        victim = next(commit.pid for commit in reversed(before) if commit.rank == rank)
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        after = job.wait_for(lambda commits: _resumed(commits, killed_s), "step after the signal")
        return _recovery(after, killed_s)


def measure_growth(workers: int = 3, *, after_step: int = 30) -> Growth:
    """Start one more agent beside `workers` running ones and measure until the first step at the larger world.

    Raises:
        PeerFailed: It did not start or not grow.
    """
    with TorchrunJob(workers, agents=workers, max_workers=workers + 1) as job:
        job.wait_for(lambda commits: _reached(commits, after_step, workers), f"step {after_step}")
        asked_s = time.monotonic()
        job.add_agent()
        commits = job.wait_for(lambda commits: _reached(commits, 0, workers + 1), f"step at world {workers + 1}")
    first = next(commit for commit in commits if commit.world_size == workers + 1)
    last_step = max(commit.step for commit in commits if commit.world_size == workers)
    times = [commit.time_s for commit in commits if commit.rank == 0 and commit.time_s >= asked_s - 1.0]
    stall_s = max(later - earlier for earlier, later in itertools.pairwise(times))
    return Growth(grow_s=first.time_s - asked_s, stall_s=stall_s, steps_redone=max(0, last_step + 1 - first.step))


def measure_cold_start(workers: int = 4) -> float:
    """Return the seconds from the start of torchrun to its first committed step.

    Raises:
        PeerFailed: It did not start.
    """
    with TorchrunJob(workers) as job:
        commits = job.wait_for(lambda commits: _reached(commits, 0, workers), "first step")
        return commits[0].time_s - job.started_s


def measure_step_times(workers: int = 4, *, steps: int = 300, workload: str = "benchmarks.workload") -> list[float]:
    """Return the seconds of each of `steps` steps of plain DDP after its warm-up.

    Raises:
        PeerFailed: It did not run to its end.
    """
    with TorchrunJob(workers, script="ddp_reference.py", steps=steps, workload=workload) as job:
        job.wait_for_end()
        seconds: list[float] = json.loads(job.events.read_text())
        return seconds


def _reached(commits: list[Commit], step: int, world_size: int) -> bool:
    """Tell whether every rank of a world of this size has committed this step or a later one."""
    return len({c.rank for c in commits if c.world_size == world_size and c.step >= step}) == world_size


def _replaced(commits: list[Commit], killed_s: float) -> list[Commit]:
    """Return the commits of processes that were not there when the signal came."""
    old = {commit.pid for commit in commits if commit.time_s <= killed_s}
    return [commit for commit in commits if commit.pid not in old]


def _resumed(commits: list[Commit], killed_s: float) -> bool:
    """Tell whether a whole world with new processes in it has committed a step."""
    new = _replaced(commits, killed_s)
    since = {commit.rank for commit in commits if new and commit.time_s >= new[0].time_s}
    return bool(new) and len(since) >= new[0].world_size


def _recovery(commits: list[Commit], killed_s: float) -> Recovery:
    new = _replaced(commits, killed_s)
    new_pids = {commit.pid for commit in new}
    last_step = max(commit.step for commit in commits if commit.pid not in new_pids)
    return Recovery(
        recovery_s=new[0].time_s - killed_s,
        steps_redone=max(0, last_step + 1 - new[0].step),
        workers_replaced=len(new_pids),
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure each thing and print it."""
    arguments = parse_arguments(__doc__ or "", repeats=1)
    repeats = range(arguments.repeats)
    figures: dict[str, object] = {}
    figures["cold_start_s"] = median(measure_cold_start() for _ in repeats)
    figures["step_s"] = median(median(measure_step_times()) for _ in repeats)
    figures["recovery"] = [asdict(measure_recovery()) for _ in repeats]
    figures["recovery_one_agent_a_worker"] = [asdict(measure_recovery(agents=4)) for _ in repeats]
    figures["growth"] = [asdict(measure_growth()) for _ in repeats]
    finish("torchrun", figures, arguments)


if __name__ == "__main__":
    main()
