"""Break a gloo group from outside, and keep it broken until it is closed."""

from __future__ import annotations

import threading

from elastic_train.adapters.framework.torch.sockets import GroupSockets

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.2


class Breaker:
    """Takes away all that a thread inside gloo may wait for, until `end`.

    gloo cannot be asked to give up. What it waits for (besides values of the store, whose wait ends by itself) is
    data on a connection, or a peer that should connect. Connections are shut down; a peer that never connects is
    stood in for. New connections may still come up (user code may be in `new_group`, a peer may connect late), so a
    thread repeats it.
    """

    def __init__(self, sockets: GroupSockets) -> None:
        self._sockets = sockets
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._reason: str | None = None

    @property
    def reason(self) -> str | None:
        """Return why the group was broken; None while it is whole."""
        return self._reason

    def trip(self, reason: str) -> None:
        """Break the group now. From any thread; idempotent; takes a millisecond or so."""
        with self._lock:
            if self._reason is not None or self._ended.is_set():
                return
            self._reason = reason
            self._sockets.shut_down()
            self._thread = threading.Thread(target=self._repeat, name="group-breaker", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Stop breaking; nothing happens any more after this returned."""
        with self._lock:
            self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _repeat(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._ended.wait(pause_s):
            self._sockets.stand_in_for_missing_peers()
            self._sockets.shut_down()
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
