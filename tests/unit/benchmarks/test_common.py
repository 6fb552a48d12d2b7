import argparse
import json
from pathlib import Path

import pytest

from benchmarks.common import finish, median, parse_arguments, percentile, summarize


def test_a_percentile_lies_between_its_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 50.0) == 2.5
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.0) == 1.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 100.0) == 4.0
    assert median([7.0]) == 7.0


def test_nothing_measured_is_an_error_and_not_a_figure() -> None:
    with pytest.raises(ValueError, match="was anything measured"):
        summarize([])


def test_a_summary_names_the_worst_as_the_largest() -> None:
    summary = summarize([0.2, 0.1, 0.4])
    assert (summary["count"], summary["best"], summary["median"], summary["worst"]) == (3, 0.1, 0.2, 0.4)


def test_quick_takes_two_measurements_at_most() -> None:
    assert parse_arguments("what", repeats=30, argv=["--quick"]).repeats == 2
    assert parse_arguments("what", repeats=1, argv=["--quick"]).repeats == 1
    assert parse_arguments("what", repeats=30, argv=["--repeats", "3"]).repeats == 3


def test_zero_repeats_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments("what", argv=["--repeats", "0"])
    assert "0 is less than 1" in capsys.readouterr().err


def test_a_benchmark_can_have_arguments_of_its_own() -> None:
    def extend(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--workers", type=int)

    assert parse_arguments("what", argv=["--workers", "4"], extend=extend).workers == 4


def test_the_last_line_printed_is_what_the_file_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "recovery.json"
    arguments = parse_arguments("what", argv=["--json", str(path)])
    finish("recovery", {"gap_s": {"median": 0.123456789}, "steps": [1, 2]}, arguments)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last_line) == json.loads(path.read_text())
    report = json.loads(last_line)
    assert report["benchmark"] == "recovery"
    assert report["figures"] == {"gap_s": {"median": 0.123457}, "steps": [1, 2]}
    assert report["machine"]["cores"] >= 1
