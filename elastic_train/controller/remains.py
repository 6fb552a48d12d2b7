"""Reads what a controller before this one, if any, left of a job."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from elastic_train.core.records import ControllerRecord, Keys, ProbeRecord, Stage, WorkerId, WorkerRecord, WorldRecord
from elastic_train.core.recovery import Remains
from elastic_train.ports import Coordination, KeyValue, Snapshot

_log = logging.getLogger(__name__)


def find_remains(coordination: Coordination, keys: Keys, ours: frozenset[WorkerId]) -> tuple[Remains, Snapshot, int]:
    """Return the job's records, the snapshot they were read from, and the world's mod_revision (0: no world).

    Raises:
        CoordinationUnavailable: The service did not answer.
    """
    snapshot = coordination.list(keys.root)
    by_key = {item.key: item for item in snapshot.items}
    world_item, memo_item, probe_item = (by_key.get(key) for key in (keys.world, keys.controller, keys.probe))
    world = None if world_item is None else WorldRecord.from_bytes(world_item.value)
    remains = Remains(
        world=world,
        fence=0 if world_item is None or world is None or world.stage is not Stage.SEALED else world_item.mod_revision,
        workers=tuple(_workers(keys, snapshot.items)),
        memo=None if memo_item is None else ControllerRecord.from_bytes(memo_item.value),
        ours=ours,
        probe=0 if probe_item is None else ProbeRecord.from_bytes(probe_item.value).number,
    )
    return remains, snapshot, 0 if world_item is None else world_item.mod_revision


def _workers(keys: Keys, items: Iterable[KeyValue]) -> Iterable[WorkerRecord]:
    """Yield the workers' records in the order of their appearance."""
    mine = [item for item in items if item.key.startswith(keys.workers)]
    for item in sorted(mine, key=lambda item: item.create_revision):
        try:
            yield WorkerRecord.from_bytes(item.value)
        except ValueError:
            _log.warning("%s holds no worker's record: %r", item.key, item.value[:200])
