"""A finished run on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from elastic_train.core.goodput import Bucket, Goodput
from elastic_train.core.records import Cause
from elastic_train.trainer.live_view import metrics_text
from elastic_train.trainer.wording import brief

if TYPE_CHECKING:
    from elastic_train.trainer.result import Result

_CAUSE_STYLES = {
    Cause.START: "default",
    Cause.LOSS: "red",
    Cause.FORMATION: "red",
    Cause.BROKEN: "red",
    Cause.DRAIN: "yellow",
    Cause.JOIN: "green",
    Cause.RESIZE: "cyan",
    Cause.RECOVER: "magenta",
    Cause.STOP: "default",
}
_BUCKET_STYLES = {
    Bucket.TRAINING: "green",
    Bucket.REDONE: "red",
    Bucket.REFORMING: "yellow",
    Bucket.WAITING: "magenta",
    Bucket.STARTING: "blue",
    Bucket.IDLE: "bright_black",
}
_BAR_WIDTH = 50


def summary(result: Result) -> RenderableType:
    """Return what happened, what it cost and where to look further."""
    return Panel(
        Group(_headline(result), Text(), _changes(result), Text(), _goodput(result.goodput), Text(), _places(result)),
        title=Text.assemble(("elastic-train", "bold"), (" · ", "dim"), (result.name, "bold cyan")),
        title_align="left",
        border_style="green",
        padding=(1, 2),
    )


def _headline(result: Result) -> Text:
    redone = result.goodput.steps_redone
    line = Text.assemble(
        (f"{result.steps:,}", "bold"),
        f" steps and {result.goodput.samples:,} samples in ",
        (f"{result.wall_s:.1f} s", "bold"),
        ", ",
        (f"{redone} redone", "bold green" if redone == 0 else "bold yellow"),
        ".",
    )
    if result.metrics:
        line.append(f"  {metrics_text(result.metrics)}", style="bold")
    return line


def _changes(result: Result) -> Table:
    table = Table(box=None, header_style="bold dim", padding=(0, 2, 0, 0))
    for heading in ("MEMBERSHIP\nEPOCH", "\nAT", "\nWORKERS", "GOES ON\nAFTER"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("\nWHY", overflow="fold")
    for change in result.membership_history:
        style = _CAUSE_STYLES[change.cause]
        table.add_row(
            str(change.membership_epoch),
            f"{change.begun_at_s:.1f} s",
            str(change.world_size),
            "" if change.change_s is None else f"{change.change_s:.2f} s",
            Text.assemble(
                (change.cause.value, f"bold {style}"), (f"  {brief(change.reason)}" if change.reason else "", "dim")
            ),
        )
    return table


def _goodput(goodput: Goodput) -> RenderableType:
    head = Text.assemble(
        f"{goodput.paid_s:,.0f} worker-seconds paid for; goodput ",
        (f"{goodput.ratio:.0%}", "bold green"),
        (" of the samples that undisturbed workers would have made of them", "dim"),
    )
    return Group(head, Text.assemble(*_bar(goodput)), Text.assemble(*_legend(goodput)))


def _bar(goodput: Goodput) -> Iterator[tuple[str, str]]:
    paid_s = goodput.paid_s
    drawn, told_s = 0, 0.0
    for bucket, spent_s in goodput.seconds.items():
        told_s += spent_s
        until = round(_BAR_WIDTH * told_s / paid_s) if paid_s > 0 else 0
        yield "█" * (until - drawn), _BUCKET_STYLES[bucket]
        drawn = until


def _legend(goodput: Goodput) -> Iterator[tuple[str, str]]:
    for bucket, spent_s in goodput.seconds.items():
        if spent_s > 0:
            yield "■ ", _BUCKET_STYLES[bucket]
            yield f"{bucket.value} {spent_s / goodput.paid_s:.0%}   ", ""


def _places(result: Result) -> Text:
    lines = [f"journal     {result.journal_path}"]
    if result.checkpoint is not None:
        lines.insert(0, f"checkpoint  {result.checkpoint.key} in {result.checkpoint.storage}")
    return Text("\n".join(lines), style="dim", overflow="fold")
