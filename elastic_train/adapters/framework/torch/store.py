"""A `torch.distributed` store on top of the Exchange port."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from torch._C._distributed_c10d import Store

from elastic_train.adapters.framework.torch.connecting import Fetch
from elastic_train.adapters.framework.torch.sockets import GroupSockets, RankAddress
from elastic_train.errors import UsageError
from elastic_train.ports import Formation


class ExchangeStore(Store):
    """What gloo needs of a store, and no more: `set`, `wait`, `get`.

    The addresses that pass through are remembered in `sockets`. The first `wait` for a member's address fetches those
    of all members at once: one round trip to the exchange instead of one for each of them.
    """

    def __init__(self, formation: Formation, fetch: Fetch) -> None:
        super().__init__()
        self.sockets = GroupSockets()
        self._formation = formation
        self._fetch = fetch
        self._prefix = f"torch/{formation.world.membership_epoch}/"
        self._known: dict[str, bytes] = {}
        self._folder: str | None = None  # of the default group's addresses; those of subgroups have others

    # ---- torch.distributed.Store

    def set(self, key: str, value: bytes | str) -> None:
        """Publish a value."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        if self._folder is None and key.rsplit("/", 1)[-1] == str(self._formation.rank):
            self._folder = key[: -len(str(self._formation.rank))]
        address = RankAddress.parse(data)
        if address is not None:
            self.sockets.own.append(address)
        self._known[key] = data
        self._formation.exchange.set(self._prefix + key, data)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there.

        Raises:
            GroupBroken: The time is over, or the formation was aborted.
        """
        missing = [key for key in keys if key not in self._known]
        if not missing:
            return
        wanted = self._with_siblings(missing)
        timeout_s = self._formation.timeout_s if timeout is None else timeout.total_seconds()
        values = self._fetch([self._prefix + key for key in wanted], timeout_s)
        for key, data in zip(wanted, values, strict=True):
            self._known[key] = data
            address = RankAddress.parse(data)
            if address is not None:
                self.sockets.peers.append(address)

    def get(self, key: str) -> bytes:
        """Return a value, waiting for it.

        Raises:
            GroupBroken: The time is over, or the formation was aborted.
        """
        self.wait([key])
        return self._known[key]

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all keys are known here already."""
        return all(key in self._known for key in keys)

    def add(self, key: str, amount: int) -> int:
        """Refuse: the exchange has no atomic counters.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"the store of elastic-train's process group has no counters (add({key!r}, {amount})). "
            "Use a collective instead, or a torch.distributed.TCPStore of your own."
        )

    def has_extended_api(self) -> bool:
        """Return False: `multi_get` and the like are not there."""
        return False

    def set_timeout(self, timeout: timedelta) -> None:
        """Ignore: every wait has the formation's own time-out."""

    def _with_siblings(self, missing: list[str]) -> list[str]:
        folder = self._folder
        if folder is None or any(not key.startswith(folder) for key in missing):
            return missing
        everyone = (f"{folder}{rank}" for rank in range(self._formation.world_size))
        return [key for key in everyone if key not in self._known]
