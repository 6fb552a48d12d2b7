"""What can be found wrong before anything starts is found when the trainer is made."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import elastic_train as et
from elastic_train.config import ScaleConfig


def train(config: dict[str, Any]) -> None: ...


def test_defaults_leave_everything_to_the_machine(elastic_train_home: Path) -> None:
    trainer = et.ElasticTrainer(train)
    assert trainer.path == elastic_train_home / trainer.name
    assert trainer.name.startswith("train-")
    assert trainer.name != et.ElasticTrainer(train).name
    assert not elastic_train_home.exists()  # nothing is touched before fit


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"min_workers": 3, "max_workers": 2}, "max_workers"),
        ({"min_workers": 0}, "min_workers"),
        ({"name": "a/b"}, "name"),
        ({"coordination": "zoo://a"}, "coordination"),
        ({"seed": -1}, "seed"),
        ({"logical_shards": 0}, "logical_shards"),
        ({"config": threading.Lock()}, "config"),
        ({"failure_config": 3}, "failure_config"),
        ({"checkpoint_config": {"every_steps": 3}}, "checkpoint_config"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments: dict[str, Any], parameter: str) -> None:
    with pytest.raises(et.ConfigurationError) as caught:
        et.ElasticTrainer(train, **arguments)
    assert caught.value.parameter == parameter


def test_a_function_that_cannot_be_pickled_names_the_object() -> None:
    lock = threading.Lock()
    with pytest.raises(et.ConfigurationError, match=r"closure variable 'lock' is a _thread\.lock"):
        et.ElasticTrainer(lambda: lock)


def test_the_environment_fills_in_what_arguments_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTIC_TRAIN_NUM_WORKERS", "3")
    monkeypatch.setenv("ELASTIC_TRAIN_STORAGE", "file:///from/environment")
    monkeypatch.setenv("ELASTIC_TRAIN_PROGRESS", "no")
    trainer = et.ElasticTrainer(train, storage="file:///from/argument")
    assert trainer._settings.scale == ScaleConfig(num_workers=3)
    assert trainer._settings.storage == "file:///from/argument"
    assert trainer._settings.progress is False
    assert et.ElasticTrainer(train, progress=True)._settings.progress is True


def test_steering_a_job_that_does_not_run_is_refused() -> None:
    trainer = et.ElasticTrainer(train)
    steering = (lambda: trainer.resize(2), lambda: trainer.drain("w0001"), trainer.stop, trainer.status)
    for steer in steering:
        with pytest.raises(et.UsageError, match="does not run"):
            steer()


def test_a_framework_that_is_not_known_is_refused_before_anything_starts(elastic_train_home: Path) -> None:
    with pytest.raises(et.ConfigurationError) as caught:
        et.ElasticTrainer(train, framework="abacus").fit()
    assert caught.value.parameter == "framework"
    assert not elastic_train_home.exists()


def test_fewer_logical_shards_than_workers_are_refused_before_anything_starts(elastic_train_home: Path) -> None:
    with pytest.raises(et.ConfigurationError, match="every worker needs one"):
        et.ElasticTrainer(train, max_workers=8, logical_shards=4).fit()
    assert not elastic_train_home.exists()


def test_the_public_names_are_found_lazily_and_completely() -> None:
    assert all(getattr(et, name) is not None for name in et.__all__)
    assert set(et.__all__) <= set(dir(et))
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        _ = et.Trainer
