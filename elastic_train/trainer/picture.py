"""Draw a run: a metric and the world size over time, with what happened marked. Needs matplotlib (``[plot]``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_train.core.records import Cause
from elastic_train.errors import ConfigurationError

if TYPE_CHECKING:
    from elastic_train.trainer.result import Result

_COLOURS = {
    Cause.START: "#555555",
    Cause.LOSS: "#d62728",
    Cause.FORMATION: "#d62728",
    Cause.BROKEN: "#8c564b",
    Cause.STOP: "#555555",
    Cause.DRAIN: "#ff7f0e",
    Cause.JOIN: "#2ca02c",
    Cause.RESIZE: "#1f77b4",
    Cause.RECOVER: "#9467bd",
}
_LABELS = {
    Cause.START: "first world",
    Cause.LOSS: "worker lost",
    Cause.FORMATION: "formed again",
    Cause.BROKEN: "connection broken",
    Cause.DRAIN: "worker drained",
    Cause.JOIN: "worker joined",
    Cause.RESIZE: "resized",
    Cause.RECOVER: "enough workers again",
    Cause.STOP: "stop",
}
_LINE, _AREA = "#1f4e79", "#9ecae1"


def draw(result: Result, path: Path, metric: str) -> Path:
    """Write the picture of a run and return its path.

    Raises:
        ConfigurationError: No step reported `metric`, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no global state, no display
    except ImportError as error:
        raise ConfigurationError("plot", "matplotlib is not installed", "pip install elastic-train[plot]") from error
    points = [(step.at_s, step.metrics[metric]) for step in result.metrics_history if metric in step.metrics]
    if not points:
        known = ", ".join(sorted(result.metrics)) or "none at all"
        raise ConfigurationError("metric", f"no step reported {metric!r}", f"These were reported: {known}")
    figure = Figure(figsize=(11, 6), layout="constrained", dpi=150)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    _draw_metric(upper, points, metric)
    _draw_world(lower, result)
    _mark_changes(upper, lower, result)
    figure.suptitle(_title(result), fontsize=13, x=0.01, ha="left", fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_metric(axes: Any, points: list[tuple[float, float]], metric: str) -> None:
    times, values = zip(*points, strict=True)
    axes.plot(times, values, color=_LINE, linewidth=0.7, alpha=0.35)
    axes.plot(times, _smooth(values), color=_LINE, linewidth=1.8, label=f"{metric} (mean over the global batch)")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)


def _draw_world(axes: Any, result: Result) -> None:
    changes = [change for change in result.membership_history if change.change_s is not None]
    times = [change.begun_at_s + (change.change_s or 0.0) for change in changes] + [result.wall_s]
    sizes = [change.world_size for change in changes]
    if sizes:
        axes.stairs(sizes, times, baseline=0, fill=True, color=_AREA)
        axes.stairs(sizes, times, baseline=None, color=_LINE, linewidth=1.8)
        axes.set_ylim(0, max(sizes) + 0.9)
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("workers")
    axes.set_xlabel("seconds since the job began")
    axes.grid(alpha=0.25, axis="x")


def _mark_changes(upper: Any, lower: Any, result: Result) -> None:
    shown: set[Cause] = set()
    row, labelled_at = 0, float("-inf")
    for change in result.membership_history:
        colour = _COLOURS[change.cause]
        for axes in (upper, lower):
            axes.axvline(change.begun_at_s, color=colour, linewidth=1.2, linestyle="--", alpha=0.8)
        if change.cause not in shown:
            shown.add(change.cause)
            upper.plot([], [], color=colour, linestyle="--", label=_LABELS.get(change.cause, change.cause.value))
        if change.change_s is not None:
            row = (row + 1) % 3 if change.begun_at_s - labelled_at < 0.05 * result.wall_s else 0
            labelled_at = change.begun_at_s
            upper.annotate(
                f"{change.change_s:.2f} s",
                (change.begun_at_s, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -11 - 11 * row),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
    upper.legend(loc="upper right", fontsize=8, framealpha=0.9)


def _title(result: Result) -> str:
    account = result.goodput
    return (
        f"{result.name}: {result.steps} steps, {len(result.membership_history)} membership epochs, "
        f"{account.steps_redone} steps redone, goodput {account.ratio:.0%}"
    )


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Return the mean of each value's neighbourhood: no lag, unlike a running average."""
    reach = len(values) // 60
    return [
        sum(values[max(0, index - reach) : index + reach + 1])
        / (min(len(values), index + reach + 1) - max(0, index - reach))
        for index in range(len(values))
    ]
