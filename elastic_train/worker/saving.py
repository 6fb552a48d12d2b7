"""Checkpoints of a job: when they are due, who writes which part, what is restored. `checkpointing` writes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from checkpointing import Checkpointer, Event, EventKind, KeepLast, NoCheckpoint, Settings, Ticket
from elastic_train.config import CheckpointConfig
from elastic_train.errors import GroupBroken
from elastic_train.worker.replica import Recorder
from storage import ObjectStore

_log = logging.getLogger(__name__)

_POLL_S = 0.02
_GATHER_S = 600.0  # for the other members to write their parts; if one is lost, the world changes and ends the wait


class CheckpointSaver:
    """Saves the replicas of a world together, each member a part of the bytes; restores the newest whole checkpoint.

    Args:
        store: Where checkpoints go.
        job: The job's name; checkpoints lie under it.
        config: When to save and what to keep.
        fence_base: Added to every fence, so that fences rise from one run of the job to the next.
        interrupted: Says whether this worker's world is broken; a save that is waited for is then given up.
        journal: Is told of every checkpoint.
    """

    def __init__(
        self,
        store: ObjectStore,
        job: str,
        config: CheckpointConfig,
        *,
        fence_base: int,
        interrupted: Callable[[], bool],
        journal: Recorder,
    ) -> None:
        self._config = config
        self._fence_base = fence_base
        self._interrupted = interrupted
        self._journal = journal
        self._rank = 0
        self._saved_at = time.monotonic()
        self._checkpointer = Checkpointer(
            store,
            job=job,
            retention=KeepLast(config.keep),
            settings=Settings(on_event=self._on_event, gather_timeout_s=_GATHER_S),
        )
        self._store = store
        self._newest: Ticket | None = None

    def due(self, steps: int) -> bool:
        """Say whether this worker asks for a checkpoint after so many committed steps."""
        every_steps, every_seconds = self._config.every_steps, self._config.every_seconds
        if every_steps is not None and steps % every_steps == 0:
            return True
        return (
            every_seconds is not None and self._rank == 0 and time.monotonic() - self._saved_at >= every_seconds
        )  # one clock decides, so that no save is asked for twice

    def take_place(self, rank: int, world_size: int) -> None:
        """Write this part of the bytes from now on; a save of the old world that is not yet committed is given up."""
        self._rank = rank
        self._checkpointer.reconfigure(rank, world_size)

    def save(self, version: int, tree: Mapping[str, Any], fence: int, *, wait: bool) -> None:
        """Copy the state and write it in the background.

        Args:
            version: Transactions committed in this state.
            tree: The state.
            fence: Of the world.
            wait: Return only when the checkpoint is committed.

        Raises:
            GroupBroken: With `wait`: the world broke meanwhile.
            SaveError: With `wait`: it could not be written in spite of all retries.
        """
        self._saved_at = time.monotonic()
        ticket = self._newest
        if ticket is None or (ticket.step, ticket.fence) != (version, self._fence_base + fence):
            ticket = self._newest = self._checkpointer.save(version, dict(tree), fence=self._fence_base + fence)
        if wait:  # the state that a job ends with may be under way already, because it was due: it is written once
            self._await(lambda: ticket.is_done)
            if ticket.error is not None:
                raise ticket.error
            self._await(lambda: self._checkpointer.is_committed(ticket.step, ticket.fence))  # rank 0 does it

    def restore(self) -> Mapping[str, Any] | None:
        """Return the newest whole checkpoint's tree, or None if none was ever committed.

        Raises:
            NoCheckpoint: There are committed ones, and none of them is readable.
        """
        try:
            tree: Mapping[str, Any] = self._checkpointer.load()
        except NoCheckpoint as error:
            if error.problems:
                raise
            return None
        return tree

    def close(self) -> None:
        """Finish what is under way and free the buffers."""
        self._checkpointer.close()
        self._store.close()

    def _await(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._interrupted():
                raise GroupBroken("the world changed while its checkpoint was written")
            time.sleep(_POLL_S)

    def _on_event(self, event: Event) -> None:
        if event.kind is EventKind.COMMITTED:
            self._journal.record("checkpoint_committed", version=event.step, key=str(event.step))
        elif event.error is not None:
            _log.warning("checkpoint %s %s: %s", event.step, event.kind.value, event.error)
            self._journal.record(
                "checkpoint_troubled", version=event.step, what=event.kind.value, message=str(event.error)
            )
