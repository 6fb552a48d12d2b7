"""State that moves between real processes."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import torch
from torch import nn

from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.errors import GroupBroken, StateNotRestorable
from tests.integration.torch.harness import Worker, workers
from tests.integration.torch.programs import Program, assert_same, reference, share

pytestmark = pytest.mark.integration

STEPS = range(6)


def bring_up(engine: TorchStepEngine, group: TorchGroup, sender: int, receivers: list[int]) -> None:
    """Send the state of `sender` to `receivers`."""
    mine = engine.describe() if group.rank == sender else b""
    description = group.all_gather_bytes(mine)[sender]
    for receiver in receivers:
        if group.rank == sender:
            engine.send(description, receiver)
        elif group.rank == receiver:
            engine.receive(description, sender)


def _join_and_lag(worker: Worker) -> Any:
    """Two train; a third joins with other values and goes on; then the second is set back and brought up again."""
    program = Program(worker.framework.bind)
    engine = program.engine
    if worker.index < 2:
        group = worker.form([0, 1], 1)
        engine.attach(group)
        program.train([0, 1], share(worker.index, 2))
        engine.attach(None)
        group.close()
    else:
        with torch.no_grad():
            for parameter in program.net.parameters():
                parameter.fill_(9.0)
    group = worker.form([0, 1, 2], 2)
    engine.attach(group)
    bring_up(engine, group, sender=0, receivers=[2])
    assert engine.intact
    program.train([2, 3], share(worker.index, 3))
    if worker.index == 1:  # it lost a step somehow
        with torch.no_grad():
            for parameter in program.net.parameters():
                parameter.zero_()
    bring_up(engine, group, sender=2, receivers=[1])
    program.train([4, 5], share(worker.index, 3))
    engine.attach(None)
    group.close()
    return program.values()


def test_a_joiner_and_a_laggard_go_on_as_if_they_had_been_there_all_along() -> None:
    with workers(3, _join_and_lag) as running:
        for values in running.results():
            assert_same(values, reference(STEPS))


LARGE = 3000  # square: 36 MB a matrix, more than the buffers of a connection hold


class Large(nn.Module):
    """Takes long enough to send that its sender can be killed meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList(torch.zeros(LARGE, LARGE) for _ in range(4))


def _lose_the_sender(worker: Worker) -> Any:
    model = Large()
    engine = worker.framework.bind({"model": model})
    laggard = worker.index == 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float(worker.index))
    if laggard:
        engine.load(engine.export())  # from here on this worker has a whole state of its own
    group = worker.form([0, 1], 1) if worker.index < 2 else worker.form([2, 3], 2)
    engine.attach(group)
    description = engine.describe()
    sends = worker.index in (0, 3)
    if sends:
        worker.say(description)
        group.send(memoryview(bytes(4 * LARGE * LARGE)), 1 if worker.index == 0 else 0)
        worker.say("in the middle")
        worker.hear()
    with pytest.raises(GroupBroken):
        engine.receive(description, 0 if worker.index == 1 else 1)
    engine.attach(None)
    group.close()
    return engine.intact, [float(parameter.detach().amax()) for parameter in model.parameters()]


def test_a_laggard_keeps_its_state_when_its_sender_dies_and_a_joiner_says_that_it_has_none() -> None:
    with workers(4, _lose_the_sender) as running:
        for sender in (0, 3):
            running.heard(sender)
            assert running.heard(sender) == "in the middle"
            running.signal(sender, signal.SIGKILL)
        (joiner, _), (laggard, values) = running.results([1, 2])
        assert not joiner
        assert laggard
        assert values == [2.0] * 4


def _differ(worker: Worker) -> Any:
    model = nn.Linear(2, 2 + worker.index)
    engine = worker.framework.bind({"model": model})
    group = worker.form([0, 1])
    engine.attach(group)
    description = group.all_gather_bytes(engine.describe())[0]
    message = ""
    if worker.index == 1:
        with pytest.raises(StateNotRestorable) as caught:
            engine.receive(description, 0)
        message = str(caught.value)
    group.close()
    return engine.intact, message


def test_a_joiner_with_another_model_is_told_what_differs_before_anything_is_sent() -> None:
    with workers(2, _differ) as running:
        _, (intact, message) = running.results()
        assert intact
        assert "model: weight has shape [2, 2], here [3, 2]" in message


def _learn_from_the_sender(worker: Worker) -> Any:
    """What the engine has learned about the program travels too."""
    generator, discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
    items = {"g": generator, "d": discriminator, "od": torch.optim.Adam(discriminator.parameters())}
    engine = worker.framework.bind(items)
    group = worker.form([0, 1])
    engine.attach(group)
    engine._protect = True if worker.index == 0 else None
    bring_up(engine, group, sender=0, receivers=[1])
    group.close()
    return engine._protect


def test_a_joiner_knows_that_the_program_has_steps_of_several_phases() -> None:
    with workers(2, _learn_from_the_sender) as running:
        assert running.results() == [True, True]
