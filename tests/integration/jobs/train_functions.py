"""Train functions of the job tests; imported by the workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import elastic_train as et

FEATURES, CLASSES = 12, 3


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a small model in double precision, so that tolerances can be tight, and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, CLASSES)).double()
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def dataset(size: int) -> TensorDataset:
    """Return inputs and targets that can be learned."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs[:, :CLASSES].argmax(1))


def train(config: dict[str, Any]) -> None:
    """Train to the end of the data, at a pace that leaves a test time to act, and leave the weights in a file.

    Config: size, batch, data_epochs, pause_s (in each step), weights (path, written by rank 0), evaluate_every (steps).
    """
    model, optimizer = build()
    state = et.TrainState(model=model, optimizer=optimizer)
    batches = et.ElasticBatches(
        dataset(config.get("size", 960)),
        global_batch_size=config.get("batch", 32),
        data_epochs=config.get("data_epochs", 2),
    )
    for step in state.steps(batches):
        with step:
            for inputs, targets in step:
                time.sleep(config.get("pause_s", 0.0))
                loss = step.backward(nn.functional.cross_entropy(model(inputs), targets))
            optimizer.step()
            step.report(loss=loss)
        if config.get("evaluate_every") and (step.index + 1) % config["evaluate_every"] == 0:
            state.evaluate(
                et.ElasticBatches(dataset(200), global_batch_size=32),
                lambda inputs, targets: {"accuracy": (model(inputs).argmax(1) == targets).double().mean()},
            )
    if et.get_context().rank == 0 and config.get("weights"):
        torch.save(model.state_dict(), config["weights"])


def reference_weights(size: int, batch: int, data_epochs: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights of an undisturbed run in this process, without elastic_train's runtime."""
    from elastic_train.core.data import BatchPlan

    plan = BatchPlan(size, batch, 1, data_epochs, seed=seed)
    inputs, targets = dataset(size).tensors
    model, optimizer = build()
    for step in range(plan.total_steps):
        share = plan.share(step, 0, 1)
        indices = torch.from_numpy(plan.indices(share.data_epoch, share.start, share.stop))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[indices]), targets[indices]).backward()
        optimizer.step()
    return model.state_dict()


def fail_at(config: dict[str, Any]) -> None:
    """Raise in a step, on the rank that the config says."""
    model, optimizer = build()
    state = et.TrainState(model=model, optimizer=optimizer)
    for step in state.steps(et.ElasticBatches(dataset(320), global_batch_size=32)):
        with step:
            for inputs, targets in step:
                step.backward(nn.functional.cross_entropy(model(inputs), targets))
            once = Path(config["once"]) if config.get("once") else None
            if step.index == config["step"] and et.get_context().rank == config["rank"]:
                if once is None:
                    raise ValueError("a poison sample")
                if not once.exists():
                    once.touch()
                    raise ValueError("a poison sample, the first time")
            optimizer.step()


def never_steps() -> None:
    """Return without training."""
