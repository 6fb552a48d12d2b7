"""Framework adapters by name: ours, and third parties' through the entry point group ``elastic_train.frameworks``."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, cast

from elastic_train.errors import ConfigurationError
from elastic_train.ports import Framework

ENTRY_POINT_GROUP = "elastic_train.frameworks"

_BUILT_IN = {"torch": "elastic_train.adapters.framework.torch.framework:TorchFramework"}
"""The adapter's class; its package imports without the library and has ``PRELOAD``."""


def framework_names() -> list[str]:
    """Return the names of all frameworks that can be loaded, installed or not."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def load_framework(name: str, **options: Any) -> Framework:
    """Return a new adapter.

    Raises:
        ConfigurationError: There is no framework of this name, or its library is not installed.
    """
    try:
        kind = _find(name)
    except ModuleNotFoundError as error:
        raise _not_installed(name, error.name) from error
    return cast("Framework", kind(**options))


def framework_preload(name: str) -> tuple[str, ...]:
    """Return the modules that a warm worker pool for a framework imports in advance, without importing them here.

    Raises:
        ConfigurationError: There is no framework of this name, or its library is not installed.
    """
    if name not in _BUILT_IN:
        return load_framework(name).preload
    package = _BUILT_IN[name].partition(":")[0].rpartition(".")[0]
    preload: tuple[str, ...] = import_module(package).PRELOAD
    if find_spec(preload[0]) is None:
        raise _not_installed(name, preload[0])
    return preload


def _not_installed(name: str, package: str | None) -> ConfigurationError:
    return ConfigurationError(
        "framework",
        f"{name!r} needs the package {package!r}, which is not installed",
        f"Run: pip install 'elastic-train[{name}]'",
    )


def _find(name: str) -> Any:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return point.load()
    raise ConfigurationError("framework", f"{name!r} is not known", f"Choose one of: {', '.join(framework_names())}")
