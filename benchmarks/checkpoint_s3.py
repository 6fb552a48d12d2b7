"""Peers and floors on an S3 server on loopback."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

from storage.testing import S3Server


class DcpOnS3:
    """DCP through fsspec and s3fs, its own way to object stores."""

    def __init__(self, path: str, state: dict[str, Any], server: S3Server) -> None:
        self._url = f"s3://{path}"
        self._state = state
        options = server.options
        self._options = {
            "key": options.get("access_key_id") or options.get("key"),
            "secret": options.get("secret_access_key") or options.get("secret"),
            "client_kwargs": {"endpoint_url": server.url, "region_name": "us-east-1"},
            "use_listings_cache": False,
        }

    def save(self) -> None:
        """Save the state."""
        writer = FsspecWriter(self._url, sync_files=False, **self._options)
        dcp.save(self._state, storage_writer=writer, no_dist=True)


def bare_put(server: S3Server, path: str, view: memoryview) -> None:
    """Send the bytes to the server by one plain HTTP request, without signing or hashing them."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    try:
        connection.request("PUT", f"/{path}", body=view, headers={"Content-Length": str(len(view))})
        connection.getresponse().read()
    finally:
        connection.close()
