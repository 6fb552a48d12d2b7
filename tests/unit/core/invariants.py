"""What must hold after every step of the membership core, whatever happened."""

from __future__ import annotations

from collections import Counter

from elastic_train.core.bounds import Bounds
from elastic_train.core.world import JobState, Life, Phase, World


def check(before: JobState, state: JobState, bounds: Bounds) -> None:
    """Compare a state with the one before it.

    Raises:
        AssertionError: An invariant does not hold.
    """
    assert state.fence >= before.fence, "a fence went back"
    assert state.membership_epoch >= before.membership_epoch, "a membership epoch went back"
    assert (state.proposal is not None) == (state.phase in (Phase.FORMING, Phase.SWITCHING, Phase.STOPPING))
    assert bounds.min_workers <= state.wanted <= bounds.max_workers
    _check_indexes(state)
    for holder in (state.world, state.proposal):
        if holder is not None:
            assert len(set(holder.members)) == len(holder.members), "a worker has two ranks"
    if state.world is not None and state.world != before.world:
        _check_sealed(state.world, state, before.world, bounds)


def _check_indexes(state: JobState) -> None:
    counted = Counter(worker.life for worker in state.workers.values())
    assert counted == Counter({life: n for life, n in state.census.items() if n}), "the census is wrong"
    staying = [worker for worker in state.workers.values() if worker.life not in (Life.LEAVING, Life.FINISHED)]
    assert state.draining == {worker.worker_id for worker in staying if worker.drain is not None}


def _check_sealed(world: World, state: JobState, old: World | None, bounds: Bounds) -> None:
    size = len(world.members)
    assert size <= bounds.max_workers, f"{size} members are too many"
    tail = any(state.workers[member].life is Life.FINISHED for member in world.members)
    assert size >= bounds.min_workers or tail, f"{size} members are too few"
    if old is not None:
        assert world.membership_epoch > old.membership_epoch, "two worlds of one membership epoch"
        both = [member for member in old.members if member in world.members]
        assert list(world.members[: len(both)]) == both, "a younger worker got a senior's rank"
