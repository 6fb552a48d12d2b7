"""The collectives of one simulated world: barriers that complete for each member at its own moment, or break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from elastic_train.core.records import WorkerId
from elastic_train.testing.simulation.kernel import Kernel, Process

COLLECTIVE_TIMEOUT_S = 10.0
"""After this long in one collective a member takes its world for broken."""

_NOTICED = 0.6  # how likely a member is a neighbour of the lost one


class Member(Protocol):
    """One worker's side."""

    @property
    def process(self) -> Process:
        """Return the process that takes part."""
        ...

    def broken(self, group: SimulatedGroup, detail: str) -> None:
        """Take in that a collective failed."""


class Referee(Protocol):
    """Whoever looks at what the members of a world do together."""

    def completed(self, kind: str, payloads: list[Any]) -> None:
        """Look at what the members gave, by rank."""

    def mismatched(self, kind: str, other: str) -> None:
        """Hear that two members called different collectives."""


class SimulatedGroup:
    """All members call the same collectives in the same order; a member that is gone breaks the rest, sooner or later.

    Like a ring over TCP: neighbours of a lost member see their connection reset at once, the others only when someone
    aborts, or after the time-out.
    """

    def __init__(self, kernel: Kernel, members: tuple[WorkerId, ...], referee: Referee) -> None:
        self.members = members
        self._kernel = kernel
        self._referee = referee
        self._kinds: list[str] = []
        self._payloads: list[dict[WorkerId, Any]] = []
        self._present: dict[WorkerId, Member] = {}
        self._at: dict[WorkerId, int] = {}
        self._waits: dict[WorkerId, tuple[int, Callable[[Any], None]]] = {}
        self._tokens = 0
        self._gone: set[WorkerId] = set()
        self._noticed: dict[WorkerId, str] = {}

    def join(self, worker_id: WorkerId, member: Member) -> None:
        """Take one's place."""
        self._present[worker_id] = member
        self._at[worker_id] = 0
        for lost in self.members:
            if lost in self._gone and self._kernel.random.random() < _NOTICED:
                member.process.post(self._kernel.random.random() * 0.05, self._notice, worker_id, lost)

    def has(self, worker_id: WorkerId) -> bool:
        """Say whether a member is connected."""
        return worker_id in self._present and worker_id not in self._gone

    def call(self, worker_id: WorkerId, kind: str, payload: Any, then: Callable[[list[Any]], None]) -> None:
        """Take part in the next collective; `then` gets every member's payload, by rank."""
        if worker_id in self._gone:  # its own connections were cut
            self._noticed.setdefault(worker_id, "the connections of this group are closed")
            self._wait(worker_id, then, kind)
            return
        number = self._at[worker_id]
        self._at[worker_id] = number + 1
        if number == len(self._kinds):
            self._kinds.append(kind)
            self._payloads.append({})
        if self._kinds[number] != kind:
            self._referee.mismatched(self._kinds[number], kind)
        payloads = self._payloads[number]
        payloads[worker_id] = payload
        self._wait(worker_id, then, kind)
        if len(payloads) == len(self.members):
            self._complete(kind, [payloads[member] for member in self.members])

    def receive(
        self, receiver: WorkerId, sender: WorkerId, delay_s: float, ready: Callable[[], bool], then: Callable[[], None]
    ) -> None:
        """Wait for one message of another member; it is sent if that member is there and ready after so long."""
        token = self._wait(receiver, lambda _: then(), "receiving the state")

        def arrive() -> None:
            if self.has(sender) and ready():
                self._hand_over(receiver, token, None)

        self._present[receiver].process.post(delay_s, arrive)

    def leave(self, worker_id: WorkerId) -> None:
        """Close this member's connections: its process ended, or it aborted or left the group."""
        self._waits.pop(worker_id, None)
        if worker_id in self._gone:
            return
        self._gone.add(worker_id)
        for other, member in self._present.items():
            if other not in self._gone and self._kernel.random.random() < _NOTICED:
                member.process.post(self._kernel.random.random() * 0.05, self._notice, other, worker_id)

    def _wait(self, worker_id: WorkerId, then: Callable[[Any], None], what: str) -> int:
        self._tokens += 1
        self._waits[worker_id] = (self._tokens, then)
        noticed = self._noticed.get(worker_id)
        delay_s, detail = (COLLECTIVE_TIMEOUT_S, f"{what} timed out") if noticed is None else (0.0, noticed)
        self._present[worker_id].process.post(delay_s, self._break, worker_id, self._tokens, detail)
        return self._tokens

    def _complete(self, kind: str, payloads: list[Any]) -> None:
        self._referee.completed(kind, payloads)
        for member, (token, _) in list(self._waits.items()):
            delay_s = 0.0003 + self._kernel.random.random() * 0.003
            self._present[member].process.post(delay_s, self._hand_over, member, token, payloads)

    def _hand_over(self, worker_id: WorkerId, token: int, payloads: Any) -> None:
        waited = self._waits.get(worker_id)
        if waited is not None and waited[0] == token:
            del self._waits[worker_id]
            waited[1](payloads)

    def _notice(self, worker_id: WorkerId, lost: WorkerId) -> None:
        self._noticed[worker_id] = detail = f"connection to {lost} was reset"
        waited = self._waits.get(worker_id)
        if waited is not None:
            self._break(worker_id, waited[0], detail)

    def _break(self, worker_id: WorkerId, token: int, detail: str) -> None:
        """Let a wait fail for one member, unless its result or its failure is there already."""
        waited = self._waits.get(worker_id)
        if waited is not None and waited[0] == token:
            del self._waits[worker_id]
            self._present[worker_id].broken(self, detail)
