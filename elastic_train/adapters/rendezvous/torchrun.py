"""torchrun's `RendezvousHandler` on the Coordination port.

Written for the contract of ``torch.distributed.elastic.rendezvous.RendezvousHandler`` (tried with torch 2.13). Every
round has a store server of its own, hosted by the agent of rank 0: nothing of an earlier incarnation can be read in it
(pytorch #135712, #167288). A round is formed when every member of the one before that still lives waits for it, so that
there are never two at once, and a restart needs no time-out; nodes that come later are admitted by a further round.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from elastic_train.adapters.rendezvous.board import Board, Round, View
from elastic_train.errors import CoordinationError

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_STORE_TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """How many nodes form a round, and how long is waited.

    Attributes:
        min_nodes: Fewer do not begin.
        max_nodes: More are not admitted.
        join_timeout_s: For a round to be formed.
        last_call_s: For further nodes, once there are enough; those of the round before are not waited for longer.
    """

    min_nodes: int
    max_nodes: int
    join_timeout_s: float = 600.0
    last_call_s: float = 1.0


class ElasticRendezvous(RendezvousHandler):
    """One torchrun agent's way into the rounds of a job.

    Args:
        board: The keys of this job, and this node's place among them.
        limits: Sizes and patience.
        address: Where the other nodes reach this one; the host's name if None.
    """

    def __init__(self, board: Board, run_id: str, limits: NodeLimits, address: str | None = None) -> None:
        self._board = board
        self._run_id = run_id
        self._limits = limits
        self._address = address or socket.getfqdn()
        self._round = Round()
        self._server: TCPStore | None = None
        self._left = False

    def get_backend(self) -> str:
        """Return the name under which torchrun knows this backend."""
        return "elastic_train"

    @property
    def use_agent_store(self) -> bool:
        """Return True: the store of a round serves the training processes, too."""
        return True

    def get_run_id(self) -> str:
        """Return the job's name."""
        return self._run_id

    # ------------------------------------------------------------------ rounds

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for a round with this node in it, and connect to its store.

        Raises:
            RendezvousClosedError: There shall be no further round.
            RendezvousConnectionError: The coordination service did not answer.
            RendezvousTimeoutError: No round was formed in time.
        """
        deadline_s = time.monotonic() + self._limits.join_timeout_s
        try:
            self._board.wait_in_line(self._address)
            while True:
                self._round = self._form(deadline_s)
                info = self._connect(deadline_s)
                if info is not None:
                    return info
                self._board.wait_in_line(self._address)
        except CoordinationError as error:
            raise RendezvousConnectionError(f"rendezvous of {self._run_id}: {error}") from error

    def num_nodes_waiting(self) -> int:
        """Return how many nodes a further round would admit, or bring back."""
        view = self._board.view
        waiting = [node for node in view.waiting if node in view.nodes]
        working = [node for node in view.round.members if node in view.nodes and node not in view.waiting]
        return len(waiting) if len(working) < self._limits.max_nodes else 0

    def is_closed(self) -> bool:
        """Say whether there shall be no further round."""
        return self._board.view.closed

    def set_closed(self) -> None:
        """Let there be no further round.

        Raises:
            RendezvousConnectionError: The coordination service did not answer.
        """
        try:
            self._board.close_rendezvous()
        except CoordinationError as error:
            raise RendezvousConnectionError(f"rendezvous of {self._run_id} was not closed: {error}") from error

    def shutdown(self) -> bool:
        """Close the rendezvous and leave it; say whether the others know. Idempotent."""
        if self._left:
            return True
        self._left = True
        try:
            self._board.close_rendezvous()
        except CoordinationError as error:
            _log.warning("the rendezvous of %s was not closed: %s", self._run_id, error)
            return False
        finally:
            self._board.leave()
            self._server = None
        return True

    # ------------------------------------------------------------------ inside

    def _form(self, deadline_s: float) -> Round:
        """Wait for a newer round with this node in it, and form it when it is time."""
        quiet_since_s, seen = time.monotonic(), frozenset[str]()
        while True:
            view, now = self._board.view, time.monotonic()
            if self._is_in(view):
                return view.round
            if now >= deadline_s:
                came = f"{len(view.waiting)} of at least {self._limits.min_nodes} nodes came"
                raise RendezvousTimeoutError(f"{came} within {self._limits.join_timeout_s:.0f} s")
            if view.waiting.keys() != seen:
                quiet_since_s, seen = now, frozenset(view.waiting)
            due_s = self._due_s(view, quiet_since_s)
            if due_s is not None and now >= due_s:
                chosen = sorted(view.waiting, key=view.seniority)[: self._limits.max_nodes]
                self._board.seal(view, tuple(chosen))
                due_s = now + _RETRY_S
            self._await_change(view, min(deadline_s, deadline_s if due_s is None else due_s) - now)

    def _await_change(self, seen: View, timeout_s: float) -> None:
        self._board.wait_for(lambda view: view != seen, max(0.0, timeout_s))

    def _is_in(self, view: View) -> bool:
        """Say whether the round that this node waits for is there.

        Raises:
            RendezvousClosedError: There shall be no further round.
        """
        node = self._board.node
        if view.round.number > self._round.number and node in view.round.members and node not in view.waiting:
            return True
        if view.closed:
            raise RendezvousClosedError(f"the rendezvous of {self._run_id} is closed")
        return False

    def _due_s(self, view: View, quiet_since_s: float) -> float | None:
        """Return when a round shall be formed of those who wait; None: others must come, or go, first."""
        working = [node for node in view.round.members if node in view.nodes and node not in view.waiting]
        if working or len(view.waiting) < self._limits.min_nodes or self._board.node not in view.waiting:
            return None
        returned = set(view.waiting) <= set(view.round.members)
        complete = returned or len(view.waiting) >= self._limits.max_nodes
        return quiet_since_s if complete else quiet_since_s + self._limits.last_call_s

    def _connect(self, deadline_s: float) -> RendezvousInfo | None:
        """Return the round's store, ranks and address; None if its host was lost before it could be reached."""
        number, members = self._round.number, self._round.members
        rank, host = members.index(self._board.node), members[0]
        self._server = None  # of the round before: whoever still uses it belongs to that
        if rank == 0:
            self._server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=_STORE_TIMEOUT)
            self._board.offer_store(number, f"{self._address}:{self._server.port}")
        view = self._board.wait_for(
            lambda view: number in view.stores or host not in view.nodes or view.round.number > number or view.closed,
            max(0.0, deadline_s - time.monotonic()),
        )
        if view is None:
            raise RendezvousTimeoutError(f"{host}, which hosts the store of round {number}, offered none in time")
        if number not in view.stores:
            return None
        address, _, port = view.stores[number].rpartition(":")
        store: Store = self._server or TCPStore(address, int(port), is_master=False, timeout=_STORE_TIMEOUT)
        return RendezvousInfo(
            store=PrefixStore(f"elastic_train/round-{number}", store),
            rank=rank,
            world_size=len(members),
            bootstrap_store_info=RendezvousStoreInfo(address, int(port)),
        )
