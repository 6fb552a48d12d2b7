"""The front door: `ElasticTrainer(train, min_workers=2, max_workers=16).fit()`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elastic_train.config import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    ScaleConfig,
    TimeoutConfig,
    check_coordination_url,
    check_job_name,
    read_environment,
)
from elastic_train.core.records import ControlRequest, WorkerId
from elastic_train.errors import ConfigurationError, CoordinationError, UsageError
from elastic_train.trainer.controls import JobControls, JobStatus
from elastic_train.trainer.job_directory import JobDirectory, locate
from elastic_train.trainer.job_run import JobRun
from elastic_train.trainer.narrator import OnStep
from elastic_train.trainer.payload import dump_payload
from elastic_train.trainer.result import Result
from elastic_train.trainer.settings import JobSettings, default_name

_ANSWER_TIMEOUT_S = 30.0
_ANSWER_POLL_S = 1.0
_RETRY_S = 0.02


class ElasticTrainer:
    """Runs a train function on as many workers as there are, and goes on when some come or go.

    Args:
        train: The train function, ``def train(config)`` or ``def train()``; runs in every worker.
        config: Handed to `train`; anything that can be pickled.
        name: Of the job. Run again under the same name and storage, it continues from its newest checkpoint; a job
            without a name is a new one every time.
        min_workers, max_workers, num_workers: See ScaleConfig.
        storage: URL below which checkpoints are written (any fsspec URL); default: in the job's directory.
        coordination: ``etcd://host:2379,...`` of a cluster to use; default: an etcd of the job's own, ended with it.
        failure_config, checkpoint_config, timeout_config: See there.
        seed, logical_shards, deterministic, digest_every_steps: See DataConfig.
        framework: The adapter that forms groups and runs steps.
        preload: Further modules that the warm worker pool imports in advance.
        progress: Show a live view (on a terminal) or plain lines; False: logs only.
        on_step: Called with the StepMetrics of every committed step, in the thread that runs `fit`.
        work_dir: The job's directory; default: ``$ELASTIC_TRAIN_HOME/<name>`` or ``~/elastic_train/<name>``.

    Raises:
        ConfigurationError: An argument cannot work; the message says which, why, and what to write instead.
    """

    def __init__(  # noqa: PLR0913  # keyword-only settings of the front door: grouping them would hide them
        self,
        train: Callable[..., Any],
        *,
        config: Any = None,
        name: str | None = None,
        min_workers: int = 1,
        max_workers: int | None = None,
        num_workers: int | None = None,
        storage: str | os.PathLike[str] | None = None,
        coordination: str | None = None,
        failure_config: FailureConfig | None = None,
        checkpoint_config: CheckpointConfig | None = None,
        timeout_config: TimeoutConfig | None = None,
        seed: int = 0,
        logical_shards: int | None = None,
        deterministic: bool = False,
        digest_every_steps: int | None = None,
        framework: str = "torch",
        preload: Sequence[str] = (),
        progress: bool | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        environment = read_environment(os.environ)
        coordination = coordination or environment.coordination
        self._payload = dump_payload(train, config)
        self._settings = JobSettings(
            name=check_job_name(name) if name is not None else default_name(train),
            scale=ScaleConfig(
                min_workers=min_workers,
                max_workers=max_workers,
                num_workers=num_workers if num_workers is not None else environment.num_workers,
            ),
            data=DataConfig(
                seed=seed,
                logical_shards=logical_shards,
                deterministic=deterministic,
                digest_every_steps=digest_every_steps,
            ),
            failure=_instance("failure_config", failure_config, FailureConfig),
            checkpoint=_instance("checkpoint_config", checkpoint_config, CheckpointConfig),
            timeouts=_instance("timeout_config", timeout_config, TimeoutConfig),
            coordination=check_coordination_url(coordination) if coordination else None,
            storage=os.fspath(storage) if storage is not None else environment.storage,
            framework=framework,
            preload=tuple(preload),
            progress=progress if progress is not None else environment.progress is not False,
        )
        self._on_step = on_step
        self._run: JobRun | None = None
        self._directory: JobDirectory = locate(
            self._settings.name, Path(work_dir) if work_dir is not None else None, environment
        )

    @property
    def name(self) -> str:
        """Name of the job."""
        return self._settings.name

    @property
    def path(self) -> Path:
        """Directory of the job."""
        return self._directory.path

    def fit(self) -> Result:
        """Run the job to its end and return how it went.

        Raises:
            ConfigurationError: The storage, the coordination service or the directory cannot be used.
            JobAlreadyRunning: A job of this name runs.
            TrainingFailed: The train function raised; carries its traceback.
            JobStopped: The job was stopped; carries the result so far.
            NotEnoughWorkers: It stood below `min_workers` for longer than allowed.
            UsageError: The train function returned without taking a step.
            LaunchError: No worker comes up.
            CoordinationUnavailable: The coordination service went away for good.
            KeyboardInterrupt: Ctrl-C was pressed twice.
        """
        run = JobRun(self._settings, self._directory, self._payload, self._on_step)
        self._run = run
        try:
            return run.run()
        finally:
            self._run = None

    def resize(self, workers: int) -> str:
        """Ask for another number of workers, within the bounds; return the controller's answer.

        Raises:
            UsageError: `fit` is not running, or the request was refused.
        """
        controls = self._controls()
        return self._ask(controls.resize(workers, reason="on request (trainer.resize)"))

    def drain(self, worker_id: str) -> str:
        """Ask one worker to leave at the next step boundary; return the controller's answer.

        Raises:
            UsageError: `fit` is not running, or the request was refused.
        """
        controls = self._controls()
        return self._ask(controls.drain(WorkerId(worker_id), reason="drained on request (trainer.drain)"))

    def stop(self) -> None:
        """End the job after the current step, with a checkpoint; `fit` then raises JobStopped.

        Raises:
            UsageError: `fit` is not running.
        """
        self._ask(self._controls().stop(reason="on request (trainer.stop)"))

    def status(self) -> JobStatus:
        """Return how the job stands: its world, its workers, its progress.

        Raises:
            UsageError: `fit` is not running.
        """
        return self._controls().status()

    def _ask(self, request: ControlRequest) -> str:
        """Wait for the answer; a job that ends meanwhile takes its coordination service, and the answer, with it."""
        run = self._run
        give_up_s = time.monotonic() + _ANSWER_TIMEOUT_S
        while True:
            try:
                answer = self._controls().answer(request, _ANSWER_POLL_S)
            except (CoordinationError, UsageError):
                if self._run is run and run is not None:
                    if time.monotonic() >= give_up_s:
                        raise
                    time.sleep(_RETRY_S)
                    continue
                if request.action == "stop":
                    return "the job has ended"
                raise UsageError(f"job {self.name!r} ended before it could {request.action}") from None
            if not answer.accepted:
                raise UsageError(f"job {self.name!r}: {answer.message}")
            return answer.message

    def _controls(self) -> JobControls:
        run = self._run
        if run is None or run.controls is None:
            raise UsageError(
                f"job {self.name!r} does not run: call this from another thread or from on_step during fit()"
            )
        return run.controls


def _instance(parameter: str, value: Any, kind: type[Any]) -> Any:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ConfigurationError(parameter, f"{value!r} is no {kind.__name__}", f"Write et.{kind.__name__}(...)")
    return value
