"""The state of a user's stream as bytes: msgpack, and what else such states hold. Nothing in it is ever executed."""

from __future__ import annotations

import sys
from typing import Any

import msgpack
import numpy as np

_TUPLE, _BIG_INT, _ARRAY, _TENSOR = range(4)


def pack_state(state: Any) -> bytes:
    """Return a state as bytes.

    Raises:
        TypeError: It holds something other than plain values, tuples, arrays and tensors; says what.
    """
    data: bytes = msgpack.packb(state, default=_pack_other, strict_types=True)
    return data


def unpack_state(data: bytes) -> Any:
    """Return the state that `pack_state` wrote.

    Raises:
        ValueError: These are no such bytes.
    """
    return msgpack.unpackb(data, ext_hook=_unpack_other, strict_map_key=False)


def _pack_other(value: Any) -> Any:
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, pack_state(list(value)))
    if isinstance(value, int):
        return msgpack.ExtType(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return msgpack.ExtType(_ARRAY, pack_state([value.dtype.str, list(value.shape), value.tobytes()]))
    if isinstance(value, dict):  # a subclass, such as OrderedDict
        return dict(value)
    torch = sys.modules.get("torch")  # a state with tensors comes from somebody who has loaded it
    if torch is not None and isinstance(value, torch.Tensor):
        return msgpack.ExtType(_TENSOR, pack_state(value.detach().cpu().numpy()))
    raise TypeError(f"a stream's state holds a {type(value).__qualname__}")


def _unpack_other(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(unpack_state(data))
    if code == _BIG_INT:
        return int.from_bytes(data, "little", signed=True)
    if code == _ARRAY:
        dtype, shape, content = unpack_state(data)
        return np.frombuffer(content, dtype=np.dtype(dtype)).reshape(shape).copy()
    if code == _TENSOR:
        return sys.modules["torch"].from_numpy(unpack_state(data))
    raise ValueError(f"unknown extension {code} in a stream's state")
