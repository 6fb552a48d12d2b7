"""Real processes that are killed while they save, to a local disk."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from checkpointing import Checkpointer, KeepLast
from storage import open_store
from tests.integration.checkpointing.processes import PATIENCE_S, started
from tests.unit.checkpointing.harness import FAST, load, same, state_of

pytestmark = pytest.mark.integration

SIZE = 200_000


def save_for_ever(root: str, fence: int, first_step: int, started_file: str) -> None:
    with (
        open_store(f"file://{root}") as store,
        Checkpointer(store, job="job", retention=KeepLast(2), settings=FAST) as checkpointer,
    ):
        for step in itertools.count(first_step):
            checkpointer.save(step, state_of(step, size=SIZE), fence=fence)
            checkpointer.wait()
            with Path(started_file).open("a") as file:
                file.write(f"{step}\n")


@pytest.mark.parametrize("seed", range(6))
def test_a_process_that_is_killed_while_saving_loses_no_committed_checkpoint(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    root, log = tmp_path / "store", tmp_path / "committed"
    log.touch()
    for fence in (1, 2):
        known = len(log.read_text().splitlines())
        with started(save_for_ever, str(root), fence, known, str(log)) as process:
            wait_for_lines(log, known + 2)
            process.join(random_.uniform(0, 0.05))  # anywhere within a save: a save here takes some 10 ms
            process.kill()
            process.join(PATIENCE_S)
        committed = [int(line) for line in log.read_text().splitlines()]
        with open_store(f"file://{root}") as store:
            found = load(store)
        assert found is not None
        assert found[0] >= committed[-1], "what was reported as committed is there"
        assert same(found[1], state_of(found[0], size=SIZE))


def wait_for_lines(path: Path, count: int) -> None:
    while len(path.read_text().splitlines()) < count:
        pass  # the test's own timeout ends it
