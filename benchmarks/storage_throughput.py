"""Throughput and CPU of the object store, beside what the medium and the bare clients reach.

Local files: a store's put and get beside plain and direct writes and a plain read. S3: the store by obstore and by
s3fs beside bare obstore, bare boto3 and a bare socket, to `rclone serve s3` on loopback. The server's own CPU is not
counted. Each figure is of one object of `--mib` MiB; "floor" marks what a store cannot beat.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import mmap
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.common import finish, median, parse_arguments
from storage import ObjectStore, open_store
from storage.testing import RcloneServer

BUCKET = "bench"
_BLOCK = 8 * 2**20


@dataclass(frozen=True)
class Sample:
    """One measurement of moving the data once."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Case:
    """Something to measure; ``prepare`` is not timed."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


class Buffers:
    """Page-aligned source and destination, touched once, as a checkpoint's staging memory is."""

    def __init__(self, nbytes: int) -> None:
        self.source = memoryview(mmap.mmap(-1, nbytes))
        block = os.urandom(min(nbytes, _BLOCK))
        for start in range(0, nbytes, len(block)):
            stop = min(start + len(block), nbytes)
            self.source[start:stop] = block[: stop - start]
        self.target = memoryview(mmap.mmap(-1, nbytes))
        self.clear()

    def clear(self) -> None:
        """Forget what was read."""
        for start in range(0, self.target.nbytes, _BLOCK):
            part = self.target[start : start + _BLOCK]
            part[:] = bytes(part.nbytes)

    def check(self) -> None:
        """Raise if the destination is not what the source holds."""
        if hashlib.blake2b(self.source).digest() != hashlib.blake2b(self.target).digest():
            raise RuntimeError("what was read is not what was written")


def main() -> None:
    """Run all cases in turn, round by round, so that a noisy moment hits all alike."""
    arguments = parse_arguments(__doc__ or "", repeats=5, extend=_add_arguments)
    buffers = Buffers(arguments.mib * 2**20)
    results: dict[str, dict[str, float]] = {}
    scratch = Path(tempfile.mkdtemp(prefix="storage-bench-", dir=arguments.dir))
    try:
        for cases in (_local_cases, _s3_cases):
            with cases(scratch, buffers) as found:
                results |= _measure(found, arguments.repeats, arguments.mib)
        buffers.check()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for name, figures in results.items():
        print(f"{name:34} {figures['mib_per_s']:8.0f} MiB/s   {figures['cpu_s_per_gib']:6.2f} CPU-s/GiB")
    finish("storage_throughput", {"mib": arguments.mib, "cases": results, "ratios": _ratios(results)}, arguments)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=1024, help="size of the object in MiB (%(default)s)")
    parser.add_argument(
        "--dir", type=Path, default=None, help="where the files go; default: the system's temporary place"
    )


def _measure(cases: list[Case], repeats: int, mib: int) -> dict[str, dict[str, float]]:
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for case in cases:  # a first time opens connections and imports clients
        case.prepare()
        case.run()
    for _ in range(repeats):
        for case in cases:
            case.prepare()
            samples[case.name].append(_timed(case.run))
    return {
        name: {
            "seconds": median(sample.seconds for sample in found),
            "mib_per_s": mib / median(sample.seconds for sample in found),
            "cpu_s_per_gib": median(sample.cpu_seconds for sample in found) * 1024 / mib,
        }
        for name, found in samples.items()
    }


def _timed(run: Callable[[], object]) -> Sample:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    run()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return Sample(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


# Local files


@contextlib.contextmanager
def _local_cases(scratch: Path, buffers: Buffers) -> Iterator[list[Case]]:
    root, plain = scratch / "store", scratch / "plain"
    cut = len(buffers.source) // 2 + 1  # an odd place, so that nothing is aligned behind it
    pieces = [buffers.source[:cut], buffers.source[cut:]]
    with open_store(root) as direct, open_store(scratch / "buffered", direct_io=False) as buffered:
        yield [
            Case("local write floor: plain + fsync", lambda: _write(plain, buffers.source, 0)),
            Case("local write floor: direct + fsync", lambda: _write(plain, buffers.source, os.O_DIRECT)),
            Case("local put", lambda: direct.put("key", buffers.source)),
            Case("local put, unaligned", lambda: direct.put("odd", pieces)),
            Case("local put, buffered", lambda: buffered.put("key", buffers.source)),
            Case("local read floor, cold", lambda: _read(plain, buffers.target), lambda: _drop(plain)),
            Case("local get, cold", _getting(direct, buffers), lambda: _drop(root / "key")),
            Case("local read floor, warm", lambda: _read(plain, buffers.target)),
            Case("local get, warm", _getting(direct, buffers)),
        ]


def _getting(store: ObjectStore, buffers: Buffers) -> Callable[[], object]:
    return lambda: store.get_range_into("key", 0, buffers.target)


def _write(path: Path, data: memoryview, flags: int) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | flags, 0o666)
    try:
        for start in range(0, len(data), 2**30):
            os.write(fd, data[start : start + 2**30])
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: Path, out: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < len(out):
            done += file.readinto(out[done:]) or 0


def _drop(path: Path) -> None:
    """Have the next read come from the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# S3


@contextlib.contextmanager
def _s3_cases(scratch: Path, buffers: Buffers) -> Iterator[list[Case]]:
    data = scratch / "s3"
    data.mkdir()
    with contextlib.ExitStack() as held:
        server = held.enter_context(RcloneServer(data))
        server.make_bucket(BUCKET)
        url, options = f"s3://{BUCKET}/p", {**server.options, "unsigned_payload": True}
        ours = held.enter_context(open_store(url, client="obstore", **options))
        theirs = held.enter_context(open_store(url, client="fsspec", **options))
        bare, boto = _bare_obstore(server), _bare_boto3(server)
        import obstore

        ours.put("key", buffers.source)
        yield [
            Case(
                "s3 put, bare obstore, one request",
                lambda: obstore.put(bare, "bare", buffers.source, use_multipart=False),
            ),
            Case("s3 put, bare obstore, parts", lambda: obstore.put(bare, "bare", buffers.source)),
            Case("s3 put, bare boto3", lambda: boto.put_object(Bucket=BUCKET, Key="boto", Body=bytes(buffers.source))),
            Case("s3 put, store by obstore", lambda: ours.put("key", buffers.source)),
            Case("s3 put_if_absent, store by obstore", _creating(ours, buffers)),
            Case("s3 put, store by s3fs", lambda: theirs.put("key", buffers.source)),
            Case("s3 get, bare HTTP, one request", lambda: _bare_get(server, boto, buffers.target)),
            Case("s3 get, bare obstore", lambda: obstore.get(bare, "p/key").bytes()),
            Case("s3 get, store by obstore", _getting(ours, buffers)),
            Case("s3 get, store by s3fs", _getting(theirs, buffers)),
        ]


def _creating(store: ObjectStore, buffers: Buffers) -> Callable[[], object]:
    numbers = iter(range(2**31))

    def create() -> None:
        key = f"created-{next(numbers)}"
        store.put(key, buffers.source, if_absent=True)
        store.delete(key)

    return create


def _bare_obstore(server: RcloneServer) -> Any:
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=server.url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
        region="us-east-1",
        unsigned_payload=True,
        client_options={"allow_http": True, "timeout": timedelta(minutes=10)},
    )


def _bare_boto3(server: RcloneServer) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            s3={"payload_signing_enabled": False},
        ),
    )


def _bare_get(server: RcloneServer, boto: Any, out: memoryview) -> None:
    """Read an object with nothing between the socket and the buffer."""
    signed = boto.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "p/key"})
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    try:
        connection.request("GET", signed.removeprefix(server.url))
        response = connection.getresponse()
        done = 0
        while count := response.readinto(out[done : done + _BLOCK]):
            done += count
        if done != len(out):
            raise RuntimeError(f"{done} of {len(out)} bytes came: HTTP {response.status}")
    finally:
        connection.close()


def _ratios(results: dict[str, dict[str, float]]) -> dict[str, float]:
    """Return what the issue asks for: rates relative to floors, CPU relative to the fastest peer."""
    rate = {name: figures["mib_per_s"] for name, figures in results.items()}
    cpu = {name: figures["cpu_s_per_gib"] for name, figures in results.items()}
    floor = max(rate["local write floor: plain + fsync"], rate["local write floor: direct + fsync"])
    peer = max(
        ("s3 put, bare obstore, one request", "s3 put, bare obstore, parts", "s3 put, bare boto3"), key=rate.__getitem__
    )
    return {
        "local_put_to_floor": rate["local put"] / floor,
        "local_unaligned_put_to_floor": rate["local put, unaligned"] / floor,
        "local_get_cold_to_floor": rate["local get, cold"] / rate["local read floor, cold"],
        "local_get_warm_to_floor": rate["local get, warm"] / rate["local read floor, warm"],
        "s3_put_to_fastest_bare_client": rate["s3 put, store by obstore"] / rate[peer],
        "s3_put_cpu_to_fastest_bare_client": cpu["s3 put, store by obstore"] / cpu[peer],
        "s3_put_cpu_to_s3fs": cpu["s3 put, store by obstore"] / cpu["s3 put, store by s3fs"],
        "s3_get_to_bare_obstore": rate["s3 get, store by obstore"] / rate["s3 get, bare obstore"],
    }


if __name__ == "__main__":
    main()
