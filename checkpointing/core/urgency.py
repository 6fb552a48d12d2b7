"""What to write where when there is little time left."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Loss(enum.IntEnum):
    """What will be lost; what survives a greater loss survives the smaller ones."""

    WORKER = 1
    """The process."""
    NODE = 2
    """The machine with its memory and disks."""
    CLUSTER = 3
    """All machines of the job."""


@dataclass(frozen=True, slots=True)
class Option:
    """A place that a state could be saved to.

    Attributes:
        name: The tier's.
        survives: The greatest loss that it survives.
        nbytes_per_s: How fast it took the last saves; 0 if not known.
    """

    name: str
    survives: Loss
    nbytes_per_s: float = 0.0

    def seconds_for(self, nbytes: int) -> float:
        """Return how long saving so much would take; 0 if not known."""
        return nbytes / self.nbytes_per_s if self.nbytes_per_s else 0.0


def choose_for_deadline(options: Sequence[Option], losing: Loss, nbytes: int, left_s: float) -> tuple[str, ...]:
    """Return where to save, in this order.

    First the fastest place that survives, whatever the estimate says: there is nothing better to try. Then the others
    that survive, faster ones first, as long as the estimates fit into what is left.

    Args:
        options: The places, in the order of preference among equals.
        losing: What will be lost.
        nbytes: The size of the state.
        left_s: The time until then.
    """
    surviving = sorted(
        (option for option in options if option.survives >= losing), key=lambda option: option.seconds_for(nbytes)
    )
    chosen: list[str] = []
    for option in surviving:
        needed_s = option.seconds_for(nbytes)
        if chosen and needed_s > left_s:
            break
        chosen.append(option.name)
        left_s -= needed_s
    return tuple(chosen)
