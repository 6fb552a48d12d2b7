"""What is asked of the objects and values that user code hands to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from elastic_train.errors import StateNotRestorable, UsageError


def check_loss(loss: Any) -> None:
    """Refuse what has no gradient to accumulate.

    Raises:
        UsageError: It is not a tensor of one element that requires grad.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
        raise UsageError(f"step.backward() takes the mean loss of a part, a tensor with one element; it got {what}.")
    if not loss.requires_grad:
        raise UsageError(
            "the loss given to step.backward() has no gradient: it was detached, or computed under torch.no_grad()."
        )


def distinct_parameters(modules: Mapping[str, torch.nn.Module]) -> list[torch.nn.Parameter]:
    """Return the modules' parameters, shared ones once, in the order of registration."""
    found = {id(parameter): parameter for module in modules.values() for parameter in module.parameters()}
    return list(found.values())


def refuse_sparse_gradients(modules: Mapping[str, torch.nn.Module]) -> None:
    """Find modules that make sparse gradients.

    Raises:
        StateNotRestorable: There is one.
    """
    for name, module in modules.items():
        for path, part in module.named_modules():
            if getattr(part, "sparse", False) is True and isinstance(part, torch.nn.Embedding | torch.nn.EmbeddingBag):
                raise StateNotRestorable(
                    f"{name}.{path}: sparse gradients cannot be reduced in flat buckets. "
                    "Build the embedding with sparse=False."
                )


def refuse_strangers(optimizers: Mapping[str, torch.optim.Optimizer], modules: Mapping[str, torch.nn.Module]) -> None:
    """Find parameters of optimizers that are in no module.

    Raises:
        UsageError: There is one.
    """
    known = {id(parameter) for module in modules.values() for parameter in module.parameters()}
    for name, optimizer in optimizers.items():
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if id(parameter) not in known:
                    raise UsageError(
                        f"{name}: a parameter of shape {list(parameter.shape)} in its group {number} belongs to no "
                        "module in TrainState, so its gradient would not be reduced. "
                        "Add the module that owns it to TrainState."
                    )
