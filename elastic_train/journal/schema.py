"""The kinds of records and the fields each must have; a record may have more.

Every record has ``t`` (monotonic seconds of its machine), ``wall`` (seconds since 1970), ``kind`` and ``source`` (who
wrote it: a worker's id, or the driver's or controller's name). Times (``..._s``, ``seconds``) are in seconds;
``version`` counts committed transactions (steps and evaluations); ranges are half-open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

HEAD = ("t", "wall", "kind", "source")

_STEP = ("membership_epoch", "loop", "step")
_TRANSFER = ("membership_epoch", "peer", "version", "seconds")

KINDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "journal_opened": ("node", "pid", "boot"),
        # ---- a worker's life
        "worker_started": ("worker_id", "pid", "node"),
        "worker_left": ("membership_epoch", "reason"),
        "worker_finished": ("membership_epoch",),
        "worker_failed": ("membership_epoch", "error_type", "message", "step", "samples"),
        # ---- a worker's worlds; peer: the other's rank
        "group_formed": ("membership_epoch", "rank", "world_size", "fence", "form_s"),
        "state_sent": _TRANSFER,
        "state_received": _TRANSFER,
        "loop_started": ("loop", "total_steps"),
        "order_compared": ("membership_epoch", "loop", "data_epoch", "samples", "order_crc"),
        "stream_opened": ("membership_epoch", "loop", "data_epoch", "shard", "used", "skipped"),
        "stream_ended": ("membership_epoch", "loop", "data_epoch", "shard", "samples"),
        # ---- a worker's transactions; version: before a read, after a commit
        "step_read": (*_STEP, "version", "data_epoch", "shards", "samples", "indices_crc"),
        "step_measured": (*_STEP, "version", "metrics", "losses"),
        "step_committed": (*_STEP, "version", "samples", "global_samples", "metrics", "step_s"),
        "step_aborted": (*_STEP, "reason"),
        "state_digest": (*_STEP, "version", "digest", "tensors"),
        "state_diverged": ("membership_epoch", "version", "workers", "majority", "tensors"),
        "evaluation_read": ("membership_epoch", "name", "units"),
        "evaluation_committed": ("membership_epoch", "name", "version", "samples", "metrics"),
        # ---- checkpoints
        "checkpoint_restored": ("version",),
        "checkpoint_committed": ("version", "key"),
        "checkpoint_troubled": ("version", "what", "message"),
        # ---- the controller
        "job_started": ("job",),
        "leadership_won": ("phase", "membership_epoch"),
        "leadership_lost": ("reason",),
        "transition": ("event", "phase"),
        "world_proposed": ("membership_epoch", "members", "cause", "reason", "planned"),
        "world_sealed": ("membership_epoch", "fence", "members", "cause", "reason", "change_s"),
        "worker_launched": ("worker_id",),
        "worker_exited": ("worker_id", "exit_code", "detail"),
        "job_paused": ("reason",),
        "job_resumed": ("reason",),
        "job_ended": ("outcome",),
    }
)


def missing_fields(record: Mapping[str, Any]) -> list[str]:
    """Return the names of required fields that a decoded line lacks; an unknown kind requires the head only."""
    required = (*HEAD, *KINDS.get(record.get("kind", ""), ()))
    return [name for name in required if name not in record]
