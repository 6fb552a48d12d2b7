"""TensorFlow tensors and variables, and Keras variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from checkpointing.codecs.base import Bytes, Codec, Source, Target, allocate
from checkpointing.codecs.numpy_leaf import ArraySource, dtype_name, numpy_dtype
from checkpointing.core.division import LeafSpec
from checkpointing.core.layout import Box
from checkpointing.errors import UnsupportedLeaf


def _is_variable(value: Any) -> bool:
    # Keras 3 wraps TensorFlow's variables in its own, which are assigned to in the same way.
    return isinstance(value, tf.Variable) or (hasattr(value, "assign") and hasattr(value, "numpy"))


class TensorFlowTarget(Target):
    """A variable to be assigned to, or a tensor or variable to be made."""

    def __init__(self, spec: LeafSpec, variable: Any = None) -> None:
        self.spec = spec
        self._variable = variable
        self._buffer = allocate(spec)

    def buffer(self) -> Bytes:
        """Return a buffer: TensorFlow does not lend out its memory for writing."""
        return self._buffer

    def finish(self) -> Any:
        """Return the variable or tensor."""
        array = self._buffer.view(numpy_dtype(self.spec.dtype)).reshape(self.spec.box.sizes)
        if self.spec.kind.endswith(".complex128"):
            array = array.view(np.complex128).reshape(array.shape[:-1])
        if self._variable is not None:
            self._variable.assign(array)
            return self._variable
        return tf.Variable(array) if self.spec.kind.startswith("tensorflow.variable") else tf.convert_to_tensor(array)


class TensorFlowCodec(Codec):
    """Eager tensors and variables."""

    kinds = frozenset({"tensorflow", "tensorflow.complex128", "tensorflow.variable", "tensorflow.variable.complex128"})
    module = "tensorflow"

    def source(self, value: Any, path: str) -> Source | None:
        """Return how to save a tensor or variable."""
        prepared = _prepare(value, path)
        return None if prepared is None else ArraySource(prepared[0], np.ascontiguousarray(prepared[1]))

    def target(self, value: Any, path: str) -> Target | None:
        """Return how to fill a variable; a tensor cannot be changed and is made anew."""
        prepared = _prepare(value, path)
        if prepared is None:
            return None
        return TensorFlowTarget(prepared[0], value if _is_variable(value) else None)

    def new_target(self, spec: LeafSpec) -> Target:
        """Return how to make a tensor or variable."""
        return TensorFlowTarget(spec)


def _prepare(value: Any, path: str) -> tuple[LeafSpec, np.ndarray] | None:
    """Return the description of a tensor and its elements.

    Raises:
        UnsupportedLeaf: It is symbolic, ragged, sparse, or of a dtype that cannot be stored.
    """
    is_variable = _is_variable(value)
    if not is_variable and not isinstance(value, tf.Tensor):
        if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
            raise UnsupportedLeaf(path, f"a {type(value).__name__}; store its components")
        return None
    if not hasattr(value, "numpy"):
        raise UnsupportedLeaf(path, "a symbolic tensor has no value yet")
    kind = "tensorflow.variable" if is_variable else "tensorflow"
    array = np.asarray(value.numpy())
    if array.dtype == np.complex128:
        kind, array = f"{kind}.complex128", array[..., None].view(np.float64)
    name = dtype_name(array.dtype)
    if name is None:
        raise UnsupportedLeaf(path, f"TensorFlow tensors of dtype {value.dtype} have no place in safetensors")
    return LeafSpec(path, kind, name, array.shape, Box.whole(array.shape)), array
