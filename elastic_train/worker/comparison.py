"""Comparing what must be the same on all workers: what their arithmetic depends on, and the state itself."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgpack

from elastic_train.core.agreement import differences, odd_ones
from elastic_train.errors import StateDiverged, UsageError, WorkerLeaving
from elastic_train.ports import DeterministicFramework

if TYPE_CHECKING:
    from elastic_train.worker.runtime import Runtime

_TOLD = 8  # names of tensors in a message


class Comparison:
    """Compares between two steps, when it is due: all members of a world come to the same conclusion.

    In a deterministic job every new world compares what bits depend on beside the program; and every so many committed
    steps the members compare digests of their state. A worker whose state is not that of the majority has been
    corrupted: it leaves, is replaced, and its successor gets the state of the others. Without a majority nobody can
    tell which is right, and the job fails.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._world = 0  # the newest membership epoch whose arithmetic was compared
        self._compared = (0, 0)  # membership epoch and version of the newest comparison of states
        self._recorded = -1  # version of the newest digest in the journal

    def compare(self, loop: str) -> None:
        """Compare what is due before the next step.

        Raises:
            GroupBroken: A member was lost meanwhile.
            UsageError: Workers compute differently; says which is odd.
            StateDiverged: Workers have different states, and there is no majority.
            WorkerLeaving: This worker's state is not that of the majority.
        """
        runtime = self._runtime
        place = runtime.membership_epoch, runtime.progress.version
        if runtime.job.deterministic and self._world != runtime.membership_epoch:
            self._compare_arithmetic()
            self._world = runtime.membership_epoch
        every = runtime.job.digest_every_steps
        if every and runtime.progress.steps and runtime.progress.steps % every == 0 and self._compared != place:
            self._compare_states(loop)
            self._compared = place

    def record_end(self, loop: str) -> None:
        """Note the digest of the state that a loop ends with."""
        if self._runtime.job.digest_every_steps:
            self._digests(loop)

    def _compare_arithmetic(self) -> None:
        framework = self._runtime.framework
        assert isinstance(framework, DeterministicFramework), "Runtime.prepare has seen to that"
        said = self._gather(framework.arithmetic())
        odd = odd_ones(said)
        if odd:
            told = "; ".join(f"{worker} with {said[worker]}" for worker in said)
            raise UsageError(
                f"workers would not compute the same bits: {', '.join(odd)} differ from the others ({told}). In a "
                "deterministic job give all workers the same kind of device and torch.set_num_threads()"
            )

    def _compare_states(self, loop: str) -> None:
        digests = self._digests(loop)
        totals = self._gather(_total(digests))
        odd = odd_ones(totals)
        if not odd:
            return
        runtime = self._runtime
        everything: dict[str, dict[str, str]] = {
            worker: msgpack.unpackb(bytes.fromhex(packed))
            for worker, packed in self._gather(msgpack.packb(digests).hex()).items()
        }
        reference = next((worker for worker in totals if worker not in odd), odd[0])
        tensors = sorted({name for who in odd for name in differences(everything[reference], everything[who])})
        runtime.journal.record(
            "state_diverged",
            membership_epoch=runtime.membership_epoch,
            version=runtime.progress.version,
            workers=list(odd),
            majority=len(odd) < len(totals),
            tensors=tensors,
        )
        told = ", ".join(tensors[:_TOLD]) + (f" and {len(tensors) - _TOLD} more" if len(tensors) > _TOLD else "")
        if len(odd) == len(totals):
            raise StateDiverged(odd, runtime.progress.steps, told)
        if runtime.context().worker_id in odd:
            raise WorkerLeaving(f"its state is not that of the majority of workers: {told} differ")

    def _digests(self, loop: str) -> dict[str, str]:
        runtime = self._runtime
        engine = runtime.deterministic_engine
        if engine is None:
            raise UsageError(f"there are no digests of the state with framework={runtime.framework.name!r}")
        digests = engine.digests()
        if self._recorded != runtime.progress.version:
            runtime.journal.record(
                "state_digest",
                membership_epoch=runtime.membership_epoch,
                loop=loop,
                step=runtime.progress.positions.get(loop, 0) - 1,
                version=runtime.progress.version,
                digest=_total(digests),
                tensors=digests,
            )
            self._recorded = runtime.progress.version
        return digests

    def _gather(self, value: str) -> dict[str, str]:
        """Return what every worker says, by rank."""
        mine = msgpack.packb([self._runtime.context().worker_id, value])
        return dict(msgpack.unpackb(theirs) for theirs in self._runtime.group.all_gather_bytes(mine))


def _total(digests: Mapping[str, str]) -> str:
    """Return one digest of them all."""
    told = "\n".join(f"{name} {digest}" for name, digest in sorted(digests.items()))
    return blake2b(told.encode(), digest_size=16).hexdigest()
