"""torch.distributed's default process group, formed anew for each membership epoch, so that user code may use it."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from elastic_train.adapters.framework.torch.breaker import Breaker
from elastic_train.adapters.framework.torch.connecting import Fetch
from elastic_train.adapters.framework.torch.sockets import GroupSockets
from elastic_train.adapters.framework.torch.store import ExchangeStore
from elastic_train.errors import GroupBroken, UsageError
from elastic_train.ports import Formation

_BURIAL_S = 1.0
_INTERFACE = "GLOO_SOCKET_IFNAME"


class DefaultProcessGroup:
    """torch.distributed's default process group for one membership epoch, for the use of user code only.

    `form` and `close` are called by the training thread; `abort` by any.
    """

    def __init__(self, formation: Formation, fetch: Fetch) -> None:
        self._formation = formation
        self._store = ExchangeStore(formation, fetch)
        self._breaker = Breaker(self._store.sockets)
        self._initialising = False  # or initialised: what there is in torch.distributed is then ours

    def form(self) -> None:
        """Initialise it.

        Raises:
            GroupBroken: A member did not come in time, or `abort` was called.
            UsageError: Somebody else has initialised torch.distributed.
        """
        if dist.is_initialized():
            raise UsageError(
                "torch.distributed is initialised already. elastic-train forms and re-forms the default process group "
                "itself: remove the call of torch.distributed.init_process_group()."
            )
        _bind_to(self._formation.address)
        self._initialising = True
        _open_sockets.add(self._store.sockets)
        try:
            with self._deadline():
                self._initialise()
        except BaseException:
            self.close()
            raise
        group: Any = dist.group.WORLD
        backend = group._get_backend(torch.device("cpu"))  # noqa: SLF001  set_timeout() of torch 2.4 knows nccl only
        backend._set_default_timeout(dist.default_pg_timeout)  # noqa: SLF001  so far it was the formation's

    def abort(self, reason: str) -> None:
        """Make everything that is blocked in it fail. From any thread; does not block; idempotent."""
        self._breaker.trip(reason)

    def close(self) -> None:
        """Take it down. Its sockets and threads are gone a moment later."""
        self._breaker.end()
        if not self._initialising or not dist.is_initialized():
            return
        self._initialising = False
        _open_sockets.discard(self._store.sockets)
        if self._breaker.reason is not None:
            self._store.sockets.shut_down()  # also what came up since the breaker last looked
        remains: list[object] = [dist.group.WORLD]
        dist.destroy_process_group()
        _bury(remains)

    def calls(self) -> int:
        """Return how many collectives user code has begun in it."""
        group: Any = dist.group.WORLD
        return 0 if group is None else int(group._get_sequence_number_for_group())  # noqa: SLF001  nothing public counts

    def _initialise(self) -> None:
        formation = self._formation
        # Groups are named by a counter, which an initialisation that failed leaves behind: members that failed
        # differently would look for each other under different names.
        distributed_c10d._world.group_count = 0  # noqa: SLF001  only destroying a group resets it, and there is none
        try:
            dist.init_process_group(
                "gloo",
                store=self._store,
                rank=formation.rank,
                world_size=formation.world_size,
                timeout=timedelta(seconds=formation.timeout_s),
            )
        except UsageError:
            raise
        except RuntimeError as error:
            raise GroupBroken(self._breaker.reason or f"the process group could not be formed: {error}") from error
        if self._breaker.reason is not None:
            raise GroupBroken(self._breaker.reason)

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        timeout_s = self._formation.timeout_s
        message = f"the process group of {self._formation.world_size} was not formed within {timeout_s:g} s"
        timer = threading.Timer(timeout_s, self.abort, [message])
        timer.name, timer.daemon = "group-deadline", True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


_open_sockets: weakref.WeakSet[GroupSockets] = weakref.WeakSet()


def _detach_in_child() -> None:
    for sockets in list(_open_sockets):
        sockets.detach_in_child()


os.register_at_fork(after_in_child=_detach_in_child)

_burials: list[threading.Thread] = []


def _bury(remains: list[object]) -> None:
    """Drop the last reference to a process group without waiting for its threads.

    That takes two ticks of gloo's event loop at best. In a broken group one of them may be in a send that nobody ends
    before its time-out: gloo forgets operations that were half-way through when their connection broke. That can only
    be a collective of user code.
    """
    _burials[:] = [burial for burial in _burials if burial.is_alive()]
    burial = threading.Thread(target=remains.clear, name="group-burial", daemon=True)
    burial.start()
    _burials.append(burial)


@atexit.register
def _attend_burials() -> None:
    """Let no thread of gloo run into the end of the interpreter."""
    deadline = time.monotonic() + _BURIAL_S
    for burial in _burials:
        burial.join(max(0.0, deadline - time.monotonic()))


_bound_by_us: str | None = None


def _bind_to(address: str) -> None:
    """Have gloo listen on the interface with this address.

    Left to itself gloo asks the resolver for the machine's own host name at every formation, which takes the resolver's
    time-out (5 s) when an answer is lost. A choice that the user made is respected.
    """
    global _bound_by_us  # process-wide, as the environment it mirrors
    chosen = os.environ.get(_INTERFACE)
    if chosen and chosen != _bound_by_us:
        return
    name = _interface_of(address)
    if name is None:
        return
    os.environ[_INTERFACE] = _bound_by_us = name


def _interface_of(address: str) -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in addresses):
            return str(name)
    return None
