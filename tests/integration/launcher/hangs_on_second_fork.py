"""A module to preload after which the fork server itself hangs in its second fork."""

import os
import signal

_forks = 0


def _before() -> None:
    global _forks
    _forks += 1
    if _forks == 2:
        while True:
            signal.pause()


os.register_at_fork(before=_before)
