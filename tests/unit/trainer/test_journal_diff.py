"""Two runs are compared by the digests of their states: where they part, and in what."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from elastic_train.journal import Record
from elastic_train.journal.schema import KINDS
from elastic_train.trainer import cli
from elastic_train.trainer.journal_diff import Difference, compare


def _digest(step: int, /, _source: str = "w1", _epoch_number: int = 1, **tensors: str) -> Record:
    fields = {"membership_epoch": _epoch_number, "loop": "loop-0", "step": step, "version": step + 1}
    return _record("state_digest", _source, **fields, digest="-".join(tensors.values()), tensors=tensors)


def _record(kind: str, source: str = "w1", **fields: Any) -> Record:
    assert set(KINDS[kind]) <= fields.keys()
    return Record(1.0, 1.0, kind, source, MappingProxyType(fields), Path(f"{source}.jsonl"), 1)


def test_the_first_step_that_differs_is_named_with_its_tensors() -> None:
    one = [_digest(step, weight="a", bias="b") for step in (9, 19, 29)]
    other = [one[0], _digest(19, weight="x", bias="b"), _digest(29, weight="x", bias="x")]
    assert compare(one, other) == Difference(2, ("loop-0", 9), ("loop-0", 19), ("weight",))


def test_equal_runs_are_compared_where_both_have_digests() -> None:
    one = [_digest(step, weight="a") for step in (9, 19, 29)]
    other = [_digest(step, weight="a") for step in (4, 9, 14, 19)]
    assert compare(one, other) == Difference(2, ("loop-0", 19), None, ())


def test_what_a_corrupted_worker_had_does_not_count() -> None:
    good, bad = _digest(9, weight="a"), _digest(9, "w2", weight="x")
    found = _record("state_diverged", membership_epoch=1, version=10, workers=["w2"], majority=True, tensors=["weight"])
    assert compare([good], [good, bad, found]).first_different is None


def test_of_a_step_that_was_run_again_the_last_counts() -> None:
    assert compare([_digest(9, weight="a")], [_digest(9, weight="x"), _digest(9, "w2", 2, weight="a")]).tensors == ()


def test_the_command_says_by_its_exit_code_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def journal(name: str, **tensors: str) -> str:
        lines = [
            {
                "t": 1.0,
                "wall": 1.0,
                "kind": "state_digest",
                "source": "w1",
                **dict(_digest(9, "w1", 1, **tensors).fields),
            }
        ]
        run = tmp_path / name / "journal" / "run-1"
        run.mkdir(parents=True)
        (run / "w1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    one, same, other = journal("one", weight="a"), journal("same", weight="a"), journal("other", weight="b")
    assert cli.main(["diff", one, same]) == cli.OK
    assert "The same in all 1 digests, the last after step 9 of loop-0." in capsys.readouterr().out
    assert cli.main(["diff", one, other]) == cli.REFUSED
    assert (
        "Different after step 9 of loop-0 (from the first digest on), in 1 tensors:\n  weight"
        in capsys.readouterr().out
    )
    assert cli.main(["diff", one, str(tmp_path)]) == cli.USAGE
