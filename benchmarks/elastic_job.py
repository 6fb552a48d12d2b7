"""Our side of the comparisons: the benchmarks' perceptron under elastic_train, watched through its journal."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import TensorDataset

import elastic_train as et
from benchmarks.workload import GLOBAL_BATCH_SIZE, build_model, build_optimizer, build_samples
from elastic_train.testing.running_job import RunningJob

_ENDLESS = 1_000_000


def train(config: dict[str, Any]) -> None:
    """Train the common perceptron; with ``ballast_mb`` the state is that much larger, though no slower to step."""
    model = build_model()
    optimizer = build_optimizer(model)
    items: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if config.get("ballast_mb"):
        items["ballast"] = Ballast(config["ballast_mb"])
    state = et.TrainState(**items)
    batches = et.ElasticBatches(
        TensorDataset(*build_samples()), global_batch_size=GLOBAL_BATCH_SIZE, data_epochs=config["data_epochs"]
    )
    for step in state.steps(batches):
        with step:
            for inputs, targets in step:
                loss = step.backward(nn.functional.cross_entropy(model(inputs), targets))
                step.report(loss=loss)
            optimizer.step()


class Ballast(nn.Module):
    """A frozen tensor of so many megabytes: state that a joiner must be sent."""

    def __init__(self, megabytes: float) -> None:
        super().__init__()
        import torch

        self.register_buffer("ballast", torch.ones(int(megabytes * 1e6 / 8), dtype=torch.int64))


@contextmanager
def elastic_job(workers: int, *, max_workers: int = 8, steps: int | None = None, **config: Any) -> Iterator[RunningJob]:
    """Run the perceptron on so many workers until the block is left (or for `steps` steps); nothing is left behind."""
    per_data_epoch = len(build_samples()[0]) // GLOBAL_BATCH_SIZE
    directory = Path(tempfile.mkdtemp(prefix="et-bench-"))
    trainer = et.ElasticTrainer(
        train,
        config={"data_epochs": (steps or _ENDLESS) // per_data_epoch or 1, **config},
        num_workers=workers,
        min_workers=1,
        max_workers=max(workers, max_workers),
        progress=False,
        work_dir=directory / "job",
        checkpoint_config=et.CheckpointConfig(every_seconds=None, at_end=False),
    )
    try:
        with RunningJob(trainer) as job:
            yield job
    finally:
        shutil.rmtree(directory, ignore_errors=True)
