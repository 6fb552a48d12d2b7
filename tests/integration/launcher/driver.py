"""A driver to be killed: launches workers, says who they are, and waits for its end.

usage: python -m tests.integration.launcher.driver OUT N
"""

import json
import signal
import sys
from pathlib import Path

from elastic_train.adapters.launcher.local_process import LocalProcessLauncher
from elastic_train.core.records import WorkerId

if __name__ == "__main__":
    out, workers = Path(sys.argv[1]), int(sys.argv[2])
    launcher = LocalProcessLauncher(
        "tests.integration.launcher.entries:leave_a_grandchild", {"out": str(out)}, log_dir=out / "logs"
    )
    launcher.start(lambda _: None)
    launcher.launch([WorkerId(f"w{number}") for number in range(workers)])
    while len(list(out.glob("w*.json"))) < workers:
        signal.sigtimedwait([], 0.01)
    pids = [launcher.zygote_pid(), *launcher.pids().values()]
    pids += [json.loads(path.read_text()) for path in out.glob("w*.json")]
    sys.stdout.write(json.dumps(pids) + "\n")
    sys.stdout.flush()
    signal.pause()
