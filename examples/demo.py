"""Train a character model on the Python standard library's own source while its workers are killed, drained and added.

Four workers begin. Two of them are killed with SIGKILL, one is drained, two are added. Watch the loss:
it does not notice. At the end: a summary, and a picture of loss and world size over time.
"""

import argparse
import os
import signal
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import elastic_train as et

CONTEXT = 64  # characters that the model sees
VOCABULARY = 128  # ASCII
STEPS = 500


class Source:
    """Windows of CONTEXT + 1 characters of the standard library's source: what stands there, and what comes next."""

    def __init__(self, samples: int) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        text = b"\n".join(path.read_bytes() for path in files)
        characters = bytes(character for character in text if character < VOCABULARY)
        self._text = torch.frombuffer(bytearray(characters), dtype=torch.uint8).long()
        self._stride = (len(self._text) - CONTEXT - 1) // samples
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = self._text[index * self._stride : index * self._stride + CONTEXT + 1]
        return window[:-1], window[1:]


class CharacterModel(nn.Module):
    """A small causal transformer."""

    def __init__(self, width: int = 96, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(torch.zeros(CONTEXT, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Return the logits of what follows each character."""
        hidden = self.blocks(self.characters(characters) + self.positions, mask=self.mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden)
        return logits


def train(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = CharacterModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    state = et.TrainState(model=model, optimizer=optimizer)
    batches = et.ElasticBatches(Source(samples=config["steps"] * 24), global_batch_size=24)
    for step in state.steps(batches):
        with step:
            for characters, following in step:
                logits = model(characters)
                loss = step.backward(F.cross_entropy(logits.flatten(0, 1), following.flatten()))
            optimizer.step()
            step.report(loss=loss)


class Nemesis:
    """Does to the running job what spot machines do, each at its step."""

    def __init__(self, steps: int) -> None:
        self.trainer: et.ElasticTrainer | None = None
        self._plan: list[tuple[int, Callable[[et.ElasticTrainer], object]]] = [
            (steps * 1 // 6, lambda trainer: kill(trainer, rank=2)),
            (steps * 2 // 6, lambda trainer: kill(trainer, rank=0)),
            (steps * 3 // 6, lambda trainer: trainer.drain(trainer.status().world_workers[1].worker_id)),
            (steps * 4 // 6, lambda trainer: trainer.resize(6)),
        ]

    def on_step(self, step: et.StepMetrics) -> None:
        """Strike if it is time."""
        if self.trainer is not None and self._plan and step.step >= self._plan[0][0]:
            _, act = self._plan.pop(0)
            act(self.trainer)


def kill(trainer: et.ElasticTrainer, rank: int) -> None:
    os.kill(trainer.status().world_workers[rank].pid, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--picture", type=Path, default=Path("demo.png"), help="where to draw the run")
    arguments = parser.parse_args()

    nemesis = Nemesis(arguments.steps)
    trainer = et.ElasticTrainer(
        train,
        config={"lr": 3e-3, "steps": arguments.steps},
        min_workers=2,
        max_workers=8,
        num_workers=4,
        checkpoint_config=et.CheckpointConfig(every_steps=100),
        on_step=nemesis.on_step,
    )
    nemesis.trainer = trainer
    result = trainer.fit()
    result.show()
    print(f"picture: {result.plot(arguments.picture).absolute()}")


if __name__ == "__main__":
    main()
