"""The driver's own writes to the coordination service: the job's record at the beginning, sweeping up at the end."""

from __future__ import annotations

import logging
import time

from elastic_train.core.records import JobRecord, Keys
from elastic_train.errors import GuardFailed, JobAlreadyRunning
from elastic_train.ports import Coordination, Delete, Guard, Put
from elastic_train.trainer.settings import JobSettings

_log = logging.getLogger(__name__)


def create_job(coordination: Coordination, settings: JobSettings, storage: str) -> int:
    """Write the job's record, over what an earlier run left; return its revision.

    Raises:
        JobAlreadyRunning: A controller of this job lives, or another driver was first.
    """
    keys = Keys(settings.name)
    data, scale = settings.data, settings.scale
    assert data.logical_shards is not None, "resolve the settings first"
    assert scale.max_workers is not None, "resolve the settings first"
    record = JobRecord(
        job=settings.name,
        min_workers=scale.min_workers,
        max_workers=scale.max_workers,
        logical_shards=data.logical_shards,
        seed=data.seed,
        storage=storage,
        created_at=time.time(),
        deterministic=data.deterministic,
        digest_every_steps=data.digest_every_steps,
    )
    known = coordination.get(keys.job)
    guards = [Guard(keys.job, 0 if known is None else known.mod_revision), Guard(keys.leader, 0)]
    try:
        return coordination.commit([*_sweep(keys), Put(keys.job, record.to_bytes())], guards)
    except GuardFailed:
        raise JobAlreadyRunning(
            settings.name,
            "is already running on this coordination service. Look at it with "
            f"'elastic-train status {settings.name} --coordination URL', wait for it, or choose another name",
        ) from None


def remove_job(coordination: Coordination, job: str, revision: int) -> None:
    """Delete everything below the job's prefix but the pointer to its newest checkpoint.

    If the record is another's by now (its revision is not what `create_job` returned), so are the keys: they stay.
    """
    keys = Keys(job)
    try:
        coordination.commit([*_sweep(keys), Delete(keys.job)], [Guard(keys.job, revision)])
    except GuardFailed:
        _log.warning("the keys of job %r are left alone: another driver has begun it anew", job)


def _sweep(keys: Keys) -> list[Delete]:
    """Return the deletion of all that belongs to one run; a fixed number of operations, for etcd limits them."""
    prefixes = (keys.world, keys.workers, keys.suspects, keys.control, keys.answers, keys.groups)
    return [*(Delete(prefix, prefix=True) for prefix in prefixes), Delete(keys.status), Delete(keys.controller)]
