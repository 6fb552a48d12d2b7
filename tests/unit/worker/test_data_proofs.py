"""What proves exactly-once for streams and users' orders can fail: a journal that was tampered with is found out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import pytest

from elastic_train.core.order import WeightedOrder
from elastic_train.journal.data_proofs import plan_of
from elastic_train.journal.lineage import check_lineage
from elastic_train.journal.reader import Record
from elastic_train.worker.batches import ElasticBatches
from elastic_train.worker.streams import ElasticStreams
from tests.unit.worker.churn import Script, finish, lose, records_of
from tests.unit.worker.harness import Worker, running_job, samples

Change = Callable[[dict[str, Any]], None]


@cache
def told(kind: str) -> tuple[Record, ...]:
    """Return the journals of a job over streams or a user's order in which a worker was killed."""
    script = Script()
    script.kill("w0001", at_step=2)

    def train(worker: Worker) -> None:
        for step in worker.loop(source(kind)):
            with step:
                for (numbers,) in step:
                    step.backward(float(len(numbers)))
                script(worker, step)

    with running_job() as job:
        workers = job.start(train, 2)
        job.form(workers)
        finish(job, lose(job, workers, workers[1]))
        return tuple(records_of(job))


def source(kind: str) -> ElasticBatches | ElasticStreams:
    if kind == "order":
        order = WeightedOrder([1.0] * 30, 30)
        return ElasticBatches(samples(30), global_batch_size=8, data_epochs=2, order=order)
    return ElasticStreams(stream, global_batch_size=8, data_epochs=2, ends="any" if kind == "any" else "all")


def stream(shard: int, _num_shards: int) -> range:
    return range(1000 * shard, 1000 * shard + 9 + shard)


def findings(records: Sequence[Record]) -> list[str]:
    plans = {record["loop"]: plan_of(record["plan"]) for record in records if record.kind == "loop_started"}
    return [str(finding) for finding in check_lineage(records, plans)]


def tampered(kind: str, of_kind: str, number: int, change: Change) -> list[Record]:
    """Return the journals with one record of worker 0 changed."""
    records = list(told(kind))
    places = [i for i, record in enumerate(records) if record.kind == of_kind and record.source == "w0000"]
    place = places[number]
    record = records[place]
    fields = dict(record.fields)
    change(fields)
    records[place] = Record(
        record.t, record.wall, record.kind, record.source, MappingProxyType(fields), record.path, record.line
    )
    return records


@pytest.mark.parametrize("kind", ["all", "any", "order"])
def test_the_story_as_it_was_has_no_findings(kind: str) -> None:
    assert findings(told(kind)) == []


def set_run(shard: int, position: int, to: Callable[[int], int]) -> Change:
    def change(fields: dict[str, Any]) -> None:
        runs = [list(run) for run in fields["runs"]]
        runs[shard][position] = to(runs[shard][position])
        fields["runs"] = runs

    return change


def put(**values: Any) -> Change:
    return lambda fields: fields.update(values)


@pytest.mark.parametrize(
    ("kind", "of_kind", "number", "change", "says"),
    [
        ("all", "step_read", -1, set_run(0, 1, lambda start: start + 1), "it stood at"),
        ("all", "step_read", 4, set_run(1, 1, lambda start: start - 2), "it stood at"),
        ("all", "step_read", 4, set_run(1, 2, lambda count: count + 5), "gives at most"),
        ("all", "step_read", 4, set_run(1, 2, lambda count: count - 1), "the plan says"),
        ("all", "step_read", 0, set_run(0, 3, lambda crc: crc ^ 1), None),
        ("all", "step_read", 3, set_run(0, 3, lambda crc: crc ^ 1), "other samples when"),
        ("all", "step_read", 4, put(data_epoch=1), "data epoch"),
        ("all", "stream_ended", 0, put(samples=99), "which has 99"),
        ("any", "step_read", 4, put(samples=3), "the plan says"),
        ("order", "order_compared", 0, put(order_crc=1), "has 2 orders"),
        ("order", "step_read", -1, put(indices_crc=1), "is not the order that was compared"),
    ],
)
def test_what_was_changed_is_found(kind: str, of_kind: str, number: int, change: Change, says: str | None) -> None:
    found = findings(tampered(kind, of_kind, number, change))
    if says is None:
        assert found == [], "what nobody read a second time cannot be compared"
    else:
        assert any(says in finding for finding in found), found


def test_an_end_that_nobody_saw_is_found() -> None:
    records = [record for record in told("all") if not (record.kind == "stream_ended" and record["shard"] == 2)]
    assert any("of stream 2, which has more" in finding for finding in findings(records))


def test_a_data_epoch_that_ends_too_early_is_found() -> None:
    records = [record for record in told("any") if record.kind != "stream_ended"]
    assert any("was over while every stream had a quota more" in finding for finding in findings(records))


def test_a_missing_last_data_epoch_is_found() -> None:
    last = max(record["version"] for record in told("all") if record.kind == "step_committed")
    steps = {r["step"] for r in told("all") if r.kind == "step_read" and r["data_epoch"] == 1}
    records = [record for record in told("all") if not (record.get("step") in steps and record.get("version", last))]
    assert any("ended in data epoch 0 of 2" in finding for finding in findings(records))
