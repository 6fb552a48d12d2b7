"""Worker ids are never reused."""

from pathlib import Path

import pytest

from elastic_train.errors import LaunchError
from tests.integration.launcher.harness import rig

pytestmark = pytest.mark.integration


def test_a_worker_id_is_never_used_twice_and_a_refused_call_launches_nothing(tmp_path: Path) -> None:
    with rig(tmp_path, "return_at_once") as it:
        it.launch("w0")
        it.events.wait_for_exit("w0")
        with pytest.raises(LaunchError, match="w0"):
            it.launch("w1", "w0")
        with pytest.raises(LaunchError):
            it.launch("w2", "w2")
        assert not it.launcher.pids()
    assert {event.worker_id for event in it.events.all} == {"w0"}
