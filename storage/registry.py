"""Open a store by its URL: which backend serves which scheme, with which client, and why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.backends.local import LocalBackend
from storage.backends.memory import MemoryBackend
from storage.base import Backend
from storage.errors import ConfigError, MissingDependency, StorageError, UnknownScheme
from storage.redaction import Scrubber, displayed_url, secrets_in_options, secrets_in_url
from storage.retry import NO_RETRIES, Retrier, RetryPolicy
from storage.store import ObjectStore

#: Third parties add backends under this entry point group; the entry's name is the URL scheme.
ENTRY_POINT_GROUP = "elastic_train.storage"

_CLOUDS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "azure": "az", "abfs": "az", "abfss": "az"}
_CLOUD_NAMES = {"s3": "S3", "gs": "Google Cloud Storage", "az": "Azure Blob Storage"}
_FSSPEC_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}


@dataclass(frozen=True, slots=True)
class Location:
    """Hold what a backend's opener is given.

    Attributes:
        url: as the user wrote it; it may hold credentials.
        options: all that were passed besides ``retry`` and ``client``.
        scrubber: knows the secrets in both, and cleans texts of them.
    """

    url: str
    options: Mapping[str, Any]
    scrubber: Scrubber

    def __repr__(self) -> str:
        return f"Location({displayed_url(self.url)})"

    @property
    def bucket(self) -> str:
        """Return the bucket, container or host."""
        netloc = urlsplit(self.url).netloc
        # abfs://container@account.dfs.core.windows.net/path
        return netloc.partition("@")[0] if _CLOUDS.get(urlsplit(self.url).scheme) == "az" else netloc

    @property
    def prefix(self) -> str:
        """Return the path below the bucket, without slashes around it."""
        return unquote(urlsplit(self.url).path).strip("/")


#: What an entry point names: makes the backend for a location; raises from the storage error tree.
Opener = Callable[[Location], Backend]


@dataclass(frozen=True, slots=True)
class BackendReport:
    """Say which client serves a scheme, for ``elastic-train doctor``.

    Attributes:
        scheme: of the URL.
        client: the library chosen, or ``""`` if none is installed.
        reason: why this one, or what to install.
    """

    scheme: str
    client: str
    reason: str


def open_store(
    url: str | os.PathLike[str], *, client: str = "auto", retry: RetryPolicy | None = None, **options: Any
) -> ObjectStore:
    """Open the object store at a URL.

    ======================= ======================================================================
    ``file://dir``, a path  a directory; options ``direct_io``, ``sync``
    ``memory://name``       this process; shared by all that open the same name
    ``s3://bucket/prefix``  options of :class:`storage.backends.settings.S3Settings`
    ``gs://bucket/prefix``  options of :class:`storage.backends.obstore_clients.GcsSettings`
    ``az://container/...``  options of :class:`storage.backends.obstore_clients.AzureSettings`
    any other               by entry point, else by fsspec with the file system's own options
    ======================= ======================================================================

    No bucket is contacted here: a missing one, or missing rights, are reported by the first operation.

    Args:
        url: where; without credentials, which belong into options or the environment.
        client: ``"auto"``, or ``"obstore"`` or ``"fsspec"`` for a cloud store.
        retry: how long to go on trying; None for the default. Files and memory are not retried.
        options: of the backend.

    Raises:
        UnknownScheme: no backend serves the URL.
        MissingDependency: its client is not installed.
        ConfigError: the options or the URL make no sense.
    """
    text = os.fspath(url)
    scrubber = Scrubber([*secrets_in_url(text), *secrets_in_options(options)])
    location = Location(_absolute(text), options, scrubber)
    shown = displayed_url(location.url)

    def make(wanted: str) -> Backend:
        opener = _opener(location, wanted)
        try:
            return opener(location)
        except StorageError as error:
            error.locate(operation="open", store=shown, key="")
            raise

    backend = make(client)
    # obstore does not survive a fork: a child takes what works.
    in_child = "auto" if client == "obstore" else client
    retrier = Retrier(retry or RetryPolicy()) if backend.is_remote else NO_RETRIES
    return ObjectStore(backend, url=shown, retrier=retrier, remake=lambda: make(in_child))


def describe_backends() -> list[BackendReport]:
    """Say for each scheme which client a store would use now, and why."""
    reports = [
        BackendReport("file", LocalBackend.client, "built in"),
        BackendReport("memory", MemoryBackend.client, "built in; for tests and single processes"),
    ]
    for scheme in _CLOUD_NAMES:
        try:
            chosen, reason = _choose_client(scheme, "auto")
        except MissingDependency as missing:
            chosen, reason = "", missing.detail
        reports.append(BackendReport(scheme, chosen, reason))
    reports += [
        BackendReport(entry.name, entry.value, f"entry point of {entry.dist.name if entry.dist else 'a plugin'}")
        for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    ]
    fallback = "fsspec" if _is_installed("fsspec") else ""
    reports.append(
        BackendReport("*", fallback, "any other scheme that fsspec knows; see `capabilities` for its promises")
    )
    return reports


def _absolute(url: str) -> str:
    """Return the URL with a scheme: a bare path becomes ``file://``."""
    if "://" in url:
        return url
    return f"file://{Path(url).absolute()}"


def _opener(location: Location, client: str) -> Opener:
    scheme = urlsplit(location.url).scheme
    if scheme in ("file", "memory"):
        if client != "auto":
            raise ConfigError(f"{scheme}:// has one client; leave out client={client!r}")
        return _open_file if scheme == "file" else _open_memory
    plugin = _plugin(scheme)
    if plugin is not None:
        return plugin
    if scheme in _CLOUDS:
        _refuse_userinfo(location)
        chosen, _ = _choose_client(_CLOUDS[scheme], client)
        return _cloud_opener(_CLOUDS[scheme], chosen)
    if not _is_installed("fsspec"):
        raise UnknownScheme(f"{scheme}://; pip install fsspec for more than file, memory, s3, gs and az")
    return _open_fsspec


def _plugin(scheme: str) -> Opener | None:
    found: list[EntryPoint] = list(entry_points(group=ENTRY_POINT_GROUP, name=scheme))
    if not found:
        return None
    if len(found) > 1:
        owners = sorted(entry.dist.name if entry.dist else entry.value for entry in found)
        raise ConfigError(f"{len(found)} distributions serve {scheme}://: {owners}; uninstall all but one")
    try:
        opener: Opener = found[0].load()
    except (ImportError, AttributeError) as error:
        raise MissingDependency(f"the backend {found[0].value} of {scheme}:// does not load: {error}") from None
    return opener


def _choose_client(cloud: str, wanted: str) -> tuple[str, str]:
    """Return the client for a cloud store and the reason, best first.

    Raises:
        ConfigError: no client has the name.
        MissingDependency: it, or every one, is not installed or does not work here.
    """
    package = _FSSPEC_PACKAGES[cloud]
    if wanted not in ("auto", "obstore", "fsspec"):
        raise ConfigError(f"no client {wanted!r}; choose 'auto', 'obstore' or 'fsspec'")
    problem = _obstore_problem()
    if wanted == "obstore" and problem:
        raise MissingDependency(problem)
    if wanted != "fsspec" and not problem:
        return "obstore", "installed; a tenth of the CPU seconds a GiB of fsspec's client"
    if not _is_installed(package):
        raise MissingDependency(
            f"{_CLOUD_NAMES[cloud]} needs obstore or {package}: pip install obstore"
            + (f" ({problem})" if problem and "not installed" not in problem else "")
        )
    return package, "asked for" if wanted == "fsspec" else problem


def _obstore_problem() -> str:
    if not _is_installed("obstore"):
        return "obstore is not installed (pip install obstore): it is faster"
    from storage.backends import obstore_backend

    if not obstore_backend.is_usable_in_this_process():
        return "obstore was used before this process was forked, and its threads do not survive that"
    return ""


def _cloud_opener(cloud: str, chosen: str) -> Opener:
    if chosen == "obstore":
        from storage.backends import obstore_clients

        opens = {"s3": obstore_clients.open_s3, "gs": obstore_clients.open_gcs, "az": obstore_clients.open_azure}[cloud]
        return lambda at: opens(at.bucket, at.prefix, at.options, at.scrubber)
    if cloud == "s3":
        from storage.backends import s3fs_backend

        return lambda at: s3fs_backend.open_s3(at.bucket, at.prefix, at.options, at.scrubber)
    return _open_fsspec


def _open_file(location: Location) -> Backend:
    parts = urlsplit(location.url)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError("a file URL has three slashes: file:///path")
    _check_names(location.options, {"direct_io", "sync"})
    return LocalBackend(Path(unquote(parts.path)).absolute(), **location.options)


def _open_memory(location: Location) -> Backend:
    _check_names(location.options, set())
    return MemoryBackend(location.bucket, location.prefix)


def _open_fsspec(location: Location) -> Backend:
    from storage.backends.fsspec_backend import open_fsspec

    protocol, _, path = location.url.partition("://")
    options = dict(location.options)
    from_url = urlsplit(location.url)
    if protocol not in _CLOUDS and from_url.hostname and "@" in from_url.netloc:
        # sftp://user:password@host/path: options, so that no path and no error holds them.
        options.setdefault("username", unquote(from_url.username or ""))
        if from_url.password:
            options.setdefault("password", unquote(from_url.password))
        path = path.partition("@")[2]
    return open_fsspec(protocol, path, options, location.scrubber)


def _refuse_userinfo(location: Location) -> None:
    parts = urlsplit(location.url)
    if not parts.netloc:
        raise ConfigError(f"no bucket in the URL; expected {parts.scheme}://bucket/prefix")
    if parts.query or ("@" in parts.netloc and _CLOUDS[parts.scheme] != "az"):
        raise ConfigError(
            "the URL holds credentials or a query; pass them as options, or in the environment, which does not "
            "end up in shell histories and logs"
        )


def _check_names(options: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigError(f"unknown options {unknown}; known are {sorted(known)}")


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
