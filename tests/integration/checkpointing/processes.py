"""Processes that save, for tests that kill them or let them form a group."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from typing import Any

PATIENCE_S = 90.0
# Forked, because a process that has to import torch first needs seconds.
_FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def started(work: Callable[..., None], *arguments: Any) -> Iterator[ForkProcess]:
    """Start a process, and see that it is gone at the end."""
    process = _FORK.Process(target=work, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PATIENCE_S)
        process.close()


def run_group(work: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Run `work(rank, size, *arguments)` in `size` processes at once and return what each returned.

    Raises:
        AssertionError: One of them failed; with its traceback.
    """
    pipes = [_FORK.Pipe(duplex=False) for _ in range(size)]
    with contextlib.ExitStack() as stack:
        for rank in range(size):
            stack.enter_context(started(_answer, pipes[rank][1], work, rank, size, *arguments))
        answers = []
        for rank, (receiving, sending) in enumerate(pipes):
            sending.close()
            assert receiving.poll(PATIENCE_S), f"process {rank} does not answer"
            good, answer = receiving.recv()
            assert good, answer
            answers.append(answer)
        return answers


def _answer(pipe: Any, work: Callable[..., Any], *arguments: Any) -> None:
    try:
        pipe.send((True, work(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise
    finally:
        pipe.close()
