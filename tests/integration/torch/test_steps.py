"""Steps of real processes against a single process that does the same."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from elastic_train.errors import GroupBroken
from tests.integration.torch.harness import Worker, workers
from tests.integration.torch.programs import Program, assert_same, reference, share

pytestmark = pytest.mark.integration

STEPS = range(5)


def _train(worker: Worker) -> Any:
    count, parts = worker.hear()
    program = Program(worker.framework.bind, parts)
    group = worker.form(range(count))
    program.engine.attach(group)
    controls = program.train(STEPS, share(worker.index, count))
    program.engine.attach(None)
    group.close()
    return program.values(), controls


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("parts", [1, 3])
def test_uneven_shares_give_the_gradient_of_the_whole_batch(count: int, parts: int) -> None:
    with workers(count, _train) as running:
        for index in range(count):
            running.tell(index, (count, parts))
        results = running.results()
    expected = reference(STEPS)
    for values, controls in results:
        assert_same(values, expected)
        assert controls == [[24.0, float(count)]] * len(STEPS)
    for values, _ in results[1:]:
        assert all((values[name] == results[0][0][name]).all() for name in values)


def _lose_a_member(worker: Worker) -> Any:
    """Three train; the last is killed in the middle of step 2, and two go on."""
    program = Program(worker.framework.bind)
    group = worker.form([0, 1, 2], 1)
    program.engine.attach(group)
    program.train([0, 1], share(worker.index, 3))
    program.backward(2, share(worker.index, 3))
    worker.say("in step 2")
    if worker.index == 2:
        worker.hear()
    with pytest.raises(GroupBroken):
        program.engine.reduce([0.0])
    program.engine.rollback()
    program.engine.attach(None)
    group.close()
    group = worker.form([0, 1], 2)
    program.engine.attach(group)
    program.train([2, 3, 4], share(worker.index, 2))
    group.close()
    return program.values()


def test_survivors_go_on_from_the_step_that_was_broken() -> None:
    with workers(3, _lose_a_member) as running:
        for index in range(3):
            assert running.heard(index) == "in step 2"
        running.signal(2, signal.SIGKILL)
        for values in running.results([0, 1]):
            assert_same(values, reference(STEPS))
