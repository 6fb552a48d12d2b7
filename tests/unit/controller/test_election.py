from __future__ import annotations

import threading

import pytest

from elastic_train.adapters.coordination.memory import MemoryCoordination, MemoryStore
from elastic_train.controller.election import Candidate, Leadership
from elastic_train.core.records import Keys
from elastic_train.errors import CoordinationUnavailable, GuardFailed, LeaseExpired
from elastic_train.ports import Put

KEYS = Keys("job")

PATIENCE_S = 20.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Poll:
    """Candidates for one job, on one clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.coordination = MemoryCoordination(self.store)
        self.lost: list[LeaseExpired] = []

    def candidate(self, name: str = "a") -> Candidate:
        return Candidate(self.coordination, KEYS, name, lease_ttl_s=10.0, clock=self.clock)

    def leader(self, name: str = "a") -> Leadership:
        leadership = self.candidate(name).try_once(self.lost.append)
        assert leadership is not None
        return leadership


def test_one_of_two_candidates_leads() -> None:
    poll = Poll()
    first = poll.leader()
    assert poll.candidate("b").try_once(poll.lost.append) is None
    first.resign()
    poll.leader("b").resign()


def test_a_term_is_named_by_the_revision_that_created_its_key() -> None:
    poll = Poll()
    first = poll.leader()
    poll.coordination.commit([Put(KEYS.world, b"1")], [first.guard])
    first.resign()
    second = poll.leader("b")
    with pytest.raises(GuardFailed):
        poll.coordination.commit([Put(KEYS.world, b"2")], [first.guard])
    poll.coordination.commit([Put(KEYS.world, b"3")], [second.guard])
    second.resign()


def test_a_term_ends_with_its_lease_by_the_leaders_own_clock() -> None:
    poll = Poll()
    leadership = poll.leader()
    leadership.check()
    poll.clock.now_s += 10.0
    with pytest.raises(LeaseExpired):
        leadership.check()
    leadership.resign()


def test_a_ballot_whose_answer_was_lost_is_found_again() -> None:
    poll = Poll()
    answers: list[str] = []

    def lose_the_first_commit(request: str) -> None:
        if request == "commit" and not answers:
            answers.append(request)
            raise CoordinationUnavailable("the answer was lost")

    poll.store.after = lose_the_first_commit
    leadership = poll.leader()
    assert answers
    poll.coordination.commit([Put(KEYS.world, b"1")], [leadership.guard])
    leadership.resign()


def test_a_ballot_that_never_arrived_is_an_error_and_leaves_no_lease() -> None:
    poll = Poll()

    def refuse_commits(request: str) -> None:
        if request == "commit":
            raise CoordinationUnavailable("no answer")

    poll.store.before = refuse_commits
    with pytest.raises(CoordinationUnavailable):
        poll.candidate().try_once(poll.lost.append)
    assert poll.store.next_lease_end() == float("inf")


def test_a_standby_leads_as_soon_as_the_leader_is_gone() -> None:
    poll = Poll()
    first, standby = poll.leader(), poll.candidate("b")
    led: list[Leadership | None] = []
    thread = threading.Thread(target=lambda: led.append(standby.campaign(poll.lost.append)))
    thread.start()
    first.resign()
    thread.join(PATIENCE_S)
    (leadership,) = led
    assert leadership is not None
    leadership.resign()


def test_a_withdrawn_candidate_never_leads() -> None:
    poll = Poll()
    first, standby = poll.leader(), poll.candidate("b")
    led: list[Leadership | None] = []
    thread = threading.Thread(target=lambda: led.append(standby.campaign(poll.lost.append)))
    thread.start()
    standby.withdraw()
    thread.join(PATIENCE_S)
    first.resign()
    assert led == [None]
    assert standby.campaign(poll.lost.append) is None


def test_a_leader_whose_lease_is_gone_hears_of_it() -> None:
    lost = threading.Event()
    store = MemoryStore()
    coordination = MemoryCoordination(store)
    candidate = Candidate(coordination, KEYS, "a", lease_ttl_s=0.001, clock=store.clock)  # renewed every third second
    leadership = candidate.try_once(lambda _: lost.set())
    assert leadership is not None
    item = coordination.get(KEYS.leader)
    assert item is not None
    with store.changed:
        store.end_lease(item.lease_id)
    assert lost.wait(PATIENCE_S)
    leadership.resign()
