"""One run of one job: puts the parts together, watches over them, and takes everything down again."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.adapters.framework import framework_preload
from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.controller.loop import Controller
from elastic_train.core.bounds import Bounds
from elastic_train.core.events import ResizeRequested, StopRequested
from elastic_train.core.records import Keys
from elastic_train.errors import CoordinationUnavailable
from elastic_train.journal import Journal
from elastic_train.ports import Coordination, WorkerExited, WorkerStarted
from elastic_train.trainer.controller_thread import ControllerThread
from elastic_train.trainer.controls import JobControls
from elastic_train.trainer.job_directory import JobDirectory
from elastic_train.trainer.job_keys import create_job, remove_job
from elastic_train.trainer.machine import machine_workers
from elastic_train.trainer.narrator import Narrator, OnStep
from elastic_train.trainer.outcome import error_of
from elastic_train.trainer.preflight import check_storage
from elastic_train.trainer.progress_model import ProgressModel
from elastic_train.trainer.reporters import make_reporter
from elastic_train.trainer.result import Checkpoint, Result
from elastic_train.trainer.settings import JobSettings, worker_spec
from elastic_train.trainer.signals import Command, Signals
from elastic_train.trainer.status_publisher import StatusPublisher

if TYPE_CHECKING:
    from elastic_train.core.effects import FinishJob

_WORKER_ENTRY = "elastic_train.trainer.worker_process:main"
_POLL_S = 0.05
_LEAVE_S = 10.0  # for workers to exit by themselves once the job has ended


class JobRun:
    """Runs a job once, from the thread that calls `run`.

    Args:
        settings: As the user gave them; what was left out is filled in here.
        directory: The job's; not yet acquired.
        payload: The pickled train function.
        on_step: Called for every committed step, in the thread of `run`.
    """

    def __init__(
        self, settings: JobSettings, directory: JobDirectory, payload: bytes, on_step: OnStep | None = None
    ) -> None:
        scale = settings.scale.resolve(machine_workers())
        assert scale.max_workers is not None, "resolved"
        self._settings = replace(settings, scale=scale, data=settings.data.resolve(scale.max_workers))
        self._framework_preload = framework_preload(settings.framework)
        self._directory = directory
        self._payload = payload
        self._on_step = on_step
        self._storage = settings.storage or directory.default_storage
        self._begun_at = time.monotonic()
        self._etcd_exit: int | None = None
        self._controller: ControllerThread | None = None
        self.controls: JobControls | None = None
        """The job's controls while it runs; from any thread."""

    def run(self) -> Result:
        """Run the job to its end and return how it went.

        Raises:
            ElasticTrainError: As `ElasticTrainer.fit` lists them.
            KeyboardInterrupt: Somebody insisted on ending at once.
        """
        with ExitStack() as cleanup:
            signals = cleanup.enter_context(Signals())
            self._directory.acquire()
            cleanup.callback(self._directory.release)
            narrator = self._make_narrator()
            launcher = self._start_launcher(cleanup)
            coordination = self._start_coordination(cleanup)
            journal = cleanup.enter_context(self._make_journal("controller"))
            cleanup.callback(narrator.finish)  # after the workers are gone, so that their last words are heard
            cleanup.callback(launcher.close)
            self._controller = self._start_controller(coordination, launcher, journal, cleanup)
            self._follow(narrator, signals, cleanup.enter_context(StatusPublisher(coordination, self._settings.name)))
            finish = self._controller.outcome()
            self._see_workers_off(launcher, narrator)
        return self._conclude(finish, narrator)

    # ------------------------------------------------------------------ putting together

    def _make_narrator(self) -> Narrator:
        scale = self._settings.scale
        model = ProgressModel(
            self._settings.name, self._begun_at, (scale.min_workers, scale.max_workers or scale.min_workers)
        )
        return Narrator(
            model,
            make_reporter(progress=self._settings.progress),
            journals=self._directory.journal,
            logs=self._directory.logs,
            on_step=self._on_step,
        )

    def _start_launcher(self, cleanup: ExitStack) -> LocalProcessLauncher:
        """Start the warm pool first: its imports take longest, and go on while the rest is put together."""
        spec = worker_spec(
            self._settings,
            coordination=str(self._directory.coordination_file),
            storage=self._storage,
            payload=self._directory.payload,
            journal=self._directory.journal,
        )
        self._directory.write_payload(self._payload)
        launcher = LocalProcessLauncher(
            _WORKER_ENTRY,
            spec.to_dict(),
            preload=self._preload(),
            log_dir=self._directory.logs,
            ready_timeout_s=self._settings.timeouts.start_timeout_s,
        )
        cleanup.callback(launcher.close)
        launcher.start(self._on_launcher_news)
        return launcher

    def _preload(self) -> Sequence[str]:
        return (*self._framework_preload, _WORKER_ENTRY.partition(":")[0], *self._settings.preload)

    def _start_coordination(self, cleanup: ExitStack) -> Coordination:
        """Bring up the coordination service, and try the storage meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            storage_check = pool.submit(check_storage, self._storage)
            url = self._settings.coordination
            if url is None:
                etcd = EmbeddedEtcd(self._directory.etcd, on_exit=self._on_etcd_exit)
                cleanup.callback(etcd.stop)
                url = etcd.start()
            coordination = connect(url)
            cleanup.callback(coordination.close)
            storage_check.result()
        revision = create_job(coordination, self._settings, self._storage)
        if self._settings.coordination is not None:
            cleanup.callback(remove_job, coordination, self._settings.name, revision)
        self._directory.write_coordination(url)
        self._directory.publish(url, self._storage)
        self.controls = JobControls(coordination, self._settings.name)
        return coordination

    def _make_journal(self, source: str) -> Journal:
        journal = Journal(self._directory.journal / f"{source}.jsonl", source=source, node=socket.gethostname())
        journal.record("job_started", job=self._settings.name, storage=self._storage)
        return journal

    def _start_controller(
        self, coordination: Coordination, launcher: LocalProcessLauncher, journal: Journal, cleanup: ExitStack
    ) -> ControllerThread:
        controller = Controller(
            coordination=coordination,
            keys=Keys(self._settings.name),
            launcher=launcher,
            journal=journal,
            bounds=bounds_of(self._settings, launcher.capacity()),
            name="driver",
            lease_ttl_s=self._settings.timeouts.lease_ttl_s,
        )
        self._on_news = controller.on_launcher_news
        thread = ControllerThread(controller)
        cleanup.callback(thread.close)
        return thread

    def _on_launcher_news(self, news: WorkerStarted | WorkerExited) -> None:
        self._on_news(news)  # nothing is launched, so there are no news, before there is a controller

    def _on_etcd_exit(self, exit_code: int) -> None:
        self._etcd_exit = exit_code

    # ------------------------------------------------------------------ watching over

    def _follow(self, narrator: Narrator, signals: Signals, publisher: StatusPublisher) -> None:
        assert self._controller is not None
        while not self._controller.wait(_POLL_S):
            for command in signals.pending():
                self._obey(command)
            narrator.poll()
            publisher.publish(narrator.model)
            if self._etcd_exit is not None:
                raise CoordinationUnavailable(
                    f"job {self._settings.name!r}: its own etcd ended (exit code {self._etcd_exit}), and the job "
                    "with it. Run it again under the same name: it goes on from its newest checkpoint"
                )

    def _obey(self, command: Command) -> None:
        assert self._controller is not None
        controller = self._controller.controller
        now_s = time.monotonic()
        if command is Command.STOP_AT_ONCE:
            raise KeyboardInterrupt
        if command is Command.STOP:
            controller.submit(StopRequested(at_s=now_s, reason="a signal to the driver (again: at once)"))
        else:
            change = 1 if command is Command.GROW else -1
            controller.submit(ResizeRequested(at_s=now_s, workers=controller.state.wanted + change))

    def _see_workers_off(self, launcher: LocalProcessLauncher, narrator: Narrator) -> None:
        """Let the workers end by themselves, now that they know that the job is over."""
        deadline = time.monotonic() + _LEAVE_S
        while launcher.pids() and time.monotonic() < deadline:
            narrator.poll()
            time.sleep(_POLL_S / 5)

    # ------------------------------------------------------------------ the end

    def _conclude(self, finish: FinishJob, narrator: Narrator) -> Result:
        history, now = narrator.history, time.monotonic()
        newest = history.checkpoint
        result = Result(
            name=self._settings.name,
            path=self._directory.path,
            journal_path=self._directory.journal,
            wall_s=now - self._begun_at,
            steps=history.committed_steps(),
            metrics=narrator.model.metrics,
            metrics_history=history.metrics_history(),
            checkpoint=None if newest is None else Checkpoint(newest.version, newest.key, self._storage),
            membership_history=history.membership_history(),
            goodput=history.goodput(now),
        )
        error = error_of(finish, result)
        if error is not None:
            raise error
        return result


def bounds_of(settings: JobSettings, capacity: int | None) -> Bounds:
    """Return what the membership core decides by; `settings` must be resolved."""
    scale, timeouts, failure = settings.scale, settings.timeouts, settings.failure
    assert scale.max_workers is not None, "resolve the settings first"
    assert scale.num_workers is not None, "resolve the settings first"
    return Bounds(
        min_workers=scale.min_workers,
        max_workers=scale.max_workers,
        num_workers=scale.num_workers,
        capacity=capacity,
        ack_timeout_s=timeouts.ack_timeout_s,
        coalesce_s=timeouts.coalesce_s,
        join_batch_s=timeouts.join_batch_s,
        start_timeout_s=timeouts.start_timeout_s,
        hang_timeout_s=failure.hang_timeout_s,
        max_failures=sys.maxsize if failure.max_failures < 0 else failure.max_failures,
        pause_timeout_s=failure.below_minimum_timeout_s,
    )
