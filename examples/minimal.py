"""The smallest elastic job: fit a line through noisy points, on as many workers as this machine holds."""

import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import elastic_train as et


def points(samples: int = 4096) -> TensorDataset:
    inputs = torch.linspace(-1, 1, samples).unsqueeze(1)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    return TensorDataset(inputs, 3 * inputs - 1 + 0.1 * noise)


def train(config: dict[str, float]) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    state = et.TrainState(model=model, optimizer=optimizer)  # all that a step changes
    batches = et.ElasticBatches(points(), global_batch_size=64, data_epochs=2)
    for step in state.steps(batches):  # the same global batches at every world size
        with step:  # every worker commits it, or it is run again
            for inputs, targets in step:  # this worker's part of the global batch
                loss = step.backward(F.mse_loss(model(inputs), targets))
            optimizer.step()
            step.report(loss=loss)  # published when the step commits


if __name__ == "__main__":
    result = et.ElasticTrainer(train, config={"lr": 0.1}, min_workers=1, max_workers=4).fit()
    result.show()
