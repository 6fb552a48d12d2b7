"""PyTorch: groups formed and aborted in place over gloo, and a step engine with a reducer of its own."""

from elastic_train.adapters.framework.torch.framework import TorchFramework

__all__ = ["TorchFramework"]
