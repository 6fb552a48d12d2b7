"""What is tried before anything starts, so that a job does not fail on its storage when it has something to lose."""

from __future__ import annotations

import uuid

from elastic_train.errors import ConfigurationError
from storage import ConfigError, StorageError, open_store

_PROBE = b"elastic-train may write here\n"


def check_storage(url: str) -> None:
    """Write, read and delete a small object below `url`.

    Raises:
        ConfigurationError: The URL cannot be opened, or the object could not be written or read back.
    """
    key = f".elastic-train-probe-{uuid.uuid4().hex}"
    try:
        with open_store(url) as store:
            store.put(key, _PROBE)
            try:
                answer = store.get(key)
            finally:
                store.delete(key)
    except (ConfigError, StorageError) as error:
        raise ConfigurationError(
            "storage",
            f"cannot be used for checkpoints: {error}",
            "Give a URL below which this user may write, read and delete: file:///path, s3://bucket/prefix, ...",
        ) from error
    if answer != _PROBE:
        raise ConfigurationError(
            "storage", "what was read back is not what was written", "Use a storage service that keeps what it is given"
        )
