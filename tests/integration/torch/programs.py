"""A small program to train, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.ports import StepPlan

FEATURES, CLASSES, BATCH = 6, 3, 24
Values = dict[str, npt.NDArray[Any]]
"""Parameters by name; arrays, because tensors do not travel through pipes by value."""

MASKED = 3  # samples from 0 to this use the parameter `sometimes`


class Net(nn.Module):
    """With a parameter used twice, one that is never used, and one that only some samples use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.first = parameter(FEATURES, FEATURES)
        self.shared = parameter(FEATURES, FEATURES)
        self.never = parameter(5)
        self.sometimes = parameter(FEATURES)
        self.last = parameter(FEATURES, CLASSES)

    def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        hidden = torch.tanh(inputs @ self.first @ self.shared)
        if mask.any():
            hidden = torch.where(mask[:, None], hidden * self.sometimes, hidden)
        return torch.tanh(hidden @ self.shared) @ self.last


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return inputs, targets and mask of one global batch."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return inputs, targets, (torch.arange(BATCH) < MASKED) & (step % 2 == 1)


def share(rank: int, count: int) -> tuple[int, int]:
    """Return an uneven part of the global batch: the later the rank, the larger."""
    total = count * (count + 1) // 2
    return BATCH * rank * (rank + 1) // 2 // total, BATCH * (rank + 1) * (rank + 2) // 2 // total


class Program:
    """One worker's loop: model, optimizer and how the share is cut into parts."""

    def __init__(self, bind: Callable[[dict[str, object]], TorchStepEngine], parts: int = 1) -> None:
        self.net = Net()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.engine = bind({"model": self.net, "optimizer": self.optimizer})
        self.parts = parts

    def backward(self, step: int, own: tuple[int, int]) -> None:
        """Open the step and go through the parts."""
        start, end = own
        inputs, targets, mask = batch(step)
        self.engine.begin(StepPlan(step, seed=step, samples=end - start, global_samples=BATCH))
        cuts = sorted({start, end, *(start + (end - start) * part // self.parts for part in range(self.parts))})
        for first, last in pairwise(cuts):
            self.optimizer.zero_grad()  # as people write it, in the loop
            outputs = self.net(inputs[first:last], mask[first:last])
            loss = nn.functional.cross_entropy(outputs, targets[first:last])
            self.engine.backward(loss, last - first, last=last == end)

    def apply(self) -> None:
        """Do what follows the loop."""
        nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.engine.commit()

    def train(self, steps: Sequence[int], own: tuple[int, int]) -> list[list[float]]:
        """Take whole steps; return what the controls summed to."""
        controls = []
        for step in steps:
            self.backward(step, own)
            controls.append(self.engine.reduce([float(own[1] - own[0]), 1.0]))
            self.apply()
        return controls

    def values(self) -> Values:
        """Return copies of the parameters."""
        return {name: value.detach().numpy().copy() for name, value in self.net.named_parameters()}


def reference(steps: Sequence[int]) -> Values:
    """Train in one process, in plain torch."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in steps:
        inputs, targets, mask = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs, mask), targets).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in net.named_parameters()}


def assert_same(values: Values, expected: Values) -> None:
    """Compare parameters to what double precision gives."""
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-9, atol=1e-12, err_msg=name)
