"""The objects of a TrainState, each as a tree that can be taken and put back in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from elastic_train.errors import StateNotRestorable


class StateItem(Protocol):
    """One bound object."""

    def capture(self) -> Any:
        """Return its state as a tree; tensors are its own, not copies."""

    def check(self, tree: Any) -> list[str]:
        """Return what in `tree` does not fit this object; nothing means that `restore` will succeed."""

    def restore(self, tree: Any, *, keep: bool) -> None:
        """Take over the state, in place where shapes fit. A tensor that is already its own is left as it is.

        Args:
            tree: What `capture` returned, here or elsewhere.
            keep: Whether tensors of the tree may become part of the object; else they are copied.
        """


def bind_item(name: str, value: Any) -> StateItem:
    """Return how the state of `value` is taken and put back.

    Raises:
        StateNotRestorable: It has none that could be.
    """
    if isinstance(value, torch.nn.Module):
        return ModuleItem(value) if _is_plain_module(value) else ObjectItem(value)
    if isinstance(value, torch.optim.Optimizer):
        own = type(value).load_state_dict is torch.optim.Optimizer.load_state_dict
        return OptimizerItem(value) if own else ObjectItem(value)
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return ObjectItem(value)
    if isinstance(value, dict | list):
        return PlainItem(value)
    raise StateNotRestorable(
        f"{name}: a {type(value).__qualname__} cannot be sent to another worker or written to a checkpoint. "
        "Give it state_dict() and load_state_dict(), or keep the value in a dict."
    )


class ModuleItem:
    """A module: its parameters, its buffers (also those that are not persistent), and what is frozen."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def capture(self) -> dict[str, Any]:
        """Return its parameters and buffers by name, and the names of parameters that require no gradient."""
        frozen = [name for name, parameter in self._module.named_parameters() if not parameter.requires_grad]
        return {"tensors": self._tensors(), "frozen": frozen}

    def check(self, tree: Any) -> list[str]:
        """Compare names and shapes."""
        mine, theirs = self._tensors(), tree["tensors"]
        problems = [f"{name} is missing" for name in mine.keys() - theirs.keys()]
        problems += [f"{name} is unknown here" for name in theirs.keys() - mine.keys()]
        problems += [
            f"{name} has shape {list(theirs[name].shape)}, here {list(mine[name].shape)}"
            for name in mine.keys() & theirs.keys()
            if tuple(theirs[name].shape) != tuple(mine[name].shape)
        ]
        return sorted(problems)

    def restore(self, tree: Any, *, keep: bool) -> None:
        """Copy values in place."""
        del keep  # all is copied into what is there
        frozen = set(tree["frozen"])
        with torch.no_grad():
            for name, mine in self._tensors().items():
                copy_into(mine, tree["tensors"][name])
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(name not in frozen)

    def _tensors(self) -> dict[str, torch.Tensor]:
        named = [*self._module.named_parameters(), *self._module.named_buffers()]
        return {name: tensor.detach() for name, tensor in named}


class OptimizerItem:
    """An optimizer that keeps its state as torch's do; tensors of the same shape are kept and written in place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def capture(self) -> dict[str, Any]:
        """Return its `state_dict`."""
        return dict(self._optimizer.state_dict())

    def check(self, tree: Any) -> list[str]:
        """Compare the parameter groups."""
        mine = [len(group["params"]) for group in self._optimizer.param_groups]
        theirs = [len(group["params"]) for group in tree["param_groups"]]
        return [] if mine == theirs else [f"its parameter groups hold {theirs} parameters, here {mine}"]

    def restore(self, tree: Any, *, keep: bool) -> None:
        """Take over hyperparameters and state."""
        states = dict(tree["state"])
        for group, saved in zip(self._optimizer.param_groups, tree["param_groups"], strict=True):
            for key, value in saved.items():
                if key != "params":
                    group[key] = _merged(group.get(key), value, keep)
            for parameter, index in zip(group["params"], saved["params"], strict=True):
                self._restore_state(parameter, states.pop(index, None), keep)
        for key, value in states.items():  # what the optimizer keeps for no parameter
            self._restore_state(key, value, keep)

    def _restore_state(self, owner: Any, saved: Any, keep: bool) -> None:
        state = self._optimizer.state
        if saved is None:
            state.pop(owner, None)
        else:
            state[owner] = _merged(state.get(owner), saved, keep)


class ObjectItem:
    """Anything with `state_dict` and `load_state_dict`."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def capture(self) -> Any:
        """Return its `state_dict`."""
        return self._value.state_dict()

    def check(self, tree: Any) -> list[str]:
        """Return nothing: only the object itself knows what fits."""
        del tree
        return []

    def restore(self, tree: Any, *, keep: bool) -> None:
        """Have it load the state."""
        self._value.load_state_dict(tree if keep else _merged(None, tree, keep))


class PlainItem:
    """A dict or list of plain values and tensors; the object itself stays the same."""

    def __init__(self, value: dict[Any, Any] | list[Any]) -> None:
        self._value = value

    def capture(self) -> Any:
        """Return it."""
        return self._value

    def check(self, tree: Any) -> list[str]:
        """Compare the type."""
        return (
            []
            if isinstance(tree, type(self._value))
            else [f"it is a {type(tree).__name__}, here a {type(self._value).__name__}"]
        )

    def restore(self, tree: Any, *, keep: bool) -> None:
        """Replace the content."""
        if isinstance(self._value, dict):
            content = {key: _merged(self._value.get(key), value, keep) for key, value in tree.items()}
            self._value.clear()
            self._value.update(content)
        else:
            self._value[:] = _merged(self._value, tree, keep)


def copy_into(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    """Copy values, unless both are the same memory already."""
    if mine.data_ptr() != theirs.data_ptr() or mine.numel() == 0:
        mine.copy_(theirs)


def _merged(mine: Any, theirs: Any, keep: bool) -> Any:
    """Return `theirs`, its tensors written into those of `mine` where they fit: others may hold on to them."""
    if isinstance(theirs, torch.Tensor):
        if isinstance(mine, torch.Tensor) and mine.shape == theirs.shape and mine.dtype == theirs.dtype:
            with torch.no_grad():
                copy_into(mine, theirs)
            return mine
        return theirs if keep else theirs.detach().clone()
    if type(theirs) is dict:
        known = mine if isinstance(mine, Mapping) else {}
        return {key: _merged(known.get(key), value, keep) for key, value in theirs.items()}
    if type(theirs) in (list, tuple):
        same = isinstance(mine, list | tuple) and len(mine) == len(theirs)
        return type(theirs)(_merged(mine[at] if same else None, new, keep) for at, new in enumerate(theirs))
    return theirs


def _is_plain_module(module: torch.nn.Module) -> bool:
    base = torch.nn.Module
    return all(
        type(part).state_dict is base.state_dict
        and type(part).load_state_dict is base.load_state_dict
        and type(part).get_extra_state is base.get_extra_state
        and type(part)._save_to_state_dict is base._save_to_state_dict  # noqa: SLF001  its override is how modules add state
        for part in module.modules()
    )
