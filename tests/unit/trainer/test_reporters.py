"""What a person sees: drawn on a terminal, told in lines elsewhere, logged if nothing is to be shown."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from elastic_train.core.records import WorkerId
from elastic_train.trainer.live_view import duration, render, sparkline
from elastic_train.trainer.progress_model import ProgressModel
from elastic_train.trainer.reporters import LiveReporter, LogReporter, PlainReporter, Reporter, make_reporter
from tests.unit.trainer.story import BEGUN_AT, WORKERS, story


def _play(reporter: Reporter, until: float = float("inf")) -> ProgressModel:
    model = ProgressModel("digits", BEGUN_AT, (2, 8))
    now = BEGUN_AT
    for seen in story():
        if seen.at <= until:
            now = max(now, seen.at)
            reporter.update(model, now, model.apply(seen))
    reporter.worker_line(WORKERS[0], model.rank_of(WORKERS[0]), "hello")
    reporter.worker_line(WorkerId("w0009"), None, "starting")
    reporter.close(model, now)
    return model


def test_the_view_shows_step_metrics_world_and_story() -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    model = _play(LogReporter(), until=104.2)
    console.print(render(model, 104.2))
    text = console.export_text()
    for expected in (
        "digits",
        "running",
        "step 29 / 50",
        "58%",
        "loss 0.2466",
        "world 3 in 2..8",
        "membership epoch 2",
    ):
        assert expected in text
    assert "w0002 was lost: killed by SIGKILL" in text
    assert "● w0001  ● w0003  ● w0004  ◍ w0005" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_the_view_can_be_drawn_before_anything_is_known() -> None:
    console = Console(record=True, width=60, file=io.StringIO())
    console.print(render(ProgressModel("digits", 0.0, (1, 1)), 0.0))
    assert "no metrics yet" in console.export_text()


def test_plain_lines_tell_what_happened_at_once_and_steps_now_and_then() -> None:
    stream = io.StringIO()
    _play(PlainReporter(stream))
    lines = stream.getvalue().splitlines()
    assert "     3.3 s  w0002 was lost: killed by SIGKILL" in lines
    assert "[w0001 rank 0] hello" in lines
    assert "[w0009] starting" in lines
    step_lines = [line for line in lines if " step " in line and "samples/s" in line]
    assert 2 <= len(step_lines) <= 5
    assert "step 50/50  loss 0.08629  accuracy 0.98" in step_lines[-1]
    assert "world 3" in step_lines[-1]


def test_without_progress_everything_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="elastic_train"):
        _play(make_reporter(progress=False))
    assert "job digits: w0005 joins" in caplog.messages
    assert "[w0001 rank 0] hello" in caplog.messages
    levels = {record.message: record.levelno for record in caplog.records}
    assert levels["job digits: w0002 was lost: killed by SIGKILL"] == logging.WARNING


def test_where_there_is_no_terminal_lines_are_printed() -> None:
    assert isinstance(make_reporter(progress=True, stream=io.StringIO()), PlainReporter)


def test_on_a_terminal_the_view_is_live_and_lines_scroll_above_it() -> None:
    stream = io.StringIO()
    _play(LiveReporter(Console(file=stream, force_terminal=True, width=90, legacy_windows=False)))
    text = stream.getvalue()
    assert "\x1b[" in text
    assert "[w0001 rank 0]" in text
    assert text.rindex("step ") > text.index("hello")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05"), (-1, "0:00")])
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_sparkline_fits_its_width_and_bears_any_value() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000), 40)) == 40
    assert sparkline([1.0, float("nan"), float("inf"), 1.0], 8) == "▁▁"
    assert sparkline([1.0], 8) == ""
