"""TrainState: everything a step changes, and the two transactions on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from elastic_train.context import get_runtime
from elastic_train.errors import UsageError
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.evaluation import EvaluateBatch, Evaluation
from elastic_train.worker.runtime import Runtime
from elastic_train.worker.steps import Loop, Step
from elastic_train.worker.streams import ElasticStreams


class TrainState:
    """All that a training step changes: what is kept whole, sent to joining workers and saved in checkpoints.

    Args:
        items: Models, optimizers, schedulers, scalers: anything with ``state_dict`` and ``load_state_dict``, by name.

    Raises:
        UsageError: Not inside a train function, or a second TrainState.
        StateNotRestorable: An item has no state that can be restored; says which.

    Example:
        >>> state = TrainState(model=model, optimizer=optimizer)
        >>> for step in state.steps(batches):
        ...     with step:
        ...         for inputs, targets in step:
        ...             loss = step.backward(F.cross_entropy(model(inputs), targets))
        ...         optimizer.step()
        ...         step.report(loss=loss)
    """

    def __init__(self, **items: Any) -> None:
        self._runtime: Runtime = get_runtime()
        self._runtime.bind(items)
        self._loops = 0
        self._passed = 0  # committed steps of the loops this train function has gone through
        self._open: Loop | None = None
        self._evaluations = 0  # since the last step was yielded

    @property
    def committed_steps(self) -> int:
        """Return the number of steps committed up to this place in the program."""
        return self._passed + (self._open.position if self._open is not None else 0)

    def steps(self, batches: ElasticBatches | ElasticStreams) -> Iterator[Step]:
        """Yield every step of `batches` that is not committed yet, each until it is.

        A worker that joins goes on where the others are; after a restart, where the newest checkpoint is.

        Raises:
            ConfigurationError: The batches cannot be divided among the job's logical shards.
        """
        loop = Loop(self._runtime, f"loop-{self._loops}", batches)
        self._loops += 1
        self._open = loop
        for step in loop:
            self._evaluations = 0
            yield step
        self._passed += loop.position
        self._open = None
        self._evaluations = 0

    def evaluate(self, batches: ElasticBatches, evaluate_batch: EvaluateBatch) -> dict[str, float]:
        """Evaluate on all of `batches` once, divided among the workers, without gradients and in evaluation mode.

        Args:
            batches: Read for one data epoch.
            evaluate_batch: Called as ``evaluate_batch(inputs, targets)`` (the members of a batch) for each piece;
                returns a dict of means over the piece, e.g. ``{"loss": ..., "accuracy": ...}``.

        Returns:
            The means over all samples; the same on every worker and at every world size.

        Raises:
            UsageError: `batches` are streams.
        """
        if isinstance(batches, ElasticStreams):  # type: ignore[unreachable]  # for those without a type checker
            raise UsageError("evaluate on ElasticBatches: a stream cannot be cut into pieces for anybody to compute")
        name = f"{self.committed_steps}/{self._evaluations}"
        self._evaluations += 1
        self._runtime.join()
        return dict(Evaluation(self._runtime, name, batches, evaluate_batch).run())
