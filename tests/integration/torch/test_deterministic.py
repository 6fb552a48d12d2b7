"""Whoever computes which logical shards: weights, optimizer state, buffers and losses have the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from elastic_train.core.data import split
from elastic_train.ports import StepPlan
from tests.integration.torch.harness import Worker, workers
from tests.integration.torch.models import PROGRAMS, SAMPLES, Program, digest, pieces

pytestmark = pytest.mark.integration

SHARDS = 8
STEPS = 5


def take_step(program: Program, engine: Any, step: int, rank: int, world_size: int, batch: int) -> dict[int, float]:
    """Take one step as the worker of this rank; return its shards' losses."""
    first, stop = split(SHARDS, world_size, rank)
    share = [(shard, *(part * batch // SHARDS for part in (shard, shard + 1))) for shard in range(first, stop)]
    samples = sum(high - low for _, low, high in share)
    engine.begin(StepPlan(step, step, samples, batch, per_shard=True, shards=(first, stop), logical_shards=SHARDS))
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))
    inputs, targets = program.data
    parts = [(shard, *piece) for shard, low, high in share for piece in pieces(low, high, 3)] or [(first, 0, 0)]
    losses: dict[int, float] = {}
    for shard, low, high in parts:
        engine.open_part(shard, high - low, seed=1000 * step + 10 * shard + low)
        chosen = order[low : max(high, low + 1)]
        loss = program.loss(inputs[chosen], targets[chosen])
        engine.backward(program.scale(loss), high - low, last=(shard, low, high) == parts[-1])
        if high > low:
            losses[shard] = losses.get(shard, 0.0) + loss.item() * (high - low)
    engine.reduce([1.0])
    program.update()
    engine.commit()
    return losses


def _train(worker: Worker) -> Any:
    """Train each program for some steps in each world; say the digest of each."""
    results: dict[tuple[str, int], Any] = {}
    for number, world_size in enumerate(worker.hear()):
        if worker.index >= world_size:
            continue
        group = worker.form(range(world_size), number + 1)
        for name, make in PROGRAMS.items():
            program = make()
            engine = worker.framework.bind(program.items)
            engine.attach(group)
            losses = [
                take_step(program, engine, step, worker.index, world_size, SAMPLES if step != 2 else SHARDS - 3)
                for step in range(STEPS)
            ]
            results[name, world_size] = digest(engine), losses
            engine.attach(None)
        group.close()
    return results


def test_one_digest_at_every_world_size() -> None:
    sizes = [1, 2, 3, 4, 5, 8]
    with workers(max(sizes), _train) as running:
        for index in range(max(sizes)):
            running.tell(index, sizes)
        results = running.results()
    for name in PROGRAMS:
        digests = {size: {results[rank][name, size][0] for rank in range(size)} for size in sizes}
        assert len(set().union(*digests.values())) == 1, (name, digests)
        losses = [
            [
                dict(sorted(item for rank in range(size) for item in results[rank][name, size][1][step].items()))
                for step in range(STEPS)
            ]
            for size in sizes
        ]
        assert all(each == losses[0] for each in losses), name


def _beside_ddp(worker: Worker) -> Any:
    """Train the perceptron in deterministic mode, then in plain DDP; return both runs' losses over the global batch."""
    group = worker.form([0, 1])
    program = PROGRAMS["mlp"]()
    engine = worker.framework.bind(program.items)
    engine.attach(group)
    ours = [take_step(program, engine, step, worker.index, 2, SAMPLES) for step in range(STEPS)]
    engine.attach(None)

    program = PROGRAMS["mlp"]()
    model = DistributedDataParallel(program.items["model"])
    inputs, targets = program.data
    theirs = []
    for step in range(STEPS):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(step))
        mine = order[SAMPLES // 2 * worker.index : SAMPLES // 2 * (worker.index + 1)]
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[mine]), targets[mine])
        loss.backward()
        program.update()
        theirs.append(loss.item())
    del model
    group.close()
    return ours, theirs


def test_losses_agree_with_plain_ddp() -> None:
    with workers(2, _beside_ddp, process_group=True) as running:
        results = running.results()
    ours = [sum(sum(losses[step].values()) for losses, _ in results) / SAMPLES for step in range(STEPS)]
    theirs = [sum(losses[step] for _, losses in results) / 2 for step in range(STEPS)]
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0]
