"""Train functions of the tests of deterministic mode; imported by the workers."""

from __future__ import annotations

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

import elastic_train as et
from tests.integration.torch.models import PROGRAMS, Program


def train(config: dict[str, Any]) -> None:
    """Train one of the small programs, with noise from every generator, and leave what came out in a file.

    Config: program, data_epochs, pause_s (in each part), outcome (path, written by rank 0), micro_batch_size, corrupt
    ({"worker", "step"}: changes one of its weights after that step), threads (worker -> torch threads).
    """
    torch.set_num_threads(config.get("threads", {}).get(et.get_context().worker_id, 1))
    program = PROGRAMS[config["program"]]()
    state = et.TrainState(**program.items)
    batches = et.ElasticBatches(
        TensorDataset(*program.data),
        global_batch_size=config.get("batch", 24),
        data_epochs=config.get("data_epochs", 4),
        micro_batch_size=config.get("micro_batch_size"),
    )
    for step in state.steps(batches):
        with step:
            for inputs, targets in step:
                time.sleep(config.get("pause_s", 0.0))
                noise = 1 + 0.01 * (random.random() + np.random.rand() + float(torch.rand(1)))
                loss = step.backward(program.scale(program.loss(inputs, targets) * noise))
            program.update()
            step.report(loss=loss, steps=step.index)
        corrupt(program, config, step.index)
    if et.get_context().rank == 0:
        hashed = hashlib.sha256()
        for name, item in sorted(program.items.items()):
            for path, value in flat(item.state_dict(), name):
                hashed.update(path.encode())
                hashed.update(value)
        Path(config["outcome"]).write_text(json.dumps({"state": hashed.hexdigest()}))


def corrupt(program: Program, config: dict[str, Any], step: int) -> None:
    """Do what faulty memory does, once, on the worker named."""
    target = config.get("corrupt")
    if target and step == target["step"] and et.get_context().worker_id == target["worker"]:
        with torch.no_grad():
            next(iter(program.items["model"].parameters())).view(-1)[0] += 1e-3


def flat(tree: Any, path: str) -> list[tuple[str, bytes]]:
    """Return every value of a state by its path, in the order of paths."""
    if isinstance(tree, torch.Tensor):
        return [(path, tree.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())]
    if isinstance(tree, dict):
        return [found for key in sorted(tree, key=str) for found in flat(tree[key], f"{path}.{key}")]
    if isinstance(tree, list | tuple):
        return [found for index, value in enumerate(tree) for found in flat(value, f"{path}.{index}")]
    return [(path, repr(tree).encode())]
