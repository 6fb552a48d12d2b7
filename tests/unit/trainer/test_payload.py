"""The train function reaches the workers, or the object that keeps it from doing so is named."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elastic_train.errors import ConfigurationError
from elastic_train.trainer.payload import dump_payload, load_payload

LOCK = threading.Lock()


class Holder:
    def __init__(self, lock: object) -> None:
        self.settings = {"nested": [1, lock]}

    def train(self, config: object) -> object:
        return config


def _run(train: Callable[..., Any], config: object, path: Path) -> object:
    path.write_bytes(dump_payload(train, config))
    return load_payload(path)()


def test_a_function_gets_its_config(tmp_path: Path) -> None:
    assert _run(lambda config: config["lr"] * 2, {"lr": 3}, tmp_path / "p") == 6


def test_a_function_without_arguments_gets_none(tmp_path: Path) -> None:
    assert _run(lambda: 7, None, tmp_path / "p") == 7


def test_partials_closures_and_bound_methods_travel(tmp_path: Path) -> None:
    captured = [1, 2]
    assert _run(functools.partial(lambda a, config: (a, config), 5), {"x": 1}, tmp_path / "p") == (5, {"x": 1})
    assert _run(lambda: captured, None, tmp_path / "q") == [1, 2]
    assert _run(Holder(None).train, 9, tmp_path / "r") == 9


def _culprit(train: Callable[..., Any], config: object = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        dump_payload(train, config)
    return caught.value


def test_a_closure_variable_that_cannot_travel_is_named() -> None:
    lock = threading.Lock()

    def train(config: object) -> None:
        with lock:
            pass

    error = _culprit(train)
    assert error.parameter == "train"
    assert "closure variable 'lock' is a _thread.lock" in error.problem
    assert "Create it inside the train function" in error.remedy


def test_a_global_variable_that_cannot_travel_is_named() -> None:
    code = "def train(config):\n    def inner():\n        return db\n    return inner()\n"
    namespace: dict[str, Any] = {"db": LOCK, "__name__": "__main__"}
    exec(code, namespace)
    assert "train → global variable 'db' is a _thread.lock" in _culprit(namespace["train"]).problem


def test_the_way_to_a_nested_object_is_told() -> None:
    error = _culprit(Holder(threading.Lock()).train)
    assert "attribute .settings → ['nested'] → [1] is a _thread.lock" in error.problem


def test_defaults_and_partial_arguments_are_looked_into() -> None:
    lock = threading.Lock()

    def train(config: object, guard: object = lock) -> None: ...

    assert "default argument 0" in _culprit(train).problem
    partial = functools.partial(lambda config, guard: (config, guard), guard=lock)
    assert "argument guard is a _thread.lock" in _culprit(partial).problem


def test_a_config_that_cannot_travel_is_named() -> None:
    error = _culprit(len, {"model": {"lock": threading.Lock()}})
    assert error.parameter == "config"
    assert "config → ['model'] → ['lock'] is a _thread.lock" in error.problem


def test_an_object_that_contains_itself_is_no_trap() -> None:
    loop: list[object] = [threading.Lock()]
    loop.append(loop)
    assert "_thread.lock" in _culprit(lambda: loop).problem


async def _coroutine(config: object) -> None: ...


def _two_arguments(first: object, second: object) -> None: ...


def _keyword_only(*, config: object) -> None: ...


@pytest.mark.parametrize("train", [None, "train", 7, _coroutine, _two_arguments, _keyword_only])
def test_what_is_no_train_function_is_refused(train: Any) -> None:
    assert _culprit(train).parameter == "train"


def test_a_config_for_a_function_that_takes_none_is_refused() -> None:
    assert _culprit(lambda: None, {"lr": 1}).parameter == "config"
