"""When to save: policies over what is known at a step boundary, and the interval that costs least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Moment:
    """What is known at a step boundary.

    Attributes:
        step: The step just done.
        now_s: On any clock that does not go back.
        last_step: The step of the last save, or the one training began with.
        last_s: When that was, on the same clock.
        preempted: Whether a notice says that this worker or node will be taken.
        save_cost_s: By how much a save holds training up, as measured; 0 if not known yet.
        write_s: How long a save takes until it is committed, as measured; 0 if not known yet.
    """

    step: int
    now_s: float
    last_step: int
    last_s: float
    preempted: bool = False
    save_cost_s: float = 0.0
    write_s: float = 0.0


class SavePolicy(Protocol):
    """Say whether to save.

    What depends on a clock must be asked in one process, and its answer told to the others: their clocks differ.
    """

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        ...


@dataclass(frozen=True, slots=True)
class SaveEverySteps:
    """Save when so many steps were done since the last save."""

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"SaveEverySteps({self.steps}): steps must be 1 or more")

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        done = moment.step - moment.last_step
        return f"{done} steps since the last save" if done >= self.steps else ""


@dataclass(frozen=True, slots=True)
class SaveEverySeconds:
    """Save when so much time has passed since the last save."""

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"SaveEverySeconds({self.seconds}): seconds must be positive")

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        passed = moment.now_s - moment.last_s
        return f"{passed:.0f} s since the last save" if passed >= self.seconds else ""


@dataclass(frozen=True, slots=True)
class SaveOnPreemption:
    """Save when a preemption notice came, once a step."""

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        return "a preemption notice" if moment.preempted and moment.step > moment.last_step else ""


@dataclass(frozen=True, slots=True, init=False)
class AnyOf:
    """Save when any of several policies says so; the reason is the first one's."""

    policies: tuple[SavePolicy, ...]

    def __init__(self, *policies: SavePolicy) -> None:
        object.__setattr__(self, "policies", policies)

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        return next((reason for policy in self.policies if (reason := policy.due(moment))), "")


@dataclass(frozen=True, slots=True)
class SaveAtBestInterval:
    """Save as often as costs the least, from the measured cost of a save and the rate of failures.

    Attributes:
        mtbf_s: The mean time between failures of the whole job; see :func:`estimate_mtbf_s`.
        first_s: The interval until the cost has been measured.
    """

    mtbf_s: float
    first_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.mtbf_s > 0:
            raise ValueError(f"SaveAtBestInterval({self.mtbf_s}): the mean time between failures must be positive")

    def due(self, moment: Moment) -> str:
        """Return why to save now, or ""."""
        passed = moment.now_s - moment.last_s
        if not moment.save_cost_s:
            return f"{passed:.0f} s since the last save; its cost is not known yet" if passed >= self.first_s else ""
        best = choose_interval(moment.save_cost_s, self.mtbf_s, moment.write_s)
        return f"{passed:.0f} s since the last save; {best.reason}" if passed >= best.seconds else ""


@dataclass(frozen=True, slots=True)
class Interval:
    """How often to save, and why.

    Attributes:
        seconds: Between two saves.
        overhead: The share of time that saving, and doing again what failures undid, cost at this interval.
        reason: For people.
    """

    seconds: float
    overhead: float
    reason: str


def choose_interval(cost_s: float, mtbf_s: float, write_s: float = 0.0) -> Interval:
    """Return the interval at which saving and redoing work together cost the least.

    This is Daly's estimate (J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    FGCS 22, 2006), of which Young's `sqrt(2 * cost * mtbf)` (CACM 17, 1974) is the first term. A save that is still
    being written when the next one begins is of no use, so the time that writing takes is a lower bound.

    Args:
        cost_s: By how much one save holds training up.
        mtbf_s: The mean time between failures.
        write_s: How long one save takes until it is committed.

    Raises:
        ValueError: A time is negative, or `mtbf_s` is not positive.
    """
    if cost_s < 0 or write_s < 0 or not mtbf_s > 0:
        raise ValueError(f"cost {cost_s} s and writing {write_s} s must not be negative, and {mtbf_s} s be positive")
    if cost_s >= 2 * mtbf_s:
        best, how = mtbf_s, "a save costs more than failures leave time for"
    else:
        ratio = cost_s / (2 * mtbf_s)
        best = math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s
        how = "Daly's optimum"
    if best < write_s:
        best, how = write_s, f"no save before the last one is written, which takes {write_s:.3g} s"
    best = max(best, 1e-3)
    # Half an interval of work is lost on average, and what was not yet written with it.
    overhead = cost_s / (best + cost_s) + (best / 2 + write_s) / mtbf_s
    return Interval(
        best,
        min(1.0, overhead),
        f"every {best:.3g} s: {how} for a save that costs {cost_s:.3g} s and a failure every {mtbf_s:.3g} s; "
        f"saving and redoing cost {100 * min(1.0, overhead):.2g} % of the time",
    )


def estimate_mtbf_s(failures: int, observed_s: float, expected_mtbf_s: float) -> float:
    """Return the mean time between failures after seeing some.

    The mean of a gamma prior worth one failure: without any observation it is what was expected, and with many it is
    what was observed.
    """
    return (observed_s + expected_mtbf_s) / (failures + 1)
