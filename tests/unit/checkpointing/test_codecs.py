"""Every kind of leaf comes back as it was, in a new tree and in an existing one."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from checkpointing import Checkpointer, Settings
from checkpointing.errors import UnsupportedLeaf
from tests.unit.checkpointing.harness import FAST, memory_store

torch = pytest.importorskip("torch")


def there_and_back(tree: Any, into: Any = None, settings: Settings = FAST) -> Any:
    with Checkpointer(memory_store(), job="job", settings=settings) as checkpointer:
        checkpointer.save(0, tree, fence=1)
        checkpointer.wait()
        return checkpointer.load(into=into)


def bits(tensor: Any) -> bytes:
    flat = tensor.detach().resolve_conj().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return data


TORCH_DTYPES = [
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
    "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
]  # fmt: skip


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_torch_tensors_of_every_dtype(dtype: str) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype))
    back = there_and_back({"t": tensor, "scalar": tensor[0, 0, 1], "empty": tensor[:0]})
    for name, expected in (("t", tensor), ("scalar", tensor[0, 0, 1]), ("empty", tensor[:0])):
        assert back[name].dtype == expected.dtype
        assert back[name].shape == expected.shape
        assert bits(back[name]) == bits(expected)


def awkward_tensors() -> dict[str, Any]:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "transposed": base.transpose(0, 2),
        "strided": base[:, ::2],
        "offset": base.reshape(-1)[7:31],
        "expanded": torch.ones(1, 4).expand(3, 4),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "conjugate": torch.view_as_complex(torch.randn(3, 2)).conj(),
        "negative": torch.view_as_complex(torch.randn(3, 2)).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "needs_grad": torch.randn(4, requires_grad=True) * 2,
    }


def test_torch_tensors_that_are_not_plain_memory() -> None:
    tensors = awkward_tensors()
    back = there_and_back(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor.detach().resolve_conj().resolve_neg()), name


def test_torch_tensors_are_filled_in_place_also_where_they_are_not_plain_memory() -> None:
    tensors = {"transposed": torch.randn(4, 3), "parameter": torch.randn(3, 3), "flat": torch.randn(7)}
    into = {
        "transposed": torch.zeros(3, 4).t(),
        "parameter": torch.nn.Parameter(torch.zeros(3, 3)),
        "flat": torch.zeros(7),
    }
    back = there_and_back(tensors, into)
    for name, tensor in tensors.items():
        assert back[name] is into[name]
        assert torch.equal(into[name].detach(), tensor)


def test_a_module_and_its_optimizer_go_on_as_if_never_interrupted() -> None:
    def train(steps: int, state: Any = None) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        if state is not None:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        for step in range(steps):
            inputs = torch.linspace(0, 1 + step, 24).reshape(6, 4)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = train(3)
    state = there_and_back({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, _ = train(3, state)
    expected, _ = train(3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_torch_values_that_are_no_tensors() -> None:
    values = {"dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([2, 3])}
    back = there_and_back(values)
    assert back == values
    assert type(back["size"]) is torch.Size


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.empty(3, device="meta"), "meta"),
    ],
)
def test_torch_tensors_that_cannot_be_stored_are_named(tensor: Any, why: str) -> None:
    with pytest.raises(UnsupportedLeaf, match=rf"'a/0'.*{why}"):
        there_and_back({"a": [tensor]})


NUMPY_ARRAYS = {
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big_endian": np.arange(5, dtype=">i4"),
    "strided": np.arange(20)[::3],
    "complex": np.arange(4) * 1j,
    "bool": np.array([True, False]),
    "zero_d": np.array(3.5),
    "empty": np.zeros((0, 3), np.int8),
}


def test_numpy_arrays_of_every_layout() -> None:
    back = there_and_back(NUMPY_ARRAYS)
    for name, array in NUMPY_ARRAYS.items():
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(back[name], array), name


def test_numpy_scalars_and_bytes_keep_their_type() -> None:
    values = {"f": np.float64(1.5), "i": np.int8(3), "c": np.complex128(1 + 2j), "b": bytes(9000), "a": bytearray(b"x")}
    for back in (there_and_back(values), there_and_back(values, dict.fromkeys(values))):
        assert back == values
        assert [type(value) for value in back.values()] == [type(value) for value in values.values()]


def test_numpy_arrays_that_cannot_be_filled_are_replaced() -> None:
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    fortran = np.zeros((2, 3), order="F")
    back = there_and_back({"x": np.arange(3.0), "y": np.arange(6.0).reshape(2, 3)}, {"x": frozen, "y": fortran})
    assert back["x"].tolist() == [0, 1, 2]
    assert back["y"] is fortran
    assert fortran.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([object()]), np.zeros(2, "M8[s]"), np.zeros(1, "f4,i4")]
)
def test_numpy_arrays_that_cannot_be_stored_are_named(array: np.ndarray) -> None:
    with pytest.raises(UnsupportedLeaf, match=r"'a'.*dtype"):
        there_and_back({"a": array})


def test_a_torch_state_can_be_looked_at_without_torch(tmp_path: Any) -> None:
    from storage import open_store

    with open_store(f"file://{tmp_path}") as store, Checkpointer(store, job="job") as checkpointer:
        checkpointer.save(0, {"w": torch.arange(3.0), "h": torch.ones(2, dtype=torch.bfloat16)}, fence=1)
        checkpointer.wait()
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from checkpointing import Checkpointer\n"
        "from storage import open_store\n"
        f"with open_store('file://{tmp_path}') as store, Checkpointer(store, job='job') as c: print(c.load()['w'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[0. 1. 2.]", done.stderr


@pytest.mark.tensorflow
def test_tensorflow_variables_are_assigned_and_tensors_made() -> None:
    pytest.importorskip("tensorflow")
    code = """
import numpy as np, tensorflow as tf
from tests.unit.checkpointing.test_codecs import there_and_back
state = {
    "v": tf.Variable([[1.0, 2.0]]), "t": tf.constant([1, 2, 3]), "h": tf.Variable(tf.ones(3, tf.bfloat16)),
    "c": tf.constant(1 + 2j, tf.complex128),
}
back = there_and_back(state)
assert isinstance(back["v"], tf.Variable) and isinstance(back["t"], tf.Tensor)
assert back["h"].dtype == tf.bfloat16 and back["c"].numpy() == 1 + 2j
into = {"v": tf.Variable([[0.0, 0.0]]), "t": tf.constant([0, 0, 0]), "h": tf.Variable(tf.zeros(3, tf.bfloat16)),
    "c": tf.constant(0, tf.complex128)}
filled = there_and_back(state, into)
assert filled["v"] is into["v"] and into["v"].numpy().tolist() == [[1.0, 2.0]]
assert filled["t"].numpy().tolist() == [1, 2, 3]
import keras
variable = keras.Variable(np.arange(3.0))
other = keras.Variable(np.zeros(3))
assert there_and_back({"k": variable}, {"k": other})["k"] is other and other.numpy().tolist() == [0, 1, 2]
print("good")
"""
    run_apart(code)


def test_jax_arrays_come_back_on_their_devices() -> None:
    pytest.importorskip("jax")
    code = """
import jax, jax.numpy as jnp, numpy as np, pytest
from checkpointing.errors import UnsupportedLeaf
from tests.unit.checkpointing.test_codecs import there_and_back
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
state = {"a": jnp.arange(6.0).reshape(2, 3), "h": jnp.ones(3, jnp.bfloat16), "s": jax.device_put(jnp.arange(8), split)}
back = there_and_back(state)
assert all(isinstance(value, jax.Array) for value in back.values())
assert back["h"].dtype == jnp.bfloat16 and back["a"].tolist() == state["a"].tolist()
like = jax.tree.map(lambda x: jax.device_put(jnp.zeros_like(x), x.sharding), state)
filled = there_and_back(state, like)
assert filled["s"].sharding == split and filled["s"].tolist() == list(range(8))
with pytest.raises(UnsupportedLeaf, match="key_data"):
    there_and_back({"k": jax.random.key(0)})
print("good")
"""
    run_apart(code, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu")


def run_apart(code: str, **environment: str) -> None:
    """Run code in a process of its own: these libraries keep threads for ever."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
        env={**os.environ, "PYTHONPATH": ".", "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    assert done.stdout.strip() == "good", done.stderr[-3000:]
