"""Recognise handwritten digits (scikit-learn's, no download), with validation after every data epoch and checkpoints.

While it runs, try in another terminal:  elastic-train status digits   |   elastic-train resize digits 4
Run again under the same name, it goes on from its newest checkpoint:  python examples/digits.py --data-epochs 30
"""

import argparse
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import elastic_train as et


def digits() -> tuple[TensorDataset, TensorDataset]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1500], labels[:1500]), TensorDataset(images[1500:], labels[1500:])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)
    )


def train(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    state = et.TrainState(model=model, optimizer=optimizer)
    training, validation = digits()
    batches = et.ElasticBatches(training, global_batch_size=100, data_epochs=config["data_epochs"])
    held_out = et.ElasticBatches(validation, global_batch_size=100, shuffle=False)

    def score(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = model(images)
        correct = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": correct}

    for step in state.steps(batches):
        with step:
            for images, labels in step:
                loss = step.backward(F.cross_entropy(model(images), labels))
            optimizer.step()
            step.report(loss=loss)
        if step.committed and (step.index + 1) % 15 == 0:
            scores = state.evaluate(held_out, score)
            if et.get_context().rank == 0:
                print(f"data epoch {step.data_epoch}: accuracy {scores['accuracy']:.1%}, loss {scores['loss']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    result = et.ElasticTrainer(
        train,
        config={"lr": 3e-3, "data_epochs": arguments.data_epochs},
        name="digits",
        min_workers=1,
        max_workers=8,
        num_workers=arguments.workers,
        checkpoint_config=et.CheckpointConfig(every_steps=30, keep=2),
    ).fit()
    result.show()


if __name__ == "__main__":
    main()
