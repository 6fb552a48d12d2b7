"""The proof of exactly-once holds for what a correct job journals, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.core.data import split
from elastic_train.journal.lineage import Finding, check_lineage, lineage
from elastic_train.journal.reader import Record
from tests.unit.journal.story import PLANS, Story, changed, program

QUIET = Story(seed=1, churn=0.0).tell()
BUSY = Story(seed=5, churn=0.3).tell()


def check(records: list[Record], **options: Any) -> list[Finding]:
    return check_lineage(records, PLANS, **options)


def in_lineage(records: list[Record], kind: str) -> list[int]:
    """Return where the records of a kind stand that belong to the surviving lineage."""
    kept = {(committed.membership_epoch, committed.transaction) for committed in lineage(records)}
    return [
        place
        for place, record in enumerate(records)
        if record.kind == kind and (record["membership_epoch"], (record["loop"], record["step"])) in kept
    ]


@given(st.integers(0, 2**32), st.floats(0, 0.6))
def test_a_correct_job_has_no_findings_whatever_happened_to_its_workers(seed: int, churn: float) -> None:
    assert check(Story(seed, churn).tell()) == []


@given(st.integers(0, 2**32), st.floats(0, 0.6))
def test_the_lineage_is_the_program(seed: int, churn: float) -> None:
    kept = lineage(Story(seed, churn).tell())
    assert [committed.transaction for committed in kept] == program()
    assert [committed.version for committed in kept] == list(range(1, len(program()) + 1))


@given(st.integers(0, 2**32), st.floats(0, 0.4), st.data())
def test_any_read_of_the_lineage_that_is_missing_is_found(seed: int, churn: float, data: st.DataObject) -> None:
    records = Story(seed, churn).tell()
    del records[data.draw(st.sampled_from(in_lineage(records, "step_read")))]
    assert any("read" in finding.message for finding in check(records))


@given(
    st.integers(0, 2**32),
    st.sampled_from(["samples", "indices_crc", "data_epoch", "version"]),
    st.integers().filter(bool),
    st.data(),
)
def test_any_read_that_is_not_the_plans_is_found(seed: int, name: str, by: int, data: st.DataObject) -> None:
    records = Story(seed, 0.3).tell()
    place = data.draw(st.sampled_from(in_lineage(records, "step_read")))
    records[place] = changed(records[place], **{name: records[place][name] + by})
    found = check(records)
    assert any(name in finding.message and records[place] in finding.records for finding in found)


@given(st.integers(0, 2**32), st.integers(0, 8), st.integers(0, 8), st.data())
def test_any_shards_but_the_members_own_are_found(seed: int, first: int, stop: int, data: st.DataObject) -> None:
    records = Story(seed, 0.3).tell()
    place = data.draw(st.sampled_from(in_lineage(records, "step_read")))
    changed_read = changed(records[place], shards=(first, stop))
    if tuple(records[place]["shards"]) != (first, stop):
        records[place] = changed_read
        assert check(records)


@given(st.integers(0, 2**32), st.data())
def test_any_version_that_nobody_committed_is_found(seed: int, data: st.DataObject) -> None:
    records = Story(seed, 0.3).tell()
    version = data.draw(st.integers(1, len(program())))
    assert check([record for record in records if record.get("version") != version or "committed" not in record.kind])


def test_the_lost_commits_of_a_step_that_was_run_again_are_not_made_up_for_by_those_of_the_first_run() -> None:
    commits = [record for record in BUSY if record.kind == "step_committed"]
    newest = {record["version"]: record["membership_epoch"] for record in commits}
    again = [record for record in commits if record["membership_epoch"] < newest[record["version"]]]
    assert again
    for version in {record["version"] for record in again}:
        lost = [r for r in commits if (r["version"], r["membership_epoch"]) == (version, newest[version])]
        assert check([record for record in BUSY if record not in lost])


def _replace(kind: str, nth: int, **fields: Any) -> Callable[[list[Record]], list[Record]]:
    def mutate(records: list[Record]) -> list[Record]:
        place = [place for place, record in enumerate(records) if record.kind == kind][nth]
        return [*records[:place], changed(records[place], **fields), *records[place + 1 :]]

    return mutate


def _drop(kind: str) -> Callable[[list[Record]], list[Record]]:
    return lambda records: [record for record in records if record.kind != kind]


def _a_worker_goes_back(records: list[Record]) -> list[Record]:
    commits = [record for record in records if record.kind == "step_committed"]
    again = next(record for record in commits if record.source == commits[-1].source)
    return [*records, again]


def _a_stranger_commits(records: list[Record]) -> list[Record]:
    last = records[-1]
    stranger = Record(last.t, last.wall, last.kind, "w99", last.fields, last.path, 1)
    return [*records, stranger]


def _two_members_read_the_same_and_nobody_the_rest(records: list[Record]) -> list[Record]:
    """A read of rank 1 as it would be if it took itself for rank 0: the plan agrees with each read by itself."""
    reads = [place for place, record in enumerate(records) if record.kind == "step_read"]
    first, second = (records[place] for place in reads[:2])
    assert first["step"] == second["step"]
    alike = ("shards", "samples", "indices_crc")
    records = list(records)
    records[reads[1]] = changed(second, **{name: first[name] for name in alike})
    return records


def _one_more_worker_reads(records: list[Record]) -> list[Record]:
    first = next(record for record in records if record.kind == "step_read")
    return [*records, Record(first.t, first.wall, first.kind, "w99", first.fields, first.path, 1)]


def _an_older_world_goes_on(records: list[Record]) -> list[Record]:
    """What two worlds at once leave: the second formed its group under the fence of the first."""
    formed = [place for place, record in enumerate(records) if record.kind in ("group_formed", "world_sealed")]
    records = list(records)
    for place in formed:
        records[place] = changed(records[place], fence=records[formed[0]]["fence"])
    return records


MUTATIONS: list[tuple[str, Callable[[list[Record]], list[Record]], str]] = [
    ("no reads", _drop("step_read"), "read nothing"),
    ("no commits", _drop("step_committed"), "follow"),
    ("no evaluations", _drop("evaluation_committed"), "version 6 follows version 4"),
    ("no worlds", _drop("group_formed"), "is no member"),
    ("a doubled share", _two_members_read_the_same_and_nobody_the_rest, "were read twice"),
    ("an uninvited reader", _one_more_worker_reads, "w99 read, but is no member"),
    ("a worker goes back", _a_worker_goes_back, "committed version 1 after version"),
    ("a stranger commits", _a_stranger_commits, "w99 is no member"),
    ("a step is left out", _replace("step_committed", 0, step=1), "members disagree"),
    ("an unknown loop", _replace("step_committed", -1, loop="nap"), "members disagree"),
    ("a wrong global batch", _replace("step_committed", 3, global_samples=17), "global_samples is 17"),
    ("samples from nowhere", _replace("step_committed", 3, samples=17), "committed than read"),
    ("an evaluation of one's own", _replace("evaluation_committed", 0, metrics={"loss": 9}), "members disagree"),
    ("a second world", _replace("group_formed", 0, fence=1), "several fences"),
    ("a world of another size", _replace("group_formed", 0, world_size=9), "several sizes"),
    ("one rank twice", _replace("group_formed", 1, rank=0), "stands twice"),
    ("another roster", _replace("world_sealed", 0, members=["x", "y"]), "roster"),
]


@pytest.mark.parametrize(("mutate", "told"), [case[1:] for case in MUTATIONS], ids=[case[0] for case in MUTATIONS])
def test_a_journal_that_shows_a_violation_is_refused_with_its_reason(
    mutate: Callable[[list[Record]], list[Record]], told: str
) -> None:
    assert len(QUIET[0]["members"]) > 1, "this story needs a world of several"
    findings = check(mutate(QUIET))
    assert any(told in str(finding) for finding in findings), "\n".join(map(str, findings))


def test_fences_that_do_not_rise_are_found() -> None:
    findings = check(_an_older_world_goes_on(BUSY))
    assert {finding.rule for finding in findings} == {"fences rise"}


def test_a_loop_without_a_plan_is_found() -> None:
    findings = check_lineage(QUIET, {"train": PLANS["train"]})
    assert {finding.message for finding in findings} == {"there is no plan for the loop 'tune'"}


def test_an_unfinished_job_is_a_finding_unless_it_may_be() -> None:
    commits = [place for place, record in enumerate(BUSY) if record.kind == "step_committed"]
    unfinished = BUSY[: commits[len(commits) // 2]]
    assert any("ended before step" in finding.message for finding in check(unfinished))
    assert check(unfinished, complete=False) == []


def test_steps_beyond_the_plan_are_a_finding_even_of_an_unfinished_job() -> None:
    shorter = {**PLANS, "train": replace(PLANS["train"], data_epochs=2)}
    assert any("ended before step 12 of 8" in str(finding) for finding in check_lineage(QUIET, shorter, complete=False))


def _resumed(version: int) -> list[Record]:
    """Return the journal of a run that goes on from a checkpoint of another run."""
    head = [record for record in QUIET if record.kind in ("world_sealed", "group_formed")]
    source = head[-1].source
    restored = changed(head[-1], version=version)
    restored = Record(0.0, 0.0, "checkpoint_restored", source, restored.fields, head[-1].path, 1)
    later = [
        record
        for record in QUIET
        if (record.kind == "step_read" and record["version"] >= version)
        or ("committed" in record.kind and record["version"] > version)
    ]
    return [*head, restored, *later]


def test_a_run_that_goes_on_from_a_checkpoint_begins_where_that_stood() -> None:
    records = _resumed(3)
    assert check(records, resumed_at=3) == []
    assert check(records, resumed_at=3, first_steps={"train": 3}) == []
    assert any(
        "stands where 2 should" in str(finding) for finding in check(records, resumed_at=3, first_steps={"train": 2})
    )
    assert any("version 4 follows version 0" in str(finding) for finding in check(records))


def test_a_run_that_skips_what_it_restored_is_found() -> None:
    records = [record for record in _resumed(3) if record.get("step") != 3]
    assert any("version 5 follows version 3" in finding.message for finding in check(records, resumed_at=3))


def test_a_finding_tells_the_offending_lines() -> None:
    finding = next(finding for finding in check(_one_more_worker_reads(QUIET)) if "w99" in finding.message)
    text = str(finding)
    assert text.startswith("each sample exactly once: step 0 of 'train' in membership epoch")
    record = finding.records[0]
    assert f"{record.path.name}:{record.line}: step_read" in text


def test_the_stories_are_worth_telling() -> None:
    """Guard the generator: what the properties above quantify over contains what they are about."""
    assert len({record["membership_epoch"] for record in BUSY if record.kind == "group_formed"}) > 3
    committed = [(r["version"], r["membership_epoch"]) for r in BUSY if r.kind == "step_committed"]
    assert len({version for version, _ in committed}) < len(set(committed)), "no step was ever run again"
    assert any(record.kind == "checkpoint_restored" for record in BUSY)
    assert split(6, 4, 0) != split(6, 4, 1)
