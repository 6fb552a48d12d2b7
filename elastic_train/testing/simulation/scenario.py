"""A fault plan as text: how a failing simulation is saved, made small, and played again.

::

    # I7: no step was committed within 48 s after the last fault
    seed 418
    workers 4
    12.3456 kill-worker 3 0.25

Every line after the settings is one fault: seconds since the start, its kind, its target and its amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from elastic_train.testing.simulation.faults import KINDS, Fault, plan_faults
from elastic_train.testing.simulation.invariants import Violation
from elastic_train.testing.simulation.job import Report, Setting, SimulatedJob

_SETTINGS = ("seed", "workers", "by_hand", "steps")

Play = Callable[[Setting], Report]


def play(setting: Setting) -> Report:
    """Simulate a job and return what came of it."""
    return SimulatedJob(setting).run()


def write(setting: Setting, violation: Violation | None = None) -> str:
    """Return a setting as text."""
    lines = [f"# {violation}".splitlines()[0]] if violation is not None else []
    lines += [f"seed {setting.seed}", f"workers {setting.workers}"]
    if setting.by_hand:
        lines.append("by_hand 1")
    if setting.total_steps is not None:
        lines.append(f"steps {setting.total_steps}")
    lines += [f"{fault.at_s:.4f} {fault.kind} {fault.target} {fault.amount:.4f}" for fault in faults_of(setting)]
    return "\n".join(lines) + "\n"


def read(text: str) -> Setting:
    """Return the setting that `write` wrote.

    Raises:
        ValueError: A line is neither a setting nor a fault.
    """
    settings: dict[str, int] = {}
    faults = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) == 2 and words[0] in _SETTINGS:
            settings[words[0]] = int(words[1])
        elif len(words) == 4 and words[1] in KINDS:
            faults.append(Fault(float(words[0]), words[1], int(words[2]), float(words[3])))
        elif words:
            raise ValueError(f"neither a setting nor a fault: {line!r}")
    return Setting(
        settings["seed"],
        settings["workers"],
        tuple(faults),
        by_hand="by_hand" in settings,
        total_steps=settings.get("steps"),
    )


def faults_of(setting: Setting) -> Sequence[Fault]:
    """Return the plan of a setting, drawn if it names none."""
    if setting.faults is not None:
        return setting.faults
    return plan_faults(setting.seed, setting.fault_count, setting.mean_interval_s)


def minimise(setting: Setting, violation: Violation, simulate: Play = play) -> tuple[Setting, Violation]:
    """Leave out faults as long as the same invariant is violated (Zeller and Hildebrandt's ddmin, TSE 2002)."""
    faults = list(faults_of(setting))
    pieces = 2
    while len(faults) >= 2:
        size = max(1, len(faults) // pieces)
        for start in range(0, len(faults), size):
            fewer = faults[:start] + faults[start + size :]
            found = simulate(replace(setting, faults=tuple(fewer))).violation
            if found is not None and found.invariant == violation.invariant:
                faults, violation, pieces = fewer, found, max(pieces - 1, 2)
                break
        else:
            if size == 1:
                break
            pieces = min(2 * pieces, len(faults))
    return replace(setting, faults=tuple(faults)), violation
