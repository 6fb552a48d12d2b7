"""What cannot work is refused before anything starts, in words that say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from elastic_train.config import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    ScaleConfig,
    TimeoutConfig,
    check_coordination_url,
    check_job_name,
    read_environment,
)
from elastic_train.errors import ConfigurationError


@pytest.mark.parametrize("name", ["a", "digits", "Job-7.b_2", "x" * 63])
def test_ordinary_job_names_are_taken_as_they_are(name: str) -> None:
    assert check_job_name(name) == name


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "-x", "x-", "a b", "jöb", "x" * 64, "a\n", "a\0", 7.5])
def test_odd_job_names_are_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="cannot name a job") as caught:
        check_job_name(name)
    assert caught.value.parameter == "name"


@pytest.mark.parametrize("url", ["etcd://a:2379", "etcd://a:2379,b:2379", "etcd://user:pw@a:2379/?ca=/x", "memory://"])
def test_coordination_urls_with_a_known_scheme_are_taken(url: str) -> None:
    assert check_coordination_url(url) == url


@pytest.mark.parametrize("url", ["a:2379", "http://user:secret@a", "zookeeper://a", "user:secret@a", ""])
def test_other_coordination_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="Write 'etcd://host:2379") as caught:
        check_coordination_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        ({"min_workers": 0}, "min_workers"),
        ({"min_workers": True}, "min_workers"),
        ({"min_workers": 2.0}, "min_workers"),
        ({"min_workers": 4, "max_workers": 2}, "max_workers"),
        ({"max_workers": 0}, "max_workers"),
        ({"min_workers": 2, "max_workers": 4, "num_workers": 1}, "num_workers"),
        ({"min_workers": 2, "max_workers": 4, "num_workers": 5}, "num_workers"),
        ({"num_workers": 0}, "num_workers"),
    ],
)
def test_numbers_of_workers_that_cannot_work_are_refused(arguments: dict[str, Any], parameter: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ScaleConfig(**arguments)
    assert caught.value.parameter == parameter


@pytest.mark.parametrize(
    ("given", "machine", "resolved"),
    [
        ({}, 8, (1, 8, 8)),
        ({"min_workers": 2, "max_workers": 4}, 8, (2, 4, 4)),
        ({"min_workers": 2, "max_workers": 16}, 1, (2, 16, 2)),
        ({"min_workers": 4}, 2, (4, 4, 4)),
        ({"num_workers": 6}, 2, (1, 6, 6)),
        ({"max_workers": 8, "num_workers": 3}, 2, (1, 8, 3)),
    ],
)
def test_what_is_left_out_comes_from_the_machine(
    given: dict[str, int], machine: int, resolved: tuple[int, int, int]
) -> None:
    scale = ScaleConfig(**given).resolve(machine)
    assert (scale.min_workers, scale.max_workers, scale.num_workers) == resolved


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (FailureConfig, {"max_failures": -2}),
        (FailureConfig, {"max_failures": 1.5}),
        (FailureConfig, {"hang_timeout_s": 0}),
        (FailureConfig, {"below_minimum_timeout_s": float("inf")}),
        (CheckpointConfig, {"every_steps": 0}),
        (CheckpointConfig, {"every_seconds": -1}),
        (CheckpointConfig, {"every_seconds": float("nan")}),
        (CheckpointConfig, {"keep": 0}),
        (TimeoutConfig, {"lease_ttl_s": 1}),
        (TimeoutConfig, {"ack_timeout_s": None}),
        (DataConfig, {"seed": -1}),
        (DataConfig, {"seed": "0"}),
        (DataConfig, {"logical_shards": 0}),
    ],
)
def test_settings_that_cannot_work_name_the_parameter(kind: type[Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**arguments)
    assert caught.value.parameter.endswith(next(iter(arguments)))


def test_logical_shards_default_to_the_largest_world_and_may_not_be_fewer() -> None:
    assert DataConfig().resolve(8).logical_shards == 8
    assert DataConfig(logical_shards=24).resolve(8).logical_shards == 24
    with pytest.raises(ConfigurationError, match="every worker needs one"):
        DataConfig(logical_shards=4).resolve(8)


def test_an_empty_environment_says_nothing() -> None:
    environment = read_environment({"ELASTIC_TRAIN_STORAGE": "", "PATH": "/bin"})
    assert environment.home == Path.home() / "elastic_train"
    assert (environment.coordination, environment.storage, environment.num_workers, environment.progress) == (None,) * 4


def test_the_environment_is_read() -> None:
    environment = read_environment(
        {
            "ELASTIC_TRAIN_HOME": "/data/jobs",
            "ELASTIC_TRAIN_COORDINATION": "etcd://a:2379",
            "ELASTIC_TRAIN_STORAGE": "s3://bucket/x",
            "ELASTIC_TRAIN_NUM_WORKERS": "3",
            "ELASTIC_TRAIN_PROGRESS": "no",
        }
    )
    assert environment.home == Path("/data/jobs")
    assert environment.coordination == "etcd://a:2379"
    assert environment.storage == "s3://bucket/x"
    assert environment.num_workers == 3
    assert environment.progress is False


@pytest.mark.parametrize(("name", "text"), [("ELASTIC_TRAIN_NUM_WORKERS", "four"), ("ELASTIC_TRAIN_PROGRESS", "maybe")])
def test_an_unreadable_variable_is_named(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_environment({name: text})
    assert caught.value.parameter == name
