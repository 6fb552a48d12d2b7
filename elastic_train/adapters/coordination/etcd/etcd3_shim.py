"""`etcd3.Etcd3Client` as a source of connection and credentials (where the line runs: docs/adr/0001-etcd-client.md).

etcd3 0.12.0 does not import with protobuf 4 or newer: the code that protoc generated for it in 2019 is refused. The
serialized descriptors inside that code are still valid, so `load_etcd3` builds its three ``*_pb2`` modules from those.
"""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from elastic_train.adapters.coordination.etcd.client import EtcdCoordination
from elastic_train.adapters.coordination.etcd.endpoints import Endpoint, EndpointPool
from elastic_train.adapters.coordination.etcd.transport import Timing, Transport
from elastic_train.errors import ConfigurationError

_PACKAGE = "etcd3.etcdrpc"
_MODULES = ("kv_pb2", "auth_pb2", "rpc_pb2")  # in the order in which they import each other


def load_etcd3() -> ModuleType:
    """Import the `etcd3` package, whichever protobuf is installed.

    Raises:
        ConfigurationError: It is not installed.
    """
    if "etcd3" not in sys.modules and not any(isinstance(finder, _DescriptorFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DescriptorFinder())
    try:
        return importlib.import_module("etcd3")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "etcd3", f"cannot be imported ({error})", "pip install 'elastic-train[etcd3]'"
        ) from error


def coordination_from_etcd3(client: object, timing: Timing | None = None) -> EtcdCoordination:
    """Make a client of ours over the connection of an `etcd3.Etcd3Client`.

    Its channel (with its TLS) and its token are used; its watcher, leases and transactions are not. Closing ours leaves
    the channel open. An etcd3 client keeps no password, so when its token runs out ours raises CoordinationDenied.

    Raises:
        ConfigurationError: It is not an etcd3 client.
    """
    channel, url = getattr(client, "channel", None), getattr(client, "_url", None)
    if not type(client).__module__.startswith("etcd3.") or channel is None or not isinstance(url, str):
        raise ConfigurationError(
            "coordination", f"{type(client).__name__} is not an etcd3.Etcd3Client", "Give one, or an etcd:// URL."
        )
    token = next((value for name, value in getattr(client, "metadata", None) or () if name == "token"), None)
    return EtcdCoordination(Transport(EndpointPool([Endpoint(url, channel, owned=False)]), timing=timing, token=token))


class _DescriptorFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads etcd3's generated modules from the descriptors that they carry."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._folder = Path()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 -- the protocol's
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the generated modules, and nothing else."""
        package, _, name = fullname.rpartition(".")
        if package != _PACKAGE or name not in _MODULES or not path:
            return None
        self._folder = Path(next(iter(path)))
        return importlib.machinery.ModuleSpec(fullname, self, origin=str(self._folder / f"{name}.py"))

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module with what protoc would have generated: message classes, enums and their values."""
        from google.protobuf import descriptor_pool, message_factory
        from google.protobuf.internal import enum_type_wrapper

        if self._pool is None:
            # A pool of its own: file names as common as kv.proto clash in the default one.
            self._pool = descriptor_pool.DescriptorPool()
            for name in _MODULES:
                self._pool.AddSerializedFile(_serialized_descriptor(self._folder / f"{name}.py"))
        file = self._pool.FindFileByName(f"{module.__name__.rpartition('.')[2].removesuffix('_pb2')}.proto")
        names: dict[str, object] = {"DESCRIPTOR": file}
        for name, message in file.message_types_by_name.items():
            names[name] = message_factory.GetMessageClass(message)
        for name, enum in file.enum_types_by_name.items():
            names[name] = enum_type_wrapper.EnumTypeWrapper(enum)
            names.update((value.name, value.number) for value in enum.values)
        vars(module).update(names)


def _serialized_descriptor(generated: Path) -> bytes:
    """Return the ``serialized_pb`` literal of a generated module without executing it."""
    for node in ast.walk(ast.parse(generated.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            # written as b'...' or as _b('...')
            literal = node.value.args[0] if isinstance(node.value, ast.Call) else node.value
            value = ast.literal_eval(literal)
            return value if isinstance(value, bytes) else str(value).encode("latin1")
    raise ImportError(f"no serialized descriptor in {generated}: this is not etcd3 0.12")
