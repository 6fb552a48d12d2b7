import os
import signal

import pytest

from elastic_train.adapters.launcher.remains import Remains


class Groups:
    """Process groups, by number, each with the signal that ends it."""

    def __init__(self, alive: dict[int, int]) -> None:
        self.alive = alive
        self.sent: list[tuple[int, int]] = []
        self.now = 0.0

    def killpg(self, group: int, signum: int) -> None:
        if group not in self.alive:
            raise ProcessLookupError
        self.sent.append((group, signum))
        if signum and signum == self.alive[group]:
            del self.alive[group]

    def waitid(self, kind: int, number: int, options: int) -> None:
        raise ChildProcessError

    def left_by_workers(self, monkeypatch: pytest.MonkeyPatch) -> Remains:
        monkeypatch.setattr(os, "killpg", self.killpg)
        monkeypatch.setattr(os, "waitid", self.waitid)
        remains = Remains(clock=lambda: self.now)
        for group in list(self.alive):
            remains.take_over(group)
        return remains


def test_a_group_that_ends_when_asked_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups({7: signal.SIGTERM})
    remains = groups.left_by_workers(monkeypatch)
    remains.sweep()
    assert remains.timeout_s() is None
    assert groups.sent == [(7, signal.SIGTERM)]


def test_a_group_that_does_not_listen_is_killed_after_its_moment_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = Groups({7: signal.SIGKILL})
    remains = groups.left_by_workers(monkeypatch)
    groups.now = 0.9
    remains.sweep()
    assert groups.alive
    groups.now = 1.0
    remains.sweep()
    assert not groups.alive
    assert remains.timeout_s() is not None
    remains.sweep()
    assert remains.timeout_s() is None


def test_a_group_that_cannot_end_is_waited_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups({7: 0})
    remains = groups.left_by_workers(monkeypatch)
    for now in (1.0, 1.5, 2.0):
        groups.now = now
        remains.sweep()
    assert remains.timeout_s() is None
    assert [sent for sent in groups.sent if sent[1] == signal.SIGKILL] == [(7, signal.SIGKILL)]


def test_a_group_that_has_ended_is_never_signalled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = Groups({7: signal.SIGCONT, 8: signal.SIGKILL})
    remains = groups.left_by_workers(monkeypatch)
    remains.sweep()
    groups.alive[7] = signal.SIGKILL  # the number belongs to somebody else now
    groups.now = 5.0
    remains.sweep()
    assert set(groups.alive) == {7}
