"""A module to preload after which every forked child hangs, as one does that inherits a held lock."""

import os
import signal

os.register_at_fork(after_in_child=signal.pause)
