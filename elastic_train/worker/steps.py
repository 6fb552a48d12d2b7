"""The step: one optimizer update over one global batch, as a transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from elastic_train.core.data import Share, mix
from elastic_train.core.records import Activity
from elastic_train.errors import GroupBroken, StepAborted, UsageError, WorkerLeaving
from elastic_train.ports import StepPlan
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.evaluation import Evaluation
from elastic_train.worker.metrics import LocalMetrics
from elastic_train.worker.readers import open_reader
from elastic_train.worker.reading import Part, Reader
from elastic_train.worker.replica import Transaction
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.streams import ElasticStreams

_BREAK_GRACE_S = 1.0  # how long the news of a broken world may take after the user's own collective has failed


class Loop:
    """One pass over a source of data: yields each step until every worker has committed it."""

    def __init__(self, runtime: Runtime, name: str, batches: ElasticBatches | ElasticStreams) -> None:
        self.name = name
        self.reader: Reader = open_reader(batches, runtime, name, per_shard=runtime.job.deterministic)
        self._runtime = runtime

    @property
    def position(self) -> int:
        """Return the number of committed steps: the whole position in the data."""
        return self._runtime.progress.positions.get(self.name, 0)

    def __iter__(self) -> Iterator[Step]:
        runtime = self._runtime
        runtime.join()
        reader = self.reader
        runtime.journal.record("loop_started", loop=self.name, total_steps=reader.total_steps, **reader.describe())
        try:
            while True:
                self._boundary()
                if reader.finished():
                    runtime.comparison.record_end(self.name)
                    return
                while not runtime.enter(Transaction.STEP):
                    Evaluation.attend(runtime)
                if reader.finished() or not self._agree(self._prepare) or reader.finished():
                    continue
                step = Step(runtime, self)
                yield step
                step.require_entered()
        finally:
            reader.close()

    def _boundary(self) -> None:
        if self._runtime.change_agreed and not self._agree(self.reader.hand_over):
            return  # the world broke before the change: it is agreed on anew
        self._runtime.boundary()

    def _prepare(self) -> None:
        self._runtime.comparison.compare(self.name)
        self.reader.prepare()

    def _agree(self, with_others: Callable[[], None]) -> bool:
        """Do what all members do together; False if the world broke meanwhile and another was formed."""
        try:
            with_others()
        except GroupBroken as error:
            self._runtime.recover(error)
            return False
        return True


class Step:
    """One step. Use as ``with step:``; inside, iterate it for this worker's part of the batch.

    Attributes:
        index: Number of this step in its loop, from 0.
        data_epoch: Pass over the data it belongs to, from 0.
        committed: Whether it has been committed; False after an aborted attempt, which the loop yields again.
    """

    def __init__(self, runtime: Runtime, loop: Loop) -> None:
        self.index = loop.position
        self.committed = False
        self._runtime = runtime
        self._loop = loop
        self._membership_epoch = runtime.membership_epoch
        self._share: Share = loop.reader.share(self.index)
        self.data_epoch = self._share.data_epoch
        self._announced: list[float] = []  # what all members' readers say, summed
        self._metrics = LocalMetrics()
        self._entered = False
        self._reduced = False
        self._part = (-1, -1)  # of the part in the user's hands: its (first) logical shard, its number within it
        self._passes = 0  # over the parts
        self._part_samples = 0  # of the part in the user's hands; 0: padding, or none
        self._in_part = False
        self._last_part = False
        self._started_at = 0.0

    # ------------------------------------------------------------------ inside the block

    def __enter__(self) -> Self:
        self._entered = True
        self._runtime.where = self.where
        self._started_at = time.monotonic()
        job, share = self._runtime.job, self._share
        shard = share.shards[0] if not job.deterministic else job.logical_shards
        self._runtime.engine.begin(
            StepPlan(
                step=self.index,
                seed=mix(job.seed, self.index, shard) >> 1,
                samples=share.samples,
                global_samples=share.global_samples,
                per_shard=job.deterministic,
                shards=share.shards,
                logical_shards=job.logical_shards,
            )
        )
        return self

    def __iter__(self) -> Iterator[Any]:
        """Yield this worker's part of the global batch, in one piece or in micro-batches.

        A worker without samples in a short last batch gets one sample that counts for nothing, so that the code in the
        loop runs on every worker.
        """
        if not self._entered:
            raise UsageError("read a step's batch inside `with step:`")
        runtime, reader, share = self._runtime, self._loop.reader, self._share
        runtime.journal.record(
            "step_read",
            membership_epoch=self._membership_epoch,
            loop=self._loop.name,
            step=self.index,
            version=runtime.progress.version,
            data_epoch=share.data_epoch,
            shards=share.shards,
            **reader.proof(share),
        )
        self._passes += 1
        self._part = (-1, -1)
        self._metrics.begin_pass()
        for part in reader.parts(share):
            self._abort_if_interrupted()
            self._hold(part)
            yield part.data
        self._in_part = False
        self._reduce()

    def backward(self, loss: Any) -> Any:
        """Accumulate the gradient of the mean loss over this part; reduce over all workers on the last one.

        Args:
            loss: Scalar: the mean over the samples of the part in hand.

        Returns:
            The loss, detached.

        Raises:
            UsageError: Not inside the ``for ... in step`` loop.
        """
        if not self._in_part:
            raise UsageError("call step.backward(loss) inside the `for inputs, targets in step:` loop")
        self._abort_if_interrupted()
        detached = self._runtime.engine.backward(loss, self._part_samples, last=self._last_part)
        self._metrics.add_loss(detached)
        return detached

    def report(self, **metrics: Any) -> None:
        """Report metrics; they are published, as means over the global batch, when the step commits.

        Args:
            metrics: Each this worker's mean over the samples in hand or, after the loop, over its whole share. The
                loss that `backward` returned for the last part stands, after the loop, for all of them.
        """
        if self._in_part:
            self._metrics.add(metrics)
        else:
            self._metrics.add_after(metrics, self._share.samples)

    # ------------------------------------------------------------------ leaving the block

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            if not self._reduced:
                raise UsageError(
                    "the step was left before its batch was read to the end: "
                    "write `for inputs, targets in step:` and do not break out of it"
                )
            self._commit()
            return False
        if self._is_abort(error):
            self._abort(error)
            return True
        return False

    def require_entered(self) -> None:
        """Raise UsageError if the user forgot the ``with``."""
        if not self._entered:
            raise UsageError("a step is a transaction: write `with step:` in the loop's body")

    @property
    def where(self) -> tuple[int, tuple[int, int]]:
        """Return the step's index and this worker's half-open range of positions in the sample order."""
        return self.index, self._share.samples_of_all_data_epochs

    def _hold(self, part: Part) -> None:
        shard = part.shards[0]
        self._part = shard, self._part[1] + 1 if shard == self._part[0] else 0
        self._part_samples, self._last_part, self._in_part = part.samples, part.last, True
        self._metrics.open_part(shard, part.samples)
        job, engine = self._runtime.job, self._runtime.deterministic_engine
        if job.deterministic and engine is not None:
            seed = mix(job.seed, self.index, *self._part, self._passes) >> 1
            engine.open_part(shard, part.samples, seed)

    def _reduce(self) -> None:
        runtime = self._runtime
        self._abort_if_interrupted()
        if runtime.job.deterministic:
            self._record_rows()  # while all members live: once one has committed, no loss of a member loses a number
        runtime.agent.progress.now(Activity.WAITING)
        control = runtime.control()
        heard = runtime.engine.reduce([*control, *self._loop.reader.announce()])
        runtime.agent.progress.now(Activity.COMPUTING)
        runtime.heard(heard[: len(control)])
        self._announced = heard[len(control) :]
        self._reduced = True

    def _commit(self) -> None:
        runtime = self._runtime
        runtime.commit()
        runtime.engine.commit()
        runtime.progress.advance(self._loop.name)
        self._loop.reader.committed(self._announced)
        runtime.where = None
        self.committed = True
        step_s = time.monotonic() - self._started_at
        runtime.agent.progress.step_took(step_s)
        runtime.journal.record(
            "step_committed",
            membership_epoch=self._membership_epoch,
            loop=self._loop.name,
            step=self.index,
            version=runtime.progress.version,
            samples=self._share.samples,
            global_samples=self._share.global_samples,
            metrics=self._metrics.sums(),
            step_s=round(step_s, 6),
            **({"named": self._metrics.names()} if runtime.job.deterministic else {}),
        )

    def _record_rows(self) -> None:
        runtime = self._runtime
        runtime.journal.record(
            "step_measured",
            membership_epoch=self._membership_epoch,
            loop=self._loop.name,
            step=self.index,
            version=runtime.progress.version,
            **self._metrics.rows(),
        )

    def _abort(self, error: BaseException) -> None:
        runtime = self._runtime
        runtime.where = None
        runtime.engine.rollback()
        runtime.journal.record(
            "step_aborted",
            membership_epoch=self._membership_epoch,
            loop=self._loop.name,
            step=self.index,
            reason=str(error) or type(error).__name__,
        )
        runtime.recover(error)
        self.committed = self._loop.position > self.index

    def _is_abort(self, error: BaseException) -> bool:
        if isinstance(error, StepAborted | GroupBroken):
            return True
        if isinstance(error, WorkerLeaving) or not isinstance(error, Exception):
            return False
        # The user's own collectives fail with the framework's error when a member is gone.
        agent = self._runtime.agent
        return self._runtime.framework.is_group_error(error) and agent.await_interruption(_BREAK_GRACE_S)

    def _abort_if_interrupted(self) -> None:
        if self._runtime.agent.interrupted:
            raise StepAborted("the world has changed")
