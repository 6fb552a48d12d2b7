"""The same plays for every framework: its members run as threads or as processes, its programs train one number."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from elastic_train.core.records import Stage, WorkerId, WorldRecord
from elastic_train.errors import GroupBroken
from elastic_train.ports import Formation, Framework, Group, StepEngine
from elastic_train.testing.toy_framework import Switchboard, ToyFramework, ToyModel
from tests.integration.torch.harness import FileExchange, Worker, workers

PATIENCE_S = 30.0


class Program(Protocol):
    """A model of one number, ``weight``; the loss of a part is a number times it, so that number is its gradient."""

    items: dict[str, Any]

    def loss(self, slope: float) -> Any:
        """Return a loss with this gradient."""

    def descend(self) -> None:
        """Subtract the gradient from the weight."""

    @property
    def weight(self) -> float:
        """Return the number."""

    @weight.setter
    def weight(self, value: float) -> None: ...


class ToyProgram:
    """With the toy framework."""

    def __init__(self) -> None:
        self.model = ToyModel(weight=1.0)
        self.items: dict[str, Any] = {"model": self.model}

    def loss(self, slope: float) -> float:
        """Return the slope: a toy's loss is its gradient."""
        return slope

    def descend(self) -> None:
        """Take a step."""
        self.model.sgd(1.0)

    @property
    def weight(self) -> float:
        """Return the number."""
        return self.model.weight

    @weight.setter
    def weight(self, value: float) -> None:
        self.model.weight = value


class TorchProgram:
    """With torch."""

    def __init__(self) -> None:
        self.model = nn.Module()
        self.model.weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0, momentum=0.5)
        self.items: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}

    def loss(self, slope: float) -> Any:
        """Return slope times weight."""
        return slope * self._parameter

    def descend(self) -> None:
        """Take a step."""
        self.optimizer.step()

    @property
    def weight(self) -> float:
        """Return the number."""
        return float(self._parameter.detach())

    @weight.setter
    def weight(self, value: float) -> None:
        with torch.no_grad():
            self._parameter.fill_(value)

    @property
    def _parameter(self) -> torch.Tensor:
        parameter = self.model.weight
        assert isinstance(parameter, torch.Tensor)
        return parameter


@dataclass
class Member:
    """One of those who play."""

    index: int
    framework: Framework
    folder: Path
    program: Program

    def formation(self, members: Sequence[int], membership_epoch: int, timeout_s: float = PATIENCE_S) -> Formation:
        """Return the formation of a world of these members."""
        folder = self.folder / str(membership_epoch)
        folder.mkdir(exist_ok=True)
        names = tuple(WorkerId(f"worker-{index}") for index in members)
        world = WorldRecord(membership_epoch, Stage.SEALED, names)
        return Formation(world, members.index(self.index), "127.0.0.1", FileExchange(folder), timeout_s)

    def form(self, members: Sequence[int], membership_epoch: int = 1) -> Group:
        """Form that world."""
        return self.framework.form(self.formation(members, membership_epoch))

    def engine(self, group: Group | None = None) -> StepEngine:
        """Return the program's engine, in this world."""
        engine = self.framework.bind(self.program.items)
        engine.attach(group)
        return engine

    def meet(self, name: str, count: int) -> None:
        """Wait until so many have come here."""
        exchange = FileExchange(self.folder)
        exchange.set(f"{name}.{self.index}", b"here")
        exchange.get([f"{name}.{index}" for index in range(count)], PATIENCE_S)

    def raises_group_broken(self, act: Callable[[], Any]) -> bool:
        """Say whether it does."""
        try:
            act()
        except GroupBroken:
            return True
        return False


Play = Callable[[Member], Any]
Cast = Callable[[int, Play, Path], list[Any]]
"""Plays with so many members in that folder; returns what each of them returned."""


def toys(count: int, play: Play, folder: Path) -> list[Any]:
    """Play in threads, with the toy framework."""
    switchboard = Switchboard()
    members = [Member(index, ToyFramework(switchboard), folder, ToyProgram()) for index in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return [played.result(PATIENCE_S) for played in [pool.submit(play, member) for member in members]]


def torches(count: int, play: Play, folder: Path) -> list[Any]:
    """Play in processes, with torch."""

    def body(worker: Worker) -> Any:
        return play(Member(worker.index, worker.framework, folder, TorchProgram()))

    with workers(count, body) as running:
        return running.results()


def abort_soon(act: Callable[[], None]) -> threading.Thread:
    """Call from another thread, as an agent does."""
    thread = threading.Thread(target=act)
    thread.start()
    return thread
