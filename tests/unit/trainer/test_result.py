"""A run can be drawn, and told on one screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from elastic_train.errors import ConfigurationError
from elastic_train.trainer.history import History
from elastic_train.trainer.result import Result
from tests.unit.trainer.story import BEGUN_AT, story


def _result(tmp_path: Path) -> Result:
    history = History(BEGUN_AT)
    for seen in story():
        history.apply(seen)
    return Result(
        name="digits",
        path=tmp_path,
        journal_path=tmp_path,
        wall_s=7.0,
        steps=50,
        metrics={"loss": 0.1},
        metrics_history=history.metrics_history(),
        membership_history=history.membership_history(),
        goodput=history.goodput(107.0),
    )


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    path = _result(tmp_path).plot(tmp_path / "new" / "run.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_metric_that_was_never_reported_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'reward'.*These were reported: loss"):
        _result(tmp_path).plot(tmp_path / "run.png", metric="reward")


def test_the_summary_tells_changes_costs_and_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _result(tmp_path).show()
    out = capsys.readouterr().out
    for expected in ("50 steps", "0 redone", "w0002 was lost", "0.14 s", "goodput", "training", "journal"):
        assert expected in out
