"""Write a checkpoint as one file that other programs read."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from checkpointing.codecs.base import Bytes
from checkpointing.core.layout import Box
from checkpointing.core.manifest import Manifest
from checkpointing.core.reshard import plan_reads
from checkpointing.core.tensorfile import Entry, encode_header, safe_entry_name
from checkpointing.fetch import Fetcher
from checkpointing.repository import Repository


def export_safetensors(repository: Repository, manifest: Manifest, path: Path) -> None:
    """Write all tensors into one safetensors file, each under its path, without holding them in memory.

    The plain values are in the file's metadata, as the JSON skeleton of the tree (:mod:`checkpointing.core.tree`).

    Raises:
        Damaged: The checkpoint is not good; no file is left.
        OSError: The file cannot be written.
    """
    # Wider elements first keeps every tensor aligned to its elements.
    order = sorted(range(len(manifest.tensors)), key=lambda number: -_item_nbytes(manifest, number))
    entries = [
        Entry(safe_entry_name(tensor.path), tensor.dtype, tensor.shape, tensor.nbytes)
        for tensor in (manifest.tensors[number] for number in order)
    ]
    header = encode_header(
        entries,
        {
            "format": "pt",
            "job": manifest.job,
            "step": str(manifest.step),
            "fence": str(manifest.fence),
            "metadata": json.dumps(dict(manifest.metadata)),
            "tree": json.dumps(manifest.skeleton),
        },
    )
    with _replacing(path) as temporary:
        nbytes = len(header) + sum(entry.nbytes for entry in entries)
        with temporary.open("r+b") as file:
            file.truncate(nbytes)
            file.write(header)
        memory: Bytes = np.memmap(temporary, dtype=np.uint8, mode="r+")
        targets: dict[int, Bytes] = {}
        offset = len(header)
        for number, entry in zip(order, entries, strict=True):
            targets[number] = memory[offset : offset + entry.nbytes]
            offset += entry.nbytes
        wanted = {number: Box.whole(tensor.shape) for number, tensor in enumerate(manifest.tensors)}
        threads = repository.settings.io_threads
        Fetcher(repository.store, manifest, threads).fill(plan_reads(manifest, wanted), targets)


def export_torch(repository: Repository, manifest: Manifest, path: Path) -> None:
    """Write the tree with `torch.save`.

    Raises:
        Damaged: The checkpoint is not good; no file is left.
        PickleNotAllowed: It holds pickled values, and these were not allowed.
        OSError: The file cannot be written.
        ImportError: torch is not installed.
    """
    from checkpointing.codecs.torch_file import save_tree

    tree = repository.reader.load(manifest)
    with _replacing(path) as temporary:
        save_tree(tree, temporary)


def _item_nbytes(manifest: Manifest, number: int) -> int:
    tensor = manifest.tensors[number]
    count = Box.whole(tensor.shape).count
    return tensor.nbytes // count if count else 1


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file that takes the place of `path` at the end, and is gone if the work fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
