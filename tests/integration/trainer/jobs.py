"""Train functions for end-to-end tests: small, deterministic, and slow enough to be disturbed."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch.nn import functional as F

import elastic_train as et

SAMPLES = 512
BATCH = 16


class Line(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Points of a line."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tensor([index / SAMPLES])
        return x, 3 * x - 1


def fit_line(config: dict[str, Any]) -> None:
    """Take `steps` steps of at least `step_s` each; say what happens in between."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = et.TrainState(model=model, optimizer=optimizer)
    data_epochs = config.get("data_epochs", 2)
    batches = et.ElasticBatches(Line(), global_batch_size=BATCH, data_epochs=data_epochs)
    sys.stdout.write(f"begin in {et.get_context().worker_id}\n")
    for step in state.steps(batches):
        with step:
            for inputs, targets in step:
                loss = step.backward(F.mse_loss(model(inputs), targets))
            time.sleep(config.get("step_s", 0.0))
            optimizer.step()
            step.report(loss=loss)


def steps_of(data_epochs: int = 2) -> int:
    """Return how many steps `fit_line` takes."""
    return data_epochs * SAMPLES // BATCH
