"""Readers: how a loop comes by the data of its steps, whatever it is read from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from elastic_train.core.data import Share


@dataclass(frozen=True, slots=True)
class Part:
    """What the user's loop gets at a time: a micro-batch.

    Attributes:
        shards: Half-open run of logical shards that its samples are of.
        samples: How many samples count; 0 in a filler, which exists so that the code in the loop runs on every worker.
        data: The batch.
        last: Whether it is this worker's last of the step.
    """

    shards: tuple[int, int]
    samples: int
    data: Any
    last: bool


class Reader(Protocol):
    """Where a loop's data comes from, and how far it has come. Used by the training thread only.

    Between two steps, in this order: `hand_over` where a change was agreed on, `finished`, `prepare`, `share`.
    In a step: `proof`, `parts`, `announce`, and `committed` if it was.
    """

    @property
    def total_steps(self) -> int | None:
        """Return how many steps there are; None where only the end of the data will tell."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what the journal must know to prove what was read."""
        ...

    def finished(self) -> bool:
        """Say whether every step is committed."""
        ...

    def hand_over(self) -> None:
        """Tell the others, in the world that will be left after this step as agreed, what they need to go on.

        Raises:
            GroupBroken: A member was lost meanwhile.
        """

    def prepare(self) -> None:
        """Come to an agreement with the other members of this world, where one is needed before the next step.

        Raises:
            GroupBroken: A member was lost meanwhile.
            UsageError: The members' data differ; says how.
        """

    def share(self, step: int) -> Share:
        """Return this worker's part of a step, in its present world."""
        ...

    def proof(self, share: Share) -> dict[str, Any]:
        """Return the fields of the journal record that says what is read for this share."""
        ...

    def parts(self, share: Share) -> Iterator[Part]:
        """Yield the share in micro-batches; where shards are kept apart, no part has samples of two."""
        ...

    def announce(self) -> list[float]:
        """Return what the others must know before the next step; summed over the world with the gradients."""
        ...

    def committed(self, heard: list[float]) -> None:
        """Count a step as done; `heard` is the sum of all members' announcements in it."""

    def close(self) -> None:
        """End what reads ahead; idempotent."""
