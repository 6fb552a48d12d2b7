"""Signals become commands while a job runs, and mean what they meant before once it has ended."""

from __future__ import annotations

import signal
import threading

import pytest

from elastic_train.trainer.signals import Command, Signals


def test_user_signals_grow_and_shrink() -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGUSR1)
        assert signals.pending() == [Command.GROW, Command.SHRINK, Command.GROW]
        assert signals.pending() == []


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_and_the_second_insists(first: signal.Signals) -> None:
    with Signals() as signals:
        signal.raise_signal(first)
        assert signals.pending() == [Command.STOP]
        signal.raise_signal(signal.SIGINT)
        assert signals.pending() == [Command.STOP_AT_ONCE]


def test_the_handlers_from_before_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    with Signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_in_another_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with Signals() as signals:
            seen.append((signal.getsignal(signal.SIGINT), signals.pending()))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, [])]
