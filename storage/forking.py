"""Make locks and clients anew in a forked child."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """Something that holds locks, threads or connections which a child must not inherit."""

    def reset_after_fork(self) -> None:
        """Replace them; runs in the child's only thread."""


_aware: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def reset_in_child(thing: ForkAware) -> None:
    """Have ``thing.reset_after_fork()`` called in every child forked from now on."""
    _aware.add(thing)


def _reset_all() -> None:
    for thing in list(_aware):
        thing.reset_after_fork()


os.register_at_fork(after_in_child=_reset_all)
