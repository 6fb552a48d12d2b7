"""A module to preload that takes the whole process with it."""

import os
import sys

sys.stderr.write("a native library is angry\n")
sys.stderr.flush()
os._exit(3)
