"""States of streams as bytes, and the numbers that tell samples apart."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_train.worker.fingerprints import fingerprint, identity
from elastic_train.worker.packing import pack_state, unpack_state

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(-(2**63), 2**63), inner)
    ),
    max_leaves=20,
)


@given(tree=trees)
def test_a_state_comes_back_as_it_was(tree: Any) -> None:
    assert unpack_state(pack_state(tree)) == tree


def test_arrays_and_odd_dicts_come_back() -> None:
    state = OrderedDict(
        rng=np.random.default_rng(1).bit_generator.state, keys=np.arange(6, dtype=np.uint32).reshape(2, 3)
    )
    back: dict[str, Any] = unpack_state(pack_state(state))
    assert back["rng"] == state["rng"]
    assert back["keys"].dtype == np.uint32
    assert back["keys"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_no_plain_value_is_refused_and_named() -> None:
    with pytest.raises(TypeError, match="holds a object"):
        pack_state({"x": [object()]})


def test_unknown_bytes_are_refused() -> None:
    import msgpack

    with pytest.raises(ValueError, match="unknown extension 99"):
        unpack_state(msgpack.packb(msgpack.ExtType(99, b"")))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        ("a", "b"),
        (b"a", b"b"),
        ({"x": 1}, {"x": 2}),
        ({"x": 1}, {"y": 1}),
        ([1, [2]], [1, [3]]),
        ((1,), (1, 1)),
        (np.zeros(3), np.zeros((3, 1))),
        ({"x": np.arange(4)}, {"x": np.arange(1, 5)}),
        ({"__key__": "1", "jpg": b""}, {"__key__": "2", "jpg": b""}),
    ],
)
def test_different_samples_have_different_numbers(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(one)


def test_a_key_decides_alone_and_an_integer_is_its_own_number() -> None:
    assert fingerprint({"__key__": "1", "jpg": b"x"}) == fingerprint({"__key__": "1", "jpg": b"y"})
    assert identity(12345) == 12345
    assert identity("a") == fingerprint("a")
