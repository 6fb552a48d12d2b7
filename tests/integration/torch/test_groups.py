"""Groups of real processes: formed, aborted, re-formed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from elastic_train.adapters.framework.torch.group import TorchGroup
from elastic_train.errors import GroupBroken
from tests.integration.torch.harness import Worker, workers

pytestmark = pytest.mark.integration

BIG = 1 << 22  # elements: an all-reduce of these takes longer than a signal needs


def _gather(worker: Worker) -> Any:
    group = worker.form(range(worker.hear()))
    payloads = [b"", b"x" * worker.index, bytes([worker.index]) * 5000 * worker.index]
    gathered = [group.all_gather_bytes(payload) for payload in payloads]
    group.close()
    return gathered


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_gather_returns_every_payload_whatever_its_size(count: int) -> None:
    with workers(count, _gather) as running:
        for index in range(count):
            running.tell(index, count)
        expected = [
            [b""] * count,
            [b"x" * index for index in range(count)],
            [bytes([index]) * 5000 * index for index in range(count)],
        ]
        assert running.results() == [expected] * count


def _sum(worker: Worker) -> Any:
    group = worker.form(range(4))
    sums = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        for size in (1, 3, 4097, 300_001):
            tensor = torch.arange(size).remainder(7).to(dtype) * (worker.index + 1)
            group.all_reduce(tensor)
            expected = torch.arange(size).remainder(7).to(dtype) * 10
            sums[f"{dtype} {size}"] = bool(torch.equal(tensor, expected))
    started = torch.full((100_000,), float(worker.index))
    group.start_all_reduce(started)
    group.wait()
    sums["started"] = bool((started == 6).all())
    group.close()
    return sums


def test_all_reduce_sums_tensors_of_any_type_and_size() -> None:
    with workers(4, _sum) as running:
        for sums in running.results():
            assert all(sums.values()), sums


def _reduce_until_broken(worker: Worker) -> Any:
    members = worker.hear()
    group = worker.form(members)
    tensor = torch.ones(BIG)
    worker.say("formed")
    try:
        while True:
            group.all_reduce(tensor)
    except GroupBroken:
        broken_at = time.monotonic()
    group.close()
    return broken_at


def test_the_death_of_one_reaches_every_survivor_at_once() -> None:
    with workers(5, _reduce_until_broken) as running:
        for index in range(5):
            running.tell(index, list(range(5)))
        for index in range(5):
            assert running.heard(index) == "formed"
        killed_at = time.monotonic()
        running.signal(2, signal.SIGKILL)
        delays = [broken_at - killed_at for broken_at in running.results([0, 1, 3, 4])]
        assert max(delays) < 1.0, delays


def _abort_from_a_thread(worker: Worker) -> Any:
    group = worker.form(range(4))
    if worker.index == 3:
        worker.say("formed")
        worker.hear()
        return None
    aborted_at: list[float] = []

    def abort() -> None:
        worker.hear()
        aborted_at.append(time.monotonic())
        group.abort()

    thread = threading.Thread(target=abort)
    thread.start()
    worker.say("formed")
    with pytest.raises(GroupBroken):
        group.all_reduce(torch.ones(BIG))
    broken_at = time.monotonic()
    thread.join()
    group.close()
    return broken_at - aborted_at[0]


def test_an_abort_wakes_a_member_that_waits_for_a_stopped_peer() -> None:
    with workers(4, _abort_from_a_thread) as running:
        for index in range(4):
            assert running.heard(index) == "formed"
        running.signal(3, signal.SIGSTOP)
        for index in range(3):
            running.tell(index, "abort")
        # A member may also be woken by another's abort, before its own: the delay is then below zero.
        assert max(running.results([0, 1, 2])) < 0.5


def _form_without_the_last(worker: Worker) -> Any:
    if worker.index == 2:
        worker.hear()
        return None
    called = threading.Event()

    def abort() -> None:
        worker.hear()
        called.set()
        worker.framework.abort_formation()

    thread = threading.Thread(target=abort)
    thread.start()
    worker.say("forming")
    with pytest.raises(GroupBroken, match="aborted"):
        worker.form(range(3))
    thread.join()
    assert called.is_set()
    return _leftovers()


@pytest.mark.parametrize("process_group", [False, True])
def test_a_formation_that_waits_for_an_absent_member_can_be_aborted(process_group: bool) -> None:
    with workers(3, _form_without_the_last, process_group=process_group) as running:
        for index in range(2):
            assert running.heard(index) == "forming"
            running.tell(index, "abort")
        assert running.results([0, 1]) == [[], []]


def _form_with_a_deadline(worker: Worker) -> Any:
    with pytest.raises(GroupBroken):
        worker.form([0, 1], timeout_s=0.2)
    return _leftovers()


def test_a_formation_gives_up_at_its_deadline() -> None:
    with workers(1, _form_with_a_deadline) as running:
        assert running.results() == [[]]


def _die_while_forming(worker: Worker) -> Any:
    """The last member publishes where it listens, and dies before it connects."""
    formation = worker.formation(range(3), 1)
    if worker.index == 2:
        get = formation.exchange.get

        def die(keys: Any, timeout_s: float) -> list[bytes]:
            get(keys, timeout_s)
            os._exit(0)

        formation.exchange.get = die  # type: ignore[method-assign]  # it is about to die
    else:
        _when_told(worker, worker.framework.abort_formation)
    worker.say("forming")
    with pytest.raises(GroupBroken):
        worker.framework.form(formation)
    return _leftovers()


def test_a_member_that_dies_while_forming_holds_nobody_once_aborted() -> None:
    with workers(3, _die_while_forming) as running:
        for index in range(3):
            assert running.heard(index) == "forming"
        for index in range(2):
            running.tell(index, "abort")
        assert running.results([0, 1]) == [[], []]


def _reform(worker: Worker) -> Any:
    """Worlds of changing sizes, each left by an abort in the middle of an all-reduce."""
    count, cycles = 4, 200
    early = 0, 0
    for cycle in range(cycles):
        members = [(first + cycle) % count for first in range(2 + cycle % 3)]
        if worker.index not in members:
            continue
        group = worker.form(members, cycle)
        group.all_gather_bytes(b"together")
        if members[cycle % len(members)] == worker.index:
            group.abort()
        else:
            with pytest.raises(GroupBroken):
                _reduce_for_ever(group)
        group.close()
        if cycle < 20:
            early = max(early, _level())
    return early, _settled(early)


def _settled(level: tuple[int, int]) -> tuple[int, int]:
    """Return the level, once what has done its work had a moment to be gone."""
    deadline = time.monotonic() + 5
    while (late := _level()) > level and time.monotonic() < deadline:
        time.sleep(0.01)
    return late


def _level() -> tuple[int, int]:
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def _reduce_for_ever(group: TorchGroup) -> None:
    while True:
        group.all_reduce(torch.ones(100_000))


def test_two_hundred_re_formations_leave_neither_descriptors_nor_threads() -> None:
    with workers(4, _reform) as running:
        for early, late in running.results():
            assert late <= early


def _close_with_work_under_way(worker: Worker) -> Any:
    group = worker.form(range(2))
    worker.say("formed")
    if worker.index == 1:
        worker.hear()
        return None
    group.start_all_reduce(torch.ones(BIG))
    started_at = time.monotonic()
    group.close()
    return time.monotonic() - started_at


def test_closing_does_not_wait_for_a_collective_that_nobody_waits_for() -> None:
    with workers(2, _close_with_work_under_way) as running:
        assert running.heard(0) == "formed"
        assert running.heard(0) < 5.0


def _use_torch_distributed(worker: Worker) -> Any:
    before = _level()
    worlds = []
    for cycle, members in enumerate(([0, 1, 2], [0, 1], [0], [2, 1, 0])):
        if worker.index not in members:
            continue
        group = worker.form(members, cycle)
        tensor = torch.full((1000,), float(worker.index))
        dist.all_reduce(tensor)
        worlds.append((dist.get_rank(), dist.get_world_size(), float(tensor[0])))
        group.close()
        assert not dist.is_initialized()
    return worlds, before, _settled(before)


def test_user_code_finds_torch_distributed_initialised_in_every_world() -> None:
    with workers(3, _use_torch_distributed, process_group=True) as running:
        first, second, third = running.results()
        assert first[0] == [(0, 3, 3.0), (0, 2, 1.0), (0, 1, 0.0), (2, 3, 3.0)]
        assert second[0] == [(1, 3, 3.0), (1, 2, 1.0), (1, 3, 3.0)]
        assert third[0] == [(2, 3, 3.0), (0, 3, 3.0)]
        for _, before, after in (first, second, third):
            assert after <= before


def _user_collective_meets_a_stopped_peer(worker: Worker) -> Any:
    group = worker.form(range(3))
    if worker.index == 2:
        worker.say("formed")
        worker.hear()
        return None
    _when_told(worker, group.abort)
    worker.say("formed")
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(1000))
    assert group.broken
    group.close()
    return _leftovers()


def test_an_abort_ends_a_collective_of_user_code_too() -> None:
    with workers(3, _user_collective_meets_a_stopped_peer, process_group=True) as running:
        for index in range(3):
            assert running.heard(index) == "formed"
        running.signal(2, signal.SIGSTOP)
        for index in range(2):
            running.tell(index, "abort")
        assert running.results([0, 1]) == [[], []]


def _misuse_own_collective(worker: Worker) -> Any:
    group = worker.form(range(2))
    with pytest.raises(ValueError, match=r"dtype|shape|size|tensor"):
        dist.all_gather([torch.ones(2)] * 2, torch.ones(2, dtype=torch.int64))
    assert not group.broken
    total = torch.ones(1)
    group.all_reduce(total)
    group.close()
    return float(total)


def test_a_mistake_in_user_code_stays_what_it_is_and_breaks_nothing() -> None:
    with workers(2, _misuse_own_collective, process_group=True) as running:
        assert running.results() == [2.0, 2.0]


def _fork_a_child(worker: Worker) -> Any:
    in_torch = worker.hear()
    group = worker.form(range(2))
    if worker.index == 1:
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        worker.say(child)
        worker.hear()
        return None
    worker.say("formed")
    wait = partial(dist.all_reduce, torch.ones(1000)) if in_torch else partial(group.all_gather_bytes, b"")
    with pytest.raises(RuntimeError if in_torch else GroupBroken):
        wait()
    return time.monotonic()


@pytest.mark.parametrize("in_torch", [False, True])
def test_a_dead_worker_is_noticed_although_its_data_loader_processes_live(in_torch: bool) -> None:
    with workers(2, _fork_a_child, process_group=in_torch) as running:
        for index in range(2):
            running.tell(index, in_torch)
        child = running.heard(1)
        try:
            assert running.heard(0) == "formed"
            killed_at = time.monotonic()
            running.signal(1, signal.SIGKILL)
            assert running.heard(0) - killed_at < 1.0
        finally:
            os.kill(child, signal.SIGKILL)


def _when_told(worker: Worker, act: Callable[[], None]) -> None:
    def wait() -> None:
        worker.hear()
        act()

    threading.Thread(target=wait, daemon=True).start()


def _leftovers() -> list[str]:
    """Return the sockets and threads of a group that are still there, once they had a moment to go."""
    deadline = time.monotonic() + 5
    while True:
        names = [thread.name for thread in threading.enumerate() if thread.name in ("group-breaker", "group-deadline")]
        names += [comm for comm in _thread_names() if "gloo" in comm]
        if not names or time.monotonic() > deadline:
            return names
        time.sleep(0.01)


def _thread_names() -> list[str]:
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            continue
    return names
