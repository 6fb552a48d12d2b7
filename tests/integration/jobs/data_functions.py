"""Train functions of the data tests; imported by the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import elastic_train as et

FEATURES = 4


class Augmented:
    """A map-style dataset with random augmentation, read by processes whose pids it leaves in a folder."""

    def __init__(self, size: int, pids: str) -> None:
        self._size = size
        self._pids = Path(pids)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> torch.Tensor:
        if torch.utils.data.get_worker_info() is not None:
            (self._pids / str(os.getpid())).touch()
        return torch.full((FEATURES,), float(index), dtype=torch.float64) / self._size + torch.rand(FEATURES).double()


def model_of() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a linear model that is the same everywhere, and its optimizer."""
    model = torch.nn.Linear(FEATURES, 1, bias=False).double()
    torch.nn.init.zeros_(model.weight)
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def loss_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradient tells which samples there were."""
    return torch.nn.functional.mse_loss(model(inputs).squeeze(1), inputs[:, 0])


def pace(config: dict[str, Any]) -> None:
    """Take a moment in each step, a long one as long as the test has something to do to the job."""
    time.sleep(0.15 if Path(config["busy"]).exists() else 0.005)


def train_on_batches(config: dict[str, Any]) -> None:
    """Train on augmented samples read by reader processes; rank 0 leaves the weights in a file."""
    model, optimizer = model_of()
    state = et.TrainState(model=model, optimizer=optimizer)
    batches = et.ElasticBatches(
        Augmented(config["size"], config["pids"]),
        global_batch_size=config["batch"],
        data_epochs=config["data_epochs"],
        num_workers=2,
        order=et.WeightedOrder([1.0 + index % 3 for index in range(config["size"])], config["size"])
        if config.get("weighted")
        else None,
    )
    for step in state.steps(batches):
        with step:
            for inputs in step:
                pace(config)
                step.backward(loss_of(model, inputs))
            optimizer.step()
    leave_weights(config, model)


def leave_weights(config: dict[str, Any], model: torch.nn.Module) -> None:
    """Leave the weights in the file that the config names."""
    if et.get_context().rank == 0:
        torch.save(model.state_dict(), config["weights"])


class Counted:
    """A stream without a state."""

    def __init__(self, shard: int, length: int) -> None:
        self._range = range(1000 * shard, 1000 * shard + length)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in self._range:
            yield {"id": number, "x": torch.full((FEATURES,), number / 1000, dtype=torch.float64)}


class Iterated(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream for a StatefulDataLoader."""

    def __init__(self, shard: int, length: int) -> None:
        self._numbers = list(range(1000 * shard, 1000 * shard + length))
        self._next = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self._next < len(self._numbers):
            self._next += 1
            number = self._numbers[self._next - 1]
            yield {"id": number, "x": torch.full((FEATURES,), number / 1000, dtype=torch.float64)}
        self._next = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


def numbers_of(files: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of text files, a number a line; for Hugging Face's `from_generator`."""
    for file in files:
        for line in Path(file).read_text().split():
            yield {"id": int(line), "x": [int(line) / 1000] * FEATURES}


def make_stream(config: dict[str, Any], shard: int, num_shards: int) -> Iterable[dict[str, Any]]:
    """Return a stream of the kind that the config names; its lengths differ."""
    kind, length = config["kind"], config["length"] - 7 * (shard % 3)
    if kind == "counted":
        return Counted(shard, length)
    if kind == "torchdata":
        from torchdata.stateful_dataloader import StatefulDataLoader

        loader: Iterable[dict[str, Any]] = StatefulDataLoader(Iterated(shard, length), batch_size=None)
        return loader
    if kind == "huggingface":
        from datasets import IterableDataset

        files = sorted(str(path) for path in Path(config["files"]).glob("*.txt"))
        dataset = IterableDataset.from_generator(numbers_of, gen_kwargs={"files": files})
        sharded: Iterable[dict[str, Any]] = dataset.shard(num_shards=num_shards, index=shard)
        return sharded
    import webdataset

    tars = sorted(str(path) for path in Path(config["files"]).glob("*.tar"))[shard::num_shards]
    pipeline: Iterable[dict[str, Any]] = webdataset.WebDataset(
        tars, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
    ).decode()
    return pipeline


def collate(samples: list[dict[str, Any]]) -> torch.Tensor:
    """Return the inputs of samples of any kind."""
    return torch.stack(
        [
            torch.full((FEATURES,), float(sample["__key__"]) / 1000, dtype=torch.float64)
            if "__key__" in sample
            else torch.as_tensor(sample["x"], dtype=torch.float64)
            for sample in samples
        ]
    )


def train_on_streams(config: dict[str, Any]) -> None:
    """Train on streams of the kind that the config names."""
    model, optimizer = model_of()
    state = et.TrainState(model=model, optimizer=optimizer)
    streams = et.ElasticStreams(
        lambda shard, num_shards: make_stream(config, shard, num_shards),
        global_batch_size=config["batch"],
        data_epochs=config["data_epochs"],
        collate=collate,
        exchange_every=10,
        sample_key=lambda sample: int(sample["__key__"]) if "__key__" in sample else sample["id"],
    )
    for step in state.steps(streams):
        with step:
            for inputs in step:
                pace(config)
                step.backward(loss_of(model, inputs))
            optimizer.step()
    leave_weights(config, model)
