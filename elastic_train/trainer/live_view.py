"""The live view of a job as a rich renderable: a function of the model and the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elastic_train.core.records import WorkerStatus
from elastic_train.trainer.progress_model import Happening, ProgressModel, Tone, Worker

TONE_STYLES = {Tone.GOOD: "green", Tone.NEUTRAL: "default", Tone.WARNING: "yellow", Tone.BAD: "bold red"}

_PHASE_STYLES = {"running": "green", "paused": "yellow", "failed": "red", "succeeded": "green"}
_STATUS_MARKS = {
    WorkerStatus.STARTING: ("○", "dim"),
    WorkerStatus.READY: ("◍", "cyan"),
    WorkerStatus.LEAVING: ("◌", "yellow"),
    WorkerStatus.FINISHED: ("✓", "green"),
    WorkerStatus.FAILED: ("✗", "bold red"),
}
_BARS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 40
_HAPPENINGS_SHOWN = 5


def render(model: ProgressModel, now: float) -> RenderableType:
    """Draw the whole view."""
    title = Text.assemble(("elastic-train", "bold"), (" · ", "dim"), (model.job, "bold cyan"))
    return Panel(
        Group(_progress_line(model, now), _metrics_line(model, now), _world_line(model), _story(model)),
        title=title,
        title_align="left",
        subtitle=Text(duration(now - model.begun_at), style="dim"),
        subtitle_align="right",
        border_style=_PHASE_STYLES.get(model.phase, "blue"),
        padding=(0, 1),
    )


def metrics_text(metrics: Mapping[str, float], limit: int = 6) -> str:
    """Return metrics as ``loss 0.2314  accuracy 0.93``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:limit])


def duration(seconds: float) -> str:
    """Return seconds as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: Iterable[float], width: int) -> str:
    """Return the newest `width` groups of values as bars; each bar is the mean of its group."""
    points = [value for value in values if value == value and abs(value) != float("inf")]  # noqa: PLR0124  # NaN is unequal to itself
    if len(points) < 2:
        return ""
    size = -(-len(points) // width)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [sum(group) / len(group) for group in groups]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _progress_line(model: ProgressModel, now: float) -> RenderableType:
    style = _PHASE_STYLES.get(model.phase, "blue")
    phase = Text.assemble(("● ", style), (model.phase, f"bold {style}"))
    done = "-" if model.step is None else f"{model.step + 1:,}"
    total = "" if model.total_steps is None else f" / {model.total_steps:,}"
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    fraction, eta_s = model.fraction, model.eta_s(now)
    bar: RenderableType = Text(model.phase_reason, style="dim", overflow="ellipsis", no_wrap=True)
    right = ""
    if fraction is not None:
        bar = ProgressBar(total=1.0, completed=fraction, complete_style=style, finished_style="green")
        right = f"{fraction:.0%}" + (f"  ETA {duration(eta_s)}" if eta_s is not None else "")
    line.add_row(phase, Text.assemble("step ", (done, "bold"), (total, "dim")), bar, right)
    return line


def _metrics_line(model: ProgressModel, now: float) -> RenderableType:
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    line.add_column(no_wrap=True, justify="right")
    metrics = Text(metrics_text(model.metrics) or "no metrics yet", style="bold" if model.metrics else "dim")
    rates = (
        f"{model.samples_per_s(now):,.0f} samples/s  {model.steps_per_s(now):.1f} steps/s"
        if model.step is not None
        else ""
    )
    line.add_row(metrics, Text(rates, style="dim"))
    curve = sparkline((value for _, value in model.curve), _CURVE_WIDTH)
    return Group(line, Text.assemble((curve, "magenta"), (f"  {model.headline}", "dim"))) if curve else line


def _world_line(model: ProgressModel) -> RenderableType:
    smallest, largest = model.bounds
    head = Text.assemble(
        "world ",
        (str(model.world_size), "bold"),
        (f" in {smallest}..{largest}", "dim"),
        ("   membership epoch ", "dim"),
        str(model.membership_epoch),
        "   ",
    )
    members = sorted(model.workers.values(), key=_by_rank)
    return Text.assemble(head, *(part for worker in members for part in _worker(worker)))


def _worker(worker: Worker) -> Iterable[tuple[str, str]]:
    if worker.rank is not None and worker.status is WorkerStatus.READY:
        mark, style = "●", "green"
    else:
        mark, style = _STATUS_MARKS[worker.status]
    yield f"{mark} ", style
    yield worker.worker_id, "" if worker.rank is not None else "dim"
    yield "  ", ""


def _by_rank(worker: Worker) -> tuple[bool, int, str]:
    return worker.rank is None, worker.rank or 0, worker.worker_id


def _story(model: ProgressModel) -> RenderableType:
    lines = Table.grid(padding=(0, 1), expand=True)
    lines.add_column(justify="right", style="dim", no_wrap=True)
    lines.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    for happening in list(model.happenings)[-_HAPPENINGS_SHOWN:]:
        lines.add_row(f"{happening.at - model.begun_at:7.1f} s", happening_text(happening))
    return lines


def happening_text(happening: Happening) -> Text:
    """Return a line of the story in the style of its tone."""
    return Text(happening.text, style=TONE_STYLES[happening.tone])
