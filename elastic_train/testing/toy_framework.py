"""A framework of one number: the ports' smallest honest implementation, for tests of everything around a framework.

Its "processes" are threads of one process that meet in a `Switchboard`. The model is a float, the gradient a float, a
collective a rendezvous on a condition; abort, transfer and rollback behave as the ports promise.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgpack

from elastic_train.errors import GroupBroken, StateNotRestorable
from elastic_train.ports import Formation, Group, StepPlan


@dataclass
class ToyModel:
    """A parameter and its gradient; ``sgd(rate)`` is its optimizer."""

    weight: float = 0.0
    gradient: float = 0.0
    training: bool = True

    def sgd(self, rate: float) -> None:
        """Take one step down the gradient."""
        self.weight -= rate * self.gradient


class _Room:
    """Where the members of one world meet, round by round."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.broken = False
        self.changed = threading.Condition()
        self._rounds: list[dict[int, Any]] = []
        self._mail: dict[tuple[int, int], list[Any]] = {}

    def exchange(self, round_: int, rank: int, value: Any) -> list[Any]:
        with self.changed:
            while len(self._rounds) <= round_:
                self._rounds.append({})
            values = self._rounds[round_]
            values[rank] = value
            self.changed.notify_all()
            self._wait(lambda: len(values) == self.size)
            return [values[member] for member in range(self.size)]

    def post(self, sender: int, receiver: int, value: Any) -> None:
        with self.changed:
            self._mail.setdefault((sender, receiver), []).append(value)
            self.changed.notify_all()

    def collect(self, sender: int, receiver: int) -> Any:
        with self.changed:
            self._wait(lambda: bool(self._mail.get((sender, receiver))))
            return self._mail[sender, receiver].pop(0)

    def break_up(self) -> None:
        with self.changed:
            self.broken = True
            self.changed.notify_all()

    def _wait(self, predicate: Any) -> None:
        self.changed.wait_for(lambda: self.broken or predicate())
        if not predicate():
            raise GroupBroken("a member left the room")


class Switchboard:
    """Connects the toy workers of one test."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: dict[int, _Room] = {}

    def room(self, membership_epoch: int, size: int) -> _Room:
        """Return where the members of a membership epoch meet."""
        with self._lock:
            return self._rooms.setdefault(membership_epoch, _Room(size))


class ToyGroup:
    """A `Group` in a room of the switchboard."""

    def __init__(self, room: _Room, rank: int) -> None:
        self.room = room
        self._rank = rank
        self._round = 0

    @property
    def rank(self) -> int:
        """Return this member's rank."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Return the number of members."""
        return self.room.size

    def exchange(self, value: Any) -> list[Any]:
        """Return every member's value, by rank."""
        round_, self._round = self._round, self._round + 1
        return self.room.exchange(round_, self._rank, value)

    def all_gather_bytes(self, payload: bytes) -> list[bytes]:
        """Return every member's payload, by rank."""
        return [bytes(value) for value in self.exchange(payload)]

    def abort(self) -> None:
        """Break the room for everybody in it, as shut sockets do."""
        self.room.break_up()

    def close(self) -> None:
        """Leave."""


class ToyEngine:
    """A `StepEngine` over one `ToyModel`."""

    def __init__(self, model: ToyModel) -> None:
        self._model = model
        self._group: ToyGroup | None = None
        self._plan = StepPlan(0, 0, 0, 1)
        self._before = model.weight

    @property
    def intact(self) -> bool:
        """Say that the state is whole: one float is replaced at once."""
        return True

    def attach(self, group: Group | None) -> None:
        """Use this group from now on."""
        if group is not None and not isinstance(group, ToyGroup):
            raise TypeError("a toy engine needs a toy group")
        self._group = group

    def begin(self, plan: StepPlan) -> None:
        """Open a step."""
        self._plan = plan
        self._model.gradient = 0.0
        self._before = self._model.weight

    def backward(self, loss: Any, samples: int, *, last: bool) -> Any:
        """Accumulate ``loss`` itself as the gradient of a part."""
        del last
        self._model.gradient += loss * samples / self._plan.global_samples
        return loss

    def reduce(self, control: Sequence[float]) -> list[float]:
        """Sum gradients and control values over the world, in rank order."""
        contributions = self._require_group().exchange((self._model.gradient, tuple(control)))
        self._model.gradient = sum(gradient for gradient, _ in contributions)
        return [sum(values) for values in zip(*(heard for _, heard in contributions), strict=True)]

    def commit(self) -> None:
        """Close the step."""
        self._before = self._model.weight

    def rollback(self) -> None:
        """Undo the open step."""
        self._model.weight = self._before
        self._model.gradient = 0.0

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Hold the model in evaluation mode."""
        self._model.training = False
        try:
            yield
        finally:
            self._model.training = True

    def describe(self) -> bytes:
        """Return the kind of state there is."""
        description: bytes = msgpack.packb("one float")
        return description

    def send(self, description: bytes, receiver: int) -> None:
        """Send the weight."""
        del description
        group = self._require_group()
        group.room.post(group.rank, receiver, self._model.weight)

    def receive(self, description: bytes, sender: int) -> None:
        """Take over the sender's weight."""
        del description
        group = self._require_group()
        self._model.weight = group.room.collect(sender, group.rank)

    def export(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {"model": {"weight": self._model.weight}}

    def load(self, tree: Mapping[str, Any]) -> None:
        """Take over a tree that `export` made."""
        try:
            self._model.weight = float(tree["model"]["weight"])
        except KeyError as error:
            raise StateNotRestorable(f"the checkpoint has no {error}") from error

    def _require_group(self) -> ToyGroup:
        if self._group is None:
            raise GroupBroken("there is no world")
        return self._group


class ToyFramework:
    """A `Framework` whose processes are threads."""

    name = "toy"
    preload: tuple[str, ...] = ()

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard

    def prepare_process(self, worker_index: int) -> None:
        """Do nothing."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """Return the samples as a list in a tuple: a batch of one member."""
        return (list(samples),)

    def form(self, formation: Formation) -> Group:
        """Meet the other members; their keys in the exchange say that they came."""
        formation.exchange.set(str(formation.rank), b"here")
        formation.exchange.get([str(rank) for rank in range(formation.world_size)], formation.timeout_s)
        return ToyGroup(self._switchboard.room(formation.world.membership_epoch, formation.world_size), formation.rank)

    def is_group_error(self, error: Exception) -> bool:
        """Say that no other error is one."""
        del error
        return False

    def abort_formation(self) -> None:
        """Do nothing: the exchange ends the wait."""

    def bind(self, items: Mapping[str, Any]) -> ToyEngine:
        """Bind ``model``.

        Raises:
            StateNotRestorable: There is no ToyModel of that name.
        """
        model = items.get("model")
        if not isinstance(model, ToyModel):
            raise StateNotRestorable("give model=ToyModel()")
        return ToyEngine(model)
