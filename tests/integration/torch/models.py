"""Small models of the kinds that bit-identical training must hold for, and how a step of each is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from elastic_train.adapters.framework.torch.engine import TorchStepEngine
from elastic_train.adapters.framework.torch.tree import tensors_at

SAMPLES = 64


class Transformer(nn.Module):
    """Two layers with dropout, over characters."""

    def __init__(self, symbols: int = 64, width: int = 16, length: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits of the following tokens: [samples, tokens, symbols]."""
        hidden = self.layers(self.embedding(tokens) + self.place, mask=self.mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden)
        return logits


@dataclass
class Program:
    """Objects of a TrainState, and the user's code of a step."""

    items: dict[str, Any]
    data: tuple[torch.Tensor, torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    update: Callable[[], None]
    scale: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda loss: loss)


def mlp() -> Program:
    """Two optimizers, a schedule, clipping by global norm."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 4))
    first = torch.optim.AdamW(model[0].parameters(), lr=0.02)
    second = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(first, T_max=40)
    inputs = torch.randn(SAMPLES, 10)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        first.step()
        second.step()
        schedule.step()

    items = {"model": model, "first": first, "second": second, "schedule": schedule}
    return Program(items, (inputs, inputs[:, :4].argmax(1)), lambda x, y: functional.cross_entropy(model(x), y), update)


def cnn() -> Program:
    """Batch norm, and a gradient scaler."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    inputs = torch.randn(SAMPLES, 1, 8, 8)

    def update() -> None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    return Program(
        {"model": model, "optimizer": optimizer, "scaler": scaler},
        (inputs, (inputs.mean((1, 2, 3)) > 0).long()),
        lambda x, y: functional.cross_entropy(model(x), y),
        update,
        scaler.scale,
    )


def transformer() -> Program:
    """Dropout, embeddings, AdamW; bfloat16 autocast as in mixed precision."""
    torch.manual_seed(3)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens = torch.frombuffer(bytearray(hashlib.shake_256(b"text").digest(SAMPLES * 13)), dtype=torch.uint8).long() % 64
    tokens = tokens.view(SAMPLES, 13)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return functional.cross_entropy(model(x).float().flatten(0, 1), y.flatten())

    return Program({"model": model, "optimizer": optimizer}, (tokens[:, :-1], tokens[:, 1:]), loss, optimizer.step)


PROGRAMS: dict[str, Callable[[], Program]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def digest(engine: TorchStepEngine) -> str:
    """Return the SHA-256 of weights, optimizer state and buffers."""
    hashed = hashlib.sha256()
    for path, tensor in sorted(tensors_at(engine.export()), key=lambda item: str(item[0])):
        hashed.update(str((path, tensor.dtype, tuple(tensor.shape))).encode())
        hashed.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def pieces(first: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the half-open ranges of micro-batches."""
    for start in range(first, stop, size):
        yield start, min(start + size, stop)
