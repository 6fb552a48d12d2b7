from __future__ import annotations

import pytest

from elastic_train.controller.inbox import Inbox
from elastic_train.core.events import StopRequested, Tick
from elastic_train.errors import LeaseExpired


def test_events_come_in_their_order_before_any_tick() -> None:
    inbox = Inbox(clock=lambda: 50.0)
    events = [StopRequested(at_s=1.0), StopRequested(at_s=2.0)]
    for event in events:
        inbox.put(event)
    assert [inbox.next(until_s=10.0), inbox.next(until_s=10.0)] == events
    assert inbox.next(until_s=10.0) == Tick(at_s=50.0)


def test_a_tick_never_comes_early() -> None:
    assert Inbox(clock=lambda: 9.9999).next(until_s=10.0) == Tick(at_s=10.0)


def test_a_failure_is_raised_when_its_turn_comes() -> None:
    inbox = Inbox(clock=lambda: 0.0)
    inbox.put(Tick(at_s=0.0))
    inbox.fail(LeaseExpired("gone"))
    assert inbox.next(None) == Tick(at_s=0.0)
    with pytest.raises(LeaseExpired):
        inbox.next(None)


def test_a_cleared_inbox_is_empty() -> None:
    inbox = Inbox(clock=lambda: 5.0)
    inbox.put(StopRequested(at_s=1.0))
    inbox.fail(LeaseExpired("gone"))
    inbox.clear()
    assert inbox.next(until_s=5.0) == Tick(at_s=5.0)
