"""Peers and floors on an S3 server on loopback."""

from __future__ import annotations

import http.client
from typing import Any
from urllib.parse import urlsplit

from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter

from benchmarks.checkpoint_cases import dcp
from storage.testing import S3Server


class DcpOnS3:
    """DCP through fsspec and s3fs, its own way to object stores."""

    def __init__(self, path: str, state: dict[str, Any], server: S3Server) -> None:
        self._url = f"s3://{path}"
        self._state = state
        options = server.options
        self._options: dict[str, Any] = {
            "key": options["access_key_id"],
            "secret": options["secret_access_key"],
            "client_kwargs": {"endpoint_url": server.url, "region_name": "us-east-1"},
            "use_listings_cache": False,
        }

    def save(self) -> None:
        """Save the state."""
        writer = FsspecWriter(self._url, sync_files=False, **self._options)
        dcp.save(self._state, storage_writer=writer, no_dist=True)


def bare_put(server: S3Server, bucket: str, key: str, view: memoryview) -> None:
    """Send the bytes to the server by one plain HTTP request, without hashing them."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.options["access_key_id"],
        aws_secret_access_key=server.options["secret_access_key"],
        region_name="us-east-1",
        config=Config(signature_version="s3v4"),
    )
    signed = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=300)
    try:
        headers = {"Content-Length": str(len(view))}
        connection.request("PUT", signed.removeprefix(server.url), body=view, headers=headers)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}")
    finally:
        connection.close()
