"""A state as a skeleton of plain values plus a list of tensors, and back.

The skeleton is JSON. What JSON has no word for is an object with the key ``$``:

==========================================  ==========================================
``{"$": "t", "i": 7}``                      tensor number 7
``{"$": "tuple", "v": [...]}``              a tuple; likewise ``set`` and ``frozenset``
``{"$": "dict", "v": [[key, value], ...]}`` a dict whose keys are not all plain strings
``{"$": "float", "v": "nan"}``              nan, inf, -inf
``{"$": "complex", "v": [re, im]}``
``{"$": "bytes", "v": base64}``             up to 4 KiB; longer ones are tensors of bytes
``{"$": "<codec>", ...}``                   a value that a codec encoded, as a ``torch.dtype``
==========================================  ==========================================

A tensor's path is its keys joined by ``/`` (``~`` and ``/`` within a key are written ``~0`` and ``~1``, as in
RFC 6901).
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from checkpointing.errors import UnsupportedLeaf

MAX_INLINE_BYTES = 4096

Json = Any
"""What `json.loads` returns."""


@dataclass(slots=True)
class Flat:
    """A flattened tree.

    Attributes:
        skeleton: The structure and the plain values, as JSON.
        tensors: What stands at each tensor reference, by number.
        paths: The path of each of them.
    """

    skeleton: Json = None
    tensors: list[Any] = field(default_factory=list[Any])
    paths: list[str] = field(default_factory=list[str])


Claim = Callable[[object, str], object | None]
"""Given a value and its path: return what to put into the list of tensors, or None if the value is none."""

EncodeOther = Callable[[object, str], Json | None]
"""Given a value that is no plain one and its path: return a JSON object with `$`, or None."""


def escape(key: object) -> str:
    """Return a dict key as one segment of a path."""
    return str(key).replace("~", "~0").replace("/", "~1")


def _kind_of(value: Any) -> type[Any]:
    """Return the class of a value, of which no type checker knows more."""
    found: type[Any] = value.__class__
    return found


def _is_named_tuple(kind: type[Any]) -> bool:
    return "_fields" in vars(kind) and tuple in kind.__mro__


class Flattener:
    """Split trees into skeletons and tensors.

    Args:
        claim: Says which values are tensors.
        encode_other: Encodes values that are neither tensors nor plain.
    """

    def __init__(self, claim: Claim, encode_other: EncodeOther) -> None:
        self._claim = claim
        self._encode_other = encode_other
        self._flat = Flat()
        self._open: set[int] = set()

    def flatten(self, tree: object) -> Flat:
        """Return the tree's skeleton and tensors; the skeleton shares nothing mutable with the tree.

        Raises:
            UnsupportedLeaf: A value can be stored neither as a tensor nor as JSON; two keys have one path; a container
                holds itself.
        """
        self._flat = Flat()
        self._open = set()
        self._flat.skeleton = self._encode(tree, "")
        twice = [path for path, count in Counter(self._flat.paths).items() if count > 1]
        if twice:
            raise UnsupportedLeaf(twice[0], "two values have this path (a dict with both 1 and '1' as keys?)")
        return self._flat

    def _encode(self, value: Any, path: str) -> Json:
        kind = _kind_of(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:  # not a subclass, as numpy.float64 is
            return value if math.isfinite(value) else {"$": "float", "v": str(value)}
        if isinstance(value, Mapping):
            return self._within(value, path, self._encode_mapping)
        if kind in _SEQUENCES or _is_named_tuple(kind):
            return self._within(value, path, self._encode_sequence)
        return self._encode_leaf(value, path)

    def _within(self, container: Any, path: str, encode: Callable[[Any, str], Json]) -> Json:
        if id(container) in self._open:
            raise UnsupportedLeaf(path, "the container holds itself")
        self._open.add(id(container))
        try:
            return encode(container, path)
        finally:
            self._open.discard(id(container))

    def _encode_mapping(self, mapping: Mapping[Any, Any], path: str) -> Json:
        prefix = f"{path}/" if path else ""
        if all(type(key) is str for key in mapping) and "$" not in mapping:
            return {key: self._encode(value, prefix + escape(key)) for key, value in mapping.items()}
        pairs: list[Json] = []
        for key, value in mapping.items():
            here = prefix + escape(key)
            if not (key is None or type(key) in (bool, int, str, float, tuple)):
                raise UnsupportedLeaf(
                    here, f"a key of type {type(key).__name__}; use str, int, float, bool or tuples of these"
                )
            pairs.append([self._encode(key, here + " (key)"), self._encode(value, here)])
        return {"$": "dict", "v": pairs}

    def _encode_sequence(self, items: Collection[Any], path: str) -> Json:
        prefix = f"{path}/" if path else ""
        kind = type(items)
        if kind in (set, frozenset):
            # In an order of their own, so that the same state has the same manifest.
            items = sorted(items, key=lambda item: (type(item).__name__, repr(item)))
        encoded = [self._encode(item, f"{prefix}{index}") for index, item in enumerate(items)]
        if kind is list:
            return encoded
        return {"$": _SEQUENCES.get(kind, "tuple"), "v": encoded}

    def _encode_leaf(self, value: object, path: str) -> Json:
        if type(value) is complex:
            return {"$": "complex", "v": [self._encode(value.real, path), self._encode(value.imag, path)]}
        if type(value) is bytes and len(value) <= MAX_INLINE_BYTES:
            return {"$": "bytes", "v": base64.b64encode(value).decode()}
        claimed = self._claim(value, path)
        if claimed is not None:
            self._flat.tensors.append(claimed)
            self._flat.paths.append(path)
            return {"$": "t", "i": len(self._flat.tensors) - 1}
        other = self._encode_other(value, path)
        if other is not None:
            return other
        raise UnsupportedLeaf(
            path,
            f"{type(value).__module__}.{type(value).__qualname__} is neither a tensor nor a plain value "
            "(None, bool, int, float, complex, str, bytes, list, tuple, set, dict); convert it, or set allow_pickle",
        )


_SEQUENCES: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}


def unflatten(skeleton: Json, tensors: Sequence[Any], decode_other: Callable[[Json], Any]) -> Any:
    """Return the tree of a skeleton, with `tensors` where they belong.

    Raises:
        ValueError, KeyError, IndexError, TypeError: The skeleton is malformed.
    """
    kind = _kind_of(skeleton)
    if kind is list:
        return [unflatten(item, tensors, decode_other) for item in skeleton]
    if kind is not dict:
        return skeleton
    tag: str | None = skeleton.get("$")
    if tag is None:
        return {key: unflatten(value, tensors, decode_other) for key, value in skeleton.items()}
    if tag == "t":
        return tensors[skeleton["i"]]
    if tag in _PLAIN:
        return _PLAIN[tag](skeleton["v"])
    if tag == "dict":
        pairs: list[tuple[Json, Json]] = skeleton["v"]
        return {unflatten(k, tensors, decode_other): unflatten(v, tensors, decode_other) for k, v in pairs}
    if tag in _CONTAINERS:
        return _CONTAINERS[tag](unflatten(item, tensors, decode_other) for item in skeleton["v"])
    return decode_other(skeleton)


def _decode_complex(parts: Json) -> complex:
    return complex(*(unflatten(part, (), float) for part in parts))


_PLAIN: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": _decode_complex,
    "bytes": lambda text: base64.b64decode(text, validate=True),
}
_CONTAINERS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class _NotLoaded:
    """What stands in a tree for a tensor that was not read."""


NOT_LOADED = _NotLoaded()


def graft(into: Any, tree: Any) -> Any:
    """Return `into` with its plain values taken from `tree` wherever `tree` has the same place.

    Tensors of `into` stay the objects they are (they were filled in place); what `tree` has no place for stays.
    """
    kind = _kind_of(into)
    if issubclass(kind, Mapping):
        if not issubclass(type(tree), Mapping):
            return into
        return {key: graft(value, tree[key]) if key in tree else value for key, value in into.items()}
    if kind in (list, tuple):
        if _kind_of(tree) is not kind or len(tree) != len(into):
            return into
        grafted = list(map(graft, into, tree))
        return grafted if kind is list else tuple(grafted)
    return into if tree is NOT_LOADED else tree
