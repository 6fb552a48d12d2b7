"""The layers of the design hold, and what pyproject.toml says about them covers everything there is."""

import re
import subprocess
import sys
from pathlib import Path

from tests.architecture.source_tree import PACKAGES, ROOT, pyproject

_CONTRACTS = pyproject()["tool"]["importlinter"]


def test_every_import_contract_is_kept() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contracts_cover_exactly_the_packages_that_exist() -> None:
    written = {package for package in PACKAGES if any((ROOT / package).rglob("*.py"))}
    assert set(_CONTRACTS["root_packages"]) == written
    held = {container for contract in _CONTRACTS["contracts"] for container in contract.get("containers", [])}
    assert held == written, "each package needs a layers contract"


def test_a_layer_is_optional_only_while_it_is_not_written() -> None:
    stale = []
    for contract in _CONTRACTS["contracts"]:
        for container in contract.get("containers", []):
            for name in re.findall(r"\((\w+)\)", " ".join(contract["layers"])):
                path = ROOT / container / name
                if path.with_suffix(".py").exists() or any(path.glob("*.py")):
                    stale.append(f"{container}.{name}")
    assert not stale, f"these exist now: take away their parentheses in pyproject.toml: {stale}"


def test_every_layers_contract_names_every_module_of_its_package() -> None:
    layers = [contract for contract in _CONTRACTS["contracts"] if contract["type"] == "layers"]
    assert all(contract.get("exhaustive") for contract in layers)


def test_the_lower_packages_stand_alone() -> None:
    """`storage` and `checkpointing` are useful without the packages above them."""
    forbidden = {
        (source, target)
        for contract in _CONTRACTS["contracts"]
        if contract["type"] == "forbidden"
        for source in contract["source_modules"]
        for target in contract["forbidden_modules"]
    }
    written = set(_CONTRACTS["root_packages"])
    above = {"storage": {"checkpointing", "elastic_train", "chaos"}, "checkpointing": {"elastic_train", "chaos"}}
    needed = {(low, high) for low in written & above.keys() for high in written & above[low]}
    needed |= {("elastic_train", "chaos")} if {"elastic_train", "chaos"} <= written else set()
    assert needed <= forbidden
