"""What was recorded before a SIGKILL is there."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elastic_train.journal import read_journal

pytestmark = pytest.mark.integration

_WRITER = """
import os, signal, sys
from pathlib import Path
from elastic_train.journal import Journal
journal = Journal(Path(sys.argv[1]), source="w0", node="n")
for number in range(1000):
    journal.record("note", number=number)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_every_record_survives_the_sudden_death_of_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "w0.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", _WRITER, str(path)], check=False, env={**os.environ, "PYTHONPATH": "."}
    )
    assert ended.returncode == -signal.SIGKILL
    assert [record["number"] for record in read_journal(path)[1:]] == list(range(1000))
