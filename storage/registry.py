"""Open a store by its URL: which backend serves which scheme."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.backends.local import LocalBackend
from storage.backends.memory import MemoryBackend
from storage.errors import ConfigError, UnknownScheme
from storage.store import ObjectStore


def open_store(url: str | Path, **options: Any) -> ObjectStore:
    """Open the object store at a URL."""
    parts = urlsplit(str(url))
    if parts.scheme in ("", "file"):
        root = Path(unquote(parts.path)).absolute()
        return ObjectStore(LocalBackend(root, **options), url=f"file://{root}")
    if parts.scheme == "memory":
        if options:
            raise ConfigError(f"memory:// takes no options: {sorted(options)}")
        backend = MemoryBackend(parts.netloc, parts.path.strip("/"))
        return ObjectStore(backend, url=str(url))
    raise UnknownScheme(f"{parts.scheme}://")
