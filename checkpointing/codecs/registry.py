"""Which codec is for a value: told by the modules of its classes, so that no library is imported to find out."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

from checkpointing.codecs.base import Codec, Source, Target
from checkpointing.codecs.numpy_leaf import NumpyCodec, bytes_source
from checkpointing.core.division import LeafSpec
from checkpointing.core.tree import Flat, Flattener, unflatten
from checkpointing.errors import PickleNotAllowed, UnsupportedLeaf

_LAZY = {
    "torch": ("checkpointing.codecs.torch_leaf", "TorchCodec"),
    "tensorflow": ("checkpointing.codecs.tensorflow_leaf", "TensorFlowCodec"),
    "jax": ("checkpointing.codecs.jax_leaf", "JaxCodec"),
}
_MODULES = {"torch": "torch", "tensorflow": "tensorflow", "keras": "tensorflow", "jax": "jax", "jaxlib": "jax"}


class CodecRegistry:
    """Flatten states into tensors and plain values, and build them again.

    Args:
        allow_pickle: Whether values that are neither may be pickled when saving, and unpickled when loading.
    """

    def __init__(self, *, allow_pickle: bool = False) -> None:
        self.allow_pickle = allow_pickle
        self._loaded: dict[str, Codec] = {"numpy": NumpyCodec()}
        self._of_type: dict[type, Codec | None] = {}

    def sources(self, tree: object) -> Flat:
        """Return the skeleton of a tree, with a :class:`Source` for each tensor.

        Raises:
            UnsupportedLeaf: A value that cannot be stored.
        """
        return Flattener(self._claim_source, self._encode_other).flatten(tree)

    def targets(self, tree: object) -> Flat:
        """Return the skeleton of a tree, with a :class:`Target` for each tensor.

        Raises:
            UnsupportedLeaf: A tensor that cannot be stored.
        """
        return Flattener(self._claim_target, lambda _value, _path: {"$": "any"}).flatten(tree)

    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make the tensor of a manifest; as a numpy array where its library is not installed.

        Raises:
            PickleNotAllowed: It is a pickle, and these are not allowed.
        """
        if spec.kind == "pickle" and not self.allow_pickle:
            raise PickleNotAllowed([spec.path])
        name = spec.kind.partition(".")[0]
        codec = self._codec(name) if name in _LAZY else None
        return (codec or self._loaded["numpy"]).new_target(_as_numpy(spec) if codec is None else spec)

    def build(self, skeleton: Any, tensors: list[Any]) -> Any:
        """Return the tree of a skeleton with these tensors."""
        return unflatten(skeleton, tensors, self._decode_other)

    def synchronize(self) -> None:
        """Wait until copies from devices have arrived."""
        for codec in self._loaded.values():
            codec.synchronize()

    def _claim_source(self, value: object, path: str) -> Source | None:
        if type(value) in (bytes, bytearray):
            return self._loaded["numpy"].source(value, path)
        codec = self._codec_of(type(value))
        found = None if codec is None else codec.source(value, path)
        if found is None and self.allow_pickle and (codec is None or codec.encode(value) is None):
            return _pickled(value, path)
        return found

    def _claim_target(self, value: object, path: str) -> Target | None:
        if type(value) in (bytes, bytearray):
            return self._loaded["numpy"].target(value, path)
        codec = self._codec_of(type(value))
        return None if codec is None else codec.target(value, path)

    def _encode_other(self, value: object, path: str) -> Any:
        del path
        codec = self._codec_of(type(value))
        return None if codec is None else codec.encode(value)

    def _decode_other(self, encoded: Any) -> Any:
        tag = str(encoded["$"])
        name = tag.partition(".")[0]
        codec = self._codec(name) if name in _LAZY else None
        return encoded if codec is None else codec.decode(tag, encoded)

    def _codec_of(self, kind: type) -> Codec | None:
        if kind not in self._of_type:
            roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
            name = next((_MODULES[root] for root in _MODULES if root in roots), "numpy" if "numpy" in roots else None)
            self._of_type[kind] = None if name is None else self._codec(name)
        return self._of_type[kind]

    def _codec(self, name: str) -> Codec | None:
        """Return a library's codec, or None if the library is not installed."""
        if name not in self._loaded:
            module, attribute = _LAZY[name]
            try:
                self._loaded[name] = getattr(importlib.import_module(module), attribute)()
            except ModuleNotFoundError as error:
                if error.name is None or error.name.partition(".")[0] != name:
                    raise
                return None
        return self._loaded[name]


def _as_numpy(spec: LeafSpec) -> LeafSpec:
    suffix = ".complex128" if spec.kind.endswith(".complex128") else ""
    kind = spec.kind if spec.kind in NumpyCodec.kinds else "numpy" + suffix
    return LeafSpec(spec.path, kind, spec.dtype, spec.shape, spec.box)


def _pickled(value: object, path: str) -> Source:
    try:
        return bytes_source(pickle.dumps(value), "pickle", path)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UnsupportedLeaf(path, f"it cannot even be pickled: {error}") from error
