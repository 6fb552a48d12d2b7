"""Steps that keep logical shards apart, in a world of one: sums, buffers and generators, shard by shard."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.gradients import GradientBuckets
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.shard_sums import ShardSums
from elastic_train.ports import StepPlan

SHARDS = 4
BATCH = 12


def plan(samples: int = BATCH, step: int = 0) -> StepPlan:
    return StepPlan(step, 7, samples, samples, per_shard=True, shards=(0, SHARDS), logical_shards=SHARDS)


def inputs() -> torch.Tensor:
    return torch.randn(BATCH, 3, generator=torch.Generator().manual_seed(5))


def make(model: nn.Module, alone: TorchGroup, **others: Any) -> TorchStepEngine:
    engine = TorchStepEngine({"model": model, **others})
    engine.attach(alone)
    return engine


def go_through(engine: TorchStepEngine, model: nn.Module, sizes: tuple[int, ...] = (3, 3, 3, 3)) -> None:
    """Do the forward and backward pass of every shard that has samples."""
    stop = 0
    shards = [shard for shard in range(SHARDS) if sizes[shard]]
    for shard in shards:
        start, stop = stop, stop + sizes[shard]
        engine.open_part(shard, sizes[shard], seed=100 + shard)
        engine.backward(model(inputs()[start:stop]).square().mean(), sizes[shard], last=shard == shards[-1])


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (0, 5, 0, 7), (12, 0, 0, 0), (4, 4, 4, 0)])
def test_gradients_are_the_mean_over_the_global_batch(alone: TorchGroup, sizes: tuple[int, ...]) -> None:
    model = nn.Linear(3, 2)
    engine = make(model, alone)
    engine.begin(plan())
    go_through(engine, model, sizes)
    engine.reduce([])
    found = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    engine.commit()
    expected = torch.autograd.grad(model(inputs()).square().mean(), list(model.parameters()))
    torch.testing.assert_close(found, list(expected))


def test_control_values_come_back_as_they_are(alone: TorchGroup) -> None:
    model = nn.Linear(3, 2)
    engine = make(model, alone)
    engine.begin(plan())
    go_through(engine, model)
    assert engine.reduce([1.0, 0.0, 5.0]) == [1.0, 0.0, 5.0]


def test_a_parameter_that_no_shard_touched_has_no_gradient(alone: TorchGroup) -> None:
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    engine = make(model, alone)
    engine.begin(plan())
    go_through(engine, model[0])
    engine.reduce([])
    assert [parameter.grad is None for parameter in model.parameters()] == [False, False, True, True]


def test_batch_norm_is_updated_once_by_the_mean_of_the_shards_statistics(alone: TorchGroup) -> None:
    model = nn.BatchNorm1d(3, momentum=0.1)
    engine = make(model, alone)
    engine.begin(plan())
    go_through(engine, model)
    engine.reduce([])
    engine.commit()
    means = torch.stack([part.mean(0) for part in inputs().split(3)]).mean(0)
    variances = torch.stack([part.var(0) for part in inputs().split(3)]).mean(0)
    torch.testing.assert_close(model.running_mean, 0.1 * means)
    torch.testing.assert_close(model.running_var, 0.9 + 0.1 * variances)
    assert model.num_batches_tracked == 1


def test_every_shard_sees_the_buffers_of_the_steps_beginning(alone: TorchGroup) -> None:
    model = nn.BatchNorm1d(3)
    engine = make(model, alone)
    engine.begin(plan())
    seen = []
    for shard in range(SHARDS):
        engine.open_part(shard, 3, seed=shard)
        assert model.running_mean is not None
        seen.append(model.running_mean.tolist())
        engine.backward(model(inputs()[3 * shard : 3 * shard + 3]).square().mean(), 3, last=shard == SHARDS - 1)
    assert seen == [[0.0, 0.0, 0.0]] * SHARDS


def test_a_rollback_in_the_middle_of_a_shard_leaves_no_trace(alone: TorchGroup) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    engine = make(model, alone)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = draw_after_seeding()
    seed_all(3)
    engine.begin(plan())
    for shard in (0, 1):
        engine.open_part(shard, 3, seed=shard)
        model(inputs()[:3])
    engine.rollback()
    assert draw() == drawn
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_generators_are_seeded_for_each_part_and_go_on_after_the_step_where_they_were(alone: TorchGroup) -> None:
    model = nn.Linear(3, 2)
    engine = make(model, alone)
    drawn = draw_after_seeding()
    for step in range(2):
        seed_all(3)
        engine.begin(plan(step=step))
        seen = []
        for shard in range(SHARDS):
            engine.open_part(shard, 3, seed=50 + shard)
            seen.append(draw())
            engine.backward(model(inputs()[:3]).sum(), 3, last=shard == SHARDS - 1)
        engine.reduce([])
        after_loop = draw()
        engine.commit()
        assert draw() == drawn
        assert len({*seen, after_loop}) == SHARDS + 1
        for shard in range(SHARDS):
            seed_all(50 + shard)
            assert seen[shard] == draw()


def test_two_passes_in_one_step_are_two_sums(alone: TorchGroup) -> None:
    model = nn.Linear(3, 2)
    engine = make(model, alone)
    engine.begin(plan())
    grads = []
    for _ in range(2):
        go_through(engine, model)
        engine.reduce([])
        assert model.weight.grad is not None
        grads.append(model.weight.grad.clone())
    engine.commit()
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize(("shards", "buffers"), [(1, 0), (2, 1), (4, 2), (8, 3), (7, 2)])
def test_as_many_buffers_are_held_as_a_binary_counter_has_digits(shards: int, buffers: int) -> None:
    gradients = GradientBuckets([nn.Parameter(torch.zeros(5))], 1)
    sums = ShardSums(gradients)
    for _ in range(3):
        gradients.zero()
        sums.begin((0, shards), shards)
        for shard in range(shards):
            sums.open(shard)
            gradients.flats[0][0] = 2.0**shard
        sums.seal()
        (whole,) = sums.parts(0)
        assert whole[0] == 2.0**shards - 1
    assert len({id(flats) for flats in (*sums._spare, *(sums._lefts or ()))}) == buffers


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def draw() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def draw_after_seeding() -> tuple[float, float, float]:
    seed_all(3)
    return draw()
