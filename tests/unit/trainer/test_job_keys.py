"""A job's keys are there while it runs, for one driver only, and gone afterwards but for its checkpoint."""

from __future__ import annotations

import pytest

from elastic_train.adapters.coordination.memory import MemoryCoordination
from elastic_train.config import CheckpointConfig, DataConfig, FailureConfig, ScaleConfig, TimeoutConfig
from elastic_train.core.records import JobRecord, Keys, WorkerId
from elastic_train.errors import JobAlreadyRunning
from elastic_train.ports import Coordination, Put
from elastic_train.trainer.job_keys import create_job, remove_job
from elastic_train.trainer.settings import JobSettings

KEYS = Keys("digits")


def _settings(name: str = "digits") -> JobSettings:
    return JobSettings(
        name=name,
        scale=ScaleConfig(min_workers=2, max_workers=8).resolve(4),
        data=DataConfig(seed=3).resolve(8),
        failure=FailureConfig(),
        checkpoint=CheckpointConfig(),
        timeouts=TimeoutConfig(),
        coordination=None,
        storage=None,
        framework="torch",
        preload=(),
        progress=False,
    )


@pytest.fixture
def coordination() -> Coordination:
    return MemoryCoordination()


def _keys(coordination: Coordination) -> list[str]:
    return [item.key for item in coordination.list("/").items]


def _leave_behind(coordination: Coordination) -> None:
    prefixes = (KEYS.workers, KEYS.suspects, KEYS.control, KEYS.answers, KEYS.groups)
    keys = [KEYS.world, KEYS.probe, KEYS.status, KEYS.controller, KEYS.checkpoint, *(key + "x" for key in prefixes)]
    coordination.commit([Put(key, b"old") for key in keys])


def test_the_record_says_what_all_must_agree_on(coordination: Coordination) -> None:
    create_job(coordination, _settings(), "file:///x")
    written = coordination.get(KEYS.job)
    assert written is not None
    record = JobRecord.from_bytes(written.value)
    assert (record.min_workers, record.max_workers, record.logical_shards, record.seed) == (2, 8, 8, 3)
    assert record.storage == "file:///x"


def test_what_an_earlier_run_left_is_swept_away_but_for_the_checkpoint(coordination: Coordination) -> None:
    create_job(coordination, _settings(), "file:///x")
    _leave_behind(coordination)
    create_job(coordination, _settings(), "file:///x")
    assert _keys(coordination) == [KEYS.checkpoint, KEYS.job]


def test_a_job_with_a_living_controller_is_not_begun_again(coordination: Coordination) -> None:
    create_job(coordination, _settings(), "file:///x")
    lease = coordination.grant(10.0)
    coordination.commit([Put(KEYS.leader, b"driver", lease.lease_id), Put(KEYS.worker(WorkerId("w1")), b"")])
    with pytest.raises(JobAlreadyRunning, match="choose another name"):
        create_job(coordination, _settings(), "file:///x")
    assert KEYS.worker(WorkerId("w1")) in _keys(coordination)


def test_the_end_of_a_job_leaves_other_jobs_and_the_checkpoint_alone(coordination: Coordination) -> None:
    revision = create_job(coordination, _settings(), "file:///x")
    create_job(coordination, _settings("digits2"), "file:///x")
    _leave_behind(coordination)
    remove_job(coordination, "digits", revision)
    assert _keys(coordination) == [KEYS.checkpoint, Keys("digits2").job]


def test_the_keys_of_a_run_that_has_taken_over_stay(coordination: Coordination) -> None:
    revision = create_job(coordination, _settings(), "file:///x")
    create_job(coordination, _settings(), "file:///x")
    remove_job(coordination, "digits", revision)
    assert _keys(coordination) == [KEYS.job]
