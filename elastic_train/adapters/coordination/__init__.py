"""Coordination services, chosen by URL.

etcd://[user:password@]host:2379[,host:2379...][/?ca=...&cert=...&key=...]    an etcd v3 cluster
memory://[NAME]        a store inside this process, for tests: one for each NAME, a new one without
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from elastic_train.errors import ConfigurationError

if TYPE_CHECKING:
    from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
    from elastic_train.adapters.coordination.memory import MemoryStore
    from elastic_train.ports import Coordination

_CHECK_S = 5.0
"""An etcd that does not answer within this is reported when it is connected to, and not somewhere later."""

_memory_stores: dict[str, MemoryStore] = {}
_memory_lock = threading.Lock()


def connect(url: str) -> Coordination:
    """Connect to a coordination service and make sure that it answers.

    Raises:
        ConfigurationError: The URL is malformed or its scheme unknown. The message does not repeat the URL.
        CoordinationUnavailable: Nobody answers there; names each endpoint with what was last heard of it.
        CoordinationDenied: Wrong credentials.
    """
    scheme, separator, _ = url.partition("://")
    opener = _SCHEMES.get(scheme) if separator else None
    if opener is None:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        # the scheme of a URL cannot hold a password, but what stands before the first colon of anything else might
        seen = f"unknown scheme {scheme + '://'!r}" if separator and scheme.isalnum() else "not a URL"
        raise ConfigurationError("coordination", seen, f"Known are: {known}.")
    return opener(url)


def adopt(client: object) -> Coordination:
    """Coordinate over the connection of an `etcd3.Etcd3Client`, which stays the caller's to close.

    Raises:
        ConfigurationError: It is something else.
        CoordinationUnavailable: Nobody answers on its connection.
        CoordinationDenied: Its token is not taken.
    """
    from elastic_train.adapters.coordination.etcd.etcd3_shim import coordination_from_etcd3

    return _checked(coordination_from_etcd3(client))


def _open_etcd(url: str) -> Coordination:
    from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
    from elastic_train.adapters.coordination.etcd.url import parse_etcd_url

    return _checked(EtcdCoordination.at(parse_etcd_url(url)))


def _checked(client: EtcdCoordination) -> EtcdCoordination:
    try:
        client.check(_CHECK_S)
    except BaseException:
        client.close()
        raise
    return client


def _open_memory(url: str) -> Coordination:
    from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore

    name = url.partition("://")[2].strip("/")
    if not name:
        return MemoryCoordination()
    with _memory_lock:
        store = _memory_stores.setdefault(name, MemoryStore())
    return MemoryCoordination(store)


_SCHEMES: dict[str, Callable[[str], Coordination]] = {"etcd": _open_etcd, "memory": _open_memory}
