"""Gradients that are reduced while backward still runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from elastic_train.errors import GroupBroken
from elastic_train.ports import StepPlan
from tests.integration.torch.harness import Worker, workers

pytestmark = pytest.mark.integration

WIDTH = 600  # square: 1.4 MB a layer, so that each has a bucket of its own or shares one with few


def make() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(6)))


def sample(index: int, step: int) -> torch.Tensor:
    return torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(10 * step + index))


def expected(steps: int, count: int, extra_at: int | None = None) -> list[torch.Tensor]:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        for index in range(count):
            (model(sample(index, step)).square().mean() / count).backward()
            if step == extra_at:
                (model[5](sample(index, step)).square().mean() / count).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def _overlap(worker: Worker) -> Any:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = worker.framework.bind({"model": model, "optimizer": optimizer})
    group = worker.form(range(3))
    engine.attach(group)
    early = []
    for step in range(4):
        engine.begin(StepPlan(step, step, 2, 6))
        engine.backward(model(sample(worker.index, step)).square().mean(), 2, last=True)
        early.append(len(engine._reducer._launched))
        engine.reduce([])
        optimizer.step()
        engine.commit()
    buckets = len(engine._gradients.flats)
    group.close()
    close = [torch.allclose(*pair, atol=1e-6) for pair in zip(model.parameters(), expected(4, 3), strict=True)]
    return early, buckets, close


def test_buckets_are_reduced_during_backward_once_their_order_is_learned() -> None:
    with workers(3, _overlap) as running:
        for early, buckets, close in running.results():
            assert early == [0, *[buckets - 1] * 3]
            assert all(close)


def _change_the_pattern(worker: Worker) -> Any:
    """Two backward passes in step 2, where there was one in each before."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = worker.framework.bind({"model": model, "optimizer": optimizer})
    group = worker.form(range(2))
    engine.attach(group)
    attempts = []
    step = 0
    while step < 4:
        engine.begin(StepPlan(step, step, 2, 4))
        inputs = sample(worker.index, step)
        attempts.append(step)
        try:
            engine.backward(model(inputs).square().mean(), 2, last=True)
            if step == 2:
                engine.backward(model[5](inputs).square().mean(), 2, last=True)
            engine.reduce([])
        except GroupBroken:
            engine.rollback()
            engine.attach(None)
            group.close()
            group = worker.form(range(2), 2)
            engine.attach(group)
            continue
        optimizer.step()
        engine.commit()
        step += 1
    group.close()
    close = [
        torch.allclose(*pair, atol=1e-6) for pair in zip(model.parameters(), expected(4, 2, extra_at=2), strict=True)
    ]
    return attempts, close


def test_a_step_whose_pattern_changed_is_run_again_once_and_is_right() -> None:
    with workers(2, _change_the_pattern) as running:
        for attempts, close in running.results():
            assert attempts == [0, 1, 2, 2, 3]
            assert all(close)


def _skip_layers(worker: Worker) -> Any:
    """A layer that is used in some steps only, and by some workers only."""
    model = make()
    engine = worker.framework.bind({"model": model})
    group = worker.form(range(2))
    engine.attach(group)
    present = []
    for step in range(5):
        engine.begin(StepPlan(step, step, 2, 4))
        output = sample(worker.index, step)
        for number, layer in enumerate(model):
            if number != 4 or (step % 2 == 1 and worker.index == 0):
                output = layer(output)
        engine.backward(output.square().mean(), 2, last=True)
        engine.reduce([])
        present.append([parameter.grad is not None for parameter in model.parameters()])
        engine.commit()
    group.close()
    return present


def test_layers_that_some_steps_skip_have_gradients_only_where_somebody_used_them() -> None:
    with workers(2, _skip_layers) as running:
        for present in running.results():
            assert [layers[4] for layers in present] == [False, True, False, True, False]
            assert all(used for layers in present for number, used in enumerate(layers) if number != 4)


def _normalise(worker: Worker) -> Any:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=1.0))
    with torch.no_grad():
        nn.init.eye_(model[0].weight)
        nn.init.zeros_(model[0].bias)
    engine = worker.framework.bind({"model": model})
    group = worker.form(range(2))
    engine.attach(group)
    samples = 2 if worker.index == 0 else 6
    engine.begin(StepPlan(0, 0, samples, 8))
    inputs = torch.full((samples, 2), float(worker.index))
    engine.backward(model(inputs).sum() * 0 + model[0].weight.sum(), samples, last=True)
    engine.reduce([])
    engine.commit()
    group.close()
    return model[1].running_mean.tolist(), int(model[1].num_batches_tracked)


def test_batch_norm_statistics_are_averaged_by_samples() -> None:
    with workers(2, _normalise) as running:
        assert running.results() == [([0.75, 0.75], 1)] * 2
