"""The model and the data that every system in a benchmark trains: a perceptron of one million parameters.

The batch is synthetic and decided by the step, so that no system pays for a data pipeline; its size makes a step take
about 20 ms with 4 workers on 2 cores.
"""

from __future__ import annotations

import torch
from torch import nn

FEATURES = 784
CLASSES = 10
GLOBAL_BATCH_SIZE = 240
"""Divides evenly among 1 to 6 and 8 workers."""

_POOL = 8
"""How many different batches there are."""


def build_model() -> nn.Module:
    """Return the perceptron, the same weights each time: 1,000,978 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(FEATURES, 768),
        nn.ReLU(),
        nn.Linear(768, 507),
        nn.ReLU(),
        nn.Linear(507, CLASSES),
    )


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer all systems use."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


def build_samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs [samples, features] and targets [samples] of a pool of global batches."""
    generator = torch.Generator().manual_seed(1)
    count = _POOL * GLOBAL_BATCH_SIZE
    inputs = torch.randn(count, FEATURES, generator=generator)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    return inputs, targets


def part_of(step: int, rank: int, world_size: int) -> slice:
    """Return which samples of the pool one worker computes in one step."""
    start = (step % _POOL) * GLOBAL_BATCH_SIZE
    first = start + GLOBAL_BATCH_SIZE * rank // world_size
    return slice(first, start + GLOBAL_BATCH_SIZE * (rank + 1) // world_size)
