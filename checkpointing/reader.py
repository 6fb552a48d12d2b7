"""Check, load and verify a checkpoint."""

from __future__ import annotations

from typing import Any

from checkpointing.catalog import Catalog
from checkpointing.codecs.base import Target
from checkpointing.codecs.registry import CodecRegistry
from checkpointing.core.digest import hex_digest
from checkpointing.core.division import LeafSpec
from checkpointing.core.layout import Box
from checkpointing.core.manifest import Manifest, StoredTensor
from checkpointing.core.records import CheckpointRef
from checkpointing.core.reshard import plan_reads
from checkpointing.core.tensorfile import header_nbytes
from checkpointing.core.tree import NOT_LOADED, Flat, graft
from checkpointing.errors import (
    ChecksumMismatch,
    MissingObject,
    StructureMismatch,
    Truncated,
)
from checkpointing.fetch import Fetcher, for_each
from storage.errors import NotFound


class Reader:
    """Read checkpoints.

    Args:
        catalog: Where they are.
        codecs: How to fill tensors.
        threads: How many reads may be under way.
    """

    def __init__(self, catalog: Catalog, codecs: CodecRegistry, threads: int = 4) -> None:
        self._catalog = catalog
        self._codecs = codecs
        self._threads = threads

    def open(self, ref: CheckpointRef) -> Manifest:
        """Return a checkpoint's manifest after checking it, and that its files are there with their sizes.

        Raises:
            Damaged: Something is missing, changed or cut.
            UnsupportedVersion: It is of a newer version.
        """
        manifest = self._catalog.read_manifest(ref)
        for_each(self._check_file, [(file.key, file.nbytes) for file in manifest.files], self._threads)
        return manifest

    def load(self, manifest: Manifest, into: Any = None, *, strict: bool = True) -> Any:
        """Return the state, every byte of it verified.

        Args:
            manifest: What to load.
            into: A tree of existing tensors to fill in place; None builds new ones.
            strict: Whether `into` must have just the checkpoint's tensors; otherwise what fits is filled.

        Raises:
            Damaged: A file is missing, cut or changed; `into` is then filled in part.
            StructureMismatch: The tensors are not those of the checkpoint.
            PickleNotAllowed: It holds pickles.
            UnsupportedLeaf: A tensor of `into` cannot be filled.
        """
        if into is None:
            targets = {
                number: self._codecs.new_target(_spec_of(tensor)) for number, tensor in enumerate(manifest.tensors)
            }
            return self._codecs.build(manifest.skeleton, self._fill(manifest, targets))
        targets = match_targets(manifest, self._codecs.targets(into), strict=strict)
        targets.update(self._value_targets(manifest, strict=strict))
        tree = self._codecs.build(manifest.skeleton, self._fill(manifest, targets))
        return tree if strict else graft(into, tree)

    def verify(self, manifest: Manifest) -> int:
        """Read every byte of a checkpoint and return how many there were.

        Raises:
            Damaged: A file is missing, cut or changed.
        """
        for file in manifest.files:
            self._check_file((file.key, file.nbytes))
            header = self._catalog.store.get_range(file.key, 0, file.header_nbytes)
            if hex_digest(header) != file.header_digest or header_nbytes(header, file.key) != file.header_nbytes:
                raise ChecksumMismatch(file.key, "its header")
        plan = plan_reads(manifest, {number: Box.whole(tensor.shape) for number, tensor in enumerate(manifest.tensors)})
        Fetcher(self._catalog.store, manifest, self._threads).verify(plan)
        return plan.nbytes

    def _fill(self, manifest: Manifest, targets: dict[int, Target]) -> list[Any]:
        plan = plan_reads(manifest, {number: target.spec.box for number, target in targets.items()})
        buffers = {number: target.buffer() for number, target in targets.items()}
        Fetcher(self._catalog.store, manifest, self._threads).fill(plan, buffers)
        return [
            targets[number].finish() if number in targets else NOT_LOADED for number in range(len(manifest.tensors))
        ]

    def _value_targets(self, manifest: Manifest, *, strict: bool) -> dict[int, Target]:
        """Return targets for what is stored as a tensor but is a plain value to the user: made anew, not filled."""
        return {
            number: self._codecs.new_target(_spec_of(tensor))
            for number, tensor in enumerate(manifest.tensors)
            if _is_value(tensor.kind) and (strict or tensor.kind != "pickle" or self._codecs.allow_pickle)
        }

    def _check_file(self, expected: tuple[str, int]) -> None:
        key, nbytes = expected
        try:
            info = self._catalog.store.head(key)
        except NotFound as error:
            if type(error) is not NotFound:
                raise
            raise MissingObject(key) from error
        if info.nbytes != nbytes:
            raise Truncated(key, f"{info.nbytes} bytes instead of {nbytes}")


def match_targets(manifest: Manifest, wanted: Flat, *, strict: bool) -> dict[int, Target]:
    """Return the target of each stored tensor that there is one for.

    Raises:
        StructureMismatch: `strict`, and the two do not have the same tensors.
    """
    by_path: dict[str, Target] = {
        path: target
        for path, target in zip(wanted.paths, wanted.tensors, strict=True)
        if not _is_value(target.spec.kind)
    }
    stored = {tensor.path: number for number, tensor in enumerate(manifest.tensors) if not _is_value(tensor.kind)}
    matched: dict[int, Target] = {}
    different: list[str] = []
    for path in stored.keys() & by_path.keys():
        target, tensor = by_path[path], manifest.tensors[stored[path]]
        if (target.spec.shape, target.spec.dtype) == (tensor.shape, tensor.dtype):
            matched[stored[path]] = target
        else:
            different.append(
                f"{path} is {tensor.dtype}{list(tensor.shape)} in the checkpoint, not "
                f"{target.spec.dtype}{list(target.spec.shape)}"
            )
    missing = sorted(by_path.keys() - stored.keys())
    unexpected = sorted(stored.keys() - by_path.keys())
    if strict and (missing or unexpected or different):
        raise StructureMismatch(missing, unexpected, sorted(different))
    return matched


def _is_value(kind: str) -> bool:
    return kind in ("bytes", "bytearray", "pickle") or kind.startswith("numpy.scalar")


def _spec_of(tensor: StoredTensor) -> LeafSpec:
    return LeafSpec(tensor.path, tensor.kind, tensor.dtype, tensor.shape, Box.whole(tensor.shape))
