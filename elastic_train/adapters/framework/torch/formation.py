"""Form the group of one world, abortable from another thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

from elastic_train.adapters.framework.torch.connecting import connect
from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.adapters.framework.torch.mesh import Wakeup
from elastic_train.adapters.framework.torch.process_group import DefaultProcessGroup
from elastic_train.errors import CoordinationError, GroupBroken
from elastic_train.ports import Formation


class FormationAttempt:
    """One `form`: runs in the training thread while others may `abort` it."""

    def __init__(self, formation: Formation, *, process_group: bool) -> None:
        self._formation = formation
        self._wakeup = Wakeup()
        self._changed = threading.Condition()
        self._abort_reason: str | None = None
        self._process_group = DefaultProcessGroup(formation, self._fetch) if process_group else None

    def run(self) -> TorchGroup:
        """Connect the members and form torch's process group.

        Raises:
            GroupBroken: A member did not come in time, or `abort` was called.
            UsageError: Somebody else has initialised torch.distributed.
        """
        try:
            mesh = connect(self._formation, self._wakeup, self._fetch)
        except BaseException:
            self._wakeup.close()
            if self._process_group is not None:
                self._process_group.close()
            raise
        group = TorchGroup(mesh, self._process_group)
        try:
            if self._process_group is not None:
                self._process_group.form()
        except BaseException:
            group.close()
            raise
        return group

    def abort(self, reason: str = "the formation of the group was aborted") -> None:
        """Make `run` fail now. From any thread; does not block."""
        with self._changed:
            self._abort_reason = self._abort_reason or reason
            self._changed.notify_all()
        self._wakeup.set(reason)
        if self._process_group is not None:
            self._process_group.abort(reason)

    def _fetch(self, keys: Sequence[str], timeout_s: float) -> list[bytes]:
        """Get values of the exchange, in a thread of its own: `abort` need not know how to interrupt the exchange.

        A fetch that was aborted ends by its own time-out, and what it brings is dropped.
        """
        outcome: Future[list[bytes]] = Future()

        def run() -> None:
            try:
                outcome.set_result(self._formation.exchange.get(keys, timeout_s))
            except Exception as error:  # noqa: BLE001  whatever it is belongs to the thread that waits
                outcome.set_exception(error)
            with self._changed:
                self._changed.notify_all()

        threading.Thread(target=run, name="group-exchange", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: outcome.done() or self._abort_reason is not None)
        if self._abort_reason is not None:
            raise GroupBroken(self._abort_reason)
        try:
            return outcome.result()
        except CoordinationError as error:
            raise GroupBroken(f"the members' addresses could not be exchanged: {error}") from error
