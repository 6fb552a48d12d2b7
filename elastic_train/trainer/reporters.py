"""How a running job shows itself: a live view on a terminal, plain lines elsewhere, or the log only.

A reporter is driven by the thread that runs `fit`; none starts a thread of its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from elastic_train.core.records import WorkerId
from elastic_train.trainer.live_view import duration, metrics_text, render
from elastic_train.trainer.progress_model import Happening, ProgressModel, Tone

_LINE_EVERY_S = 2.0
_REFRESH_EVERY_S = 0.1
_WORKER_COLOURS = ("cyan", "magenta", "blue", "green", "yellow", "bright_cyan", "bright_magenta", "bright_blue")

_log = logging.getLogger("elastic_train")
_LEVELS = {Tone.GOOD: logging.INFO, Tone.NEUTRAL: logging.INFO, Tone.WARNING: logging.WARNING, Tone.BAD: logging.ERROR}


class Reporter(Protocol):
    """Shows a job while it runs."""

    def update(self, model: ProgressModel, now: float, happenings: Iterable[Happening]) -> None:
        """Show the present state and what is new; called often, decides itself what to draw."""

    def worker_line(self, worker_id: WorkerId, rank: int | None, line: str) -> None:
        """Show one line that a worker printed."""

    def close(self, model: ProgressModel, now: float) -> None:
        """Show the last state and give the terminal back."""


def make_reporter(*, progress: bool, stream: TextIO | None = None) -> Reporter:
    """Choose how to show a job.

    Args:
        progress: False: logs only.
        stream: Where to; default: stderr, so that a script's own output stays clean.
    """
    if not progress:
        return LogReporter()
    console = Console(file=stream or sys.stderr)
    if console.is_jupyter:  # a live view there would need a thread and widgets; stderr is shown in red
        return PlainReporter(stream or sys.stdout)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console)
    return PlainReporter(stream or sys.stderr)


class LiveReporter:
    """A panel that redraws itself at the bottom of the terminal; everything else scrolls above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # no refresh thread, and stdout and stderr of the user's script stay what they are until something is printed
        self._live = Live(
            console=console, auto_refresh=False, transient=False, redirect_stdout=True, redirect_stderr=True
        )
        self._drawn_at = float("-inf")

    def update(self, model: ProgressModel, now: float, happenings: Iterable[Happening]) -> None:
        """Redraw at most ten times a second, at once where something happened."""
        if any(True for _ in happenings) or now - self._drawn_at >= _REFRESH_EVERY_S:
            self._drawn_at = now
            self._live.start()  # not before there is something to show; later calls do nothing
            self._live.update(render(model, now), refresh=True)

    def worker_line(self, worker_id: WorkerId, rank: int | None, line: str) -> None:
        """Print it above the panel, with the worker's colour."""
        colour = _WORKER_COLOURS[sum(worker_id.encode()) % len(_WORKER_COLOURS)]
        self._console.print(
            Text.assemble((f"{prefix(worker_id, rank)} ", colour), Text.from_ansi(line)), soft_wrap=True
        )

    def close(self, model: ProgressModel, now: float) -> None:
        """Leave the last state on the screen, if anything was ever shown."""
        if not self._live.is_started:
            return
        self._live.update(render(model, now), refresh=True)
        self._live.stop()


class PlainReporter:
    """One line per happening, and one every few seconds for the step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told_at = float("-inf")
        self._told_step: int | None = None

    def update(self, model: ProgressModel, now: float, happenings: Iterable[Happening]) -> None:
        """Print what is new; a step line at most every two seconds."""
        for happening in happenings:
            self._print(f"{happening.at - model.begun_at:8.1f} s  {happening.text}")
        if now - self._told_at >= _LINE_EVERY_S and model.step != self._told_step:
            self._told_at, self._told_step = now, model.step
            self._print(f"{now - model.begun_at:8.1f} s  {step_line(model, now)}")

    def worker_line(self, worker_id: WorkerId, rank: int | None, line: str) -> None:
        """Print it."""
        self._print(f"{prefix(worker_id, rank)} {line}")

    def close(self, model: ProgressModel, now: float) -> None:
        """Print the last step if it was not."""
        if model.step != self._told_step:
            self._print(f"{now - model.begun_at:8.1f} s  {step_line(model, now)}")

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)  # this is the place that prints


class LogReporter:
    """Nothing but the logger ``elastic_train``."""

    def update(self, model: ProgressModel, now: float, happenings: Iterable[Happening]) -> None:  # noqa: ARG002  # Reporter
        """Log what is new."""
        for happening in happenings:
            _log.log(_LEVELS[happening.tone], "job %s: %s", model.job, happening.text)

    def worker_line(self, worker_id: WorkerId, rank: int | None, line: str) -> None:
        """Log it."""
        _log.info("%s %s", prefix(worker_id, rank), line)

    def close(self, model: ProgressModel, now: float) -> None:
        """Do nothing."""


def prefix(worker_id: WorkerId, rank: int | None) -> str:
    """Return what stands before a worker's line."""
    return f"[{worker_id}]" if rank is None else f"[{worker_id} rank {rank}]"


def step_line(model: ProgressModel, now: float) -> str:
    """Return the state of the job in one plain line."""
    if model.step is None:
        return model.phase
    total = "" if model.total_steps is None else f"/{model.total_steps}"
    eta_s = model.eta_s(now)
    parts = [
        f"step {model.step + 1}{total}",
        metrics_text(model.metrics),
        f"{model.samples_per_s(now):.0f} samples/s",
        f"world {model.world_size}",
        f"ETA {duration(eta_s)}" if eta_s is not None else "",
    ]
    return "  ".join(part for part in parts if part)
