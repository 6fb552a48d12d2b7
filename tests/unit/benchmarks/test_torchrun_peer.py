"""The arithmetic on a peer's commits; that torchrun itself runs is seen by the benchmark."""

from benchmarks.peers.torchrun import Commit, Recovery, _reached, _recovery, _resumed

_BEFORE = [
    Commit(time_s=1.0 + step / 10, step=step, rank=rank, world_size=2, pid=10 + rank)
    for step in range(5)
    for rank in range(2)
]
_KILLED_S = 1.45


def test_a_world_has_reached_a_step_when_every_rank_has() -> None:
    assert _reached(_BEFORE, 4, 2)
    assert not _reached(_BEFORE[:-1], 4, 2)
    assert not _reached(_BEFORE, 4, 3)


def test_a_late_commit_of_a_survivor_is_not_a_recovery() -> None:
    late = [*_BEFORE, Commit(time_s=1.46, step=5, rank=0, world_size=2, pid=10)]
    assert not _resumed(late, _KILLED_S)


def test_recovery_is_complete_when_every_rank_of_the_new_world_has_committed() -> None:
    first = Commit(time_s=6.0, step=3, rank=0, world_size=2, pid=20)
    second = Commit(time_s=6.1, step=3, rank=1, world_size=2, pid=21)
    assert not _resumed([*_BEFORE, first], _KILLED_S)
    assert _resumed([*_BEFORE, first, second], _KILLED_S)


def test_a_recovery_counts_what_was_redone_and_replaced() -> None:
    after = [Commit(time_s=6.0 + rank / 10, step=3, rank=rank, world_size=2, pid=20 + rank) for rank in range(2)]
    assert _recovery([*_BEFORE, *after], _KILLED_S) == Recovery(
        recovery_s=6.0 - 1.45, steps_redone=2, workers_replaced=2
    )
