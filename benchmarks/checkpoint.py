"""Saving and loading a state: the stall, the time until it is safe, CPU, memory, and what training notices of it.

Ours beside torch.save, safetensors, DCP `save` and `async_save`, and the floors: a copy into warm memory, a direct
write, a plain read. All run in turn, round by round, so that a noisy moment hits all alike. On the local disk and, with
`--s3`, on `rclone serve s3` over loopback; with 1, 2 and 4 writers.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

from benchmarks.checkpoint_cases import (
    Case,
    Memory,
    Ours,
    Peers,
    Saved,
    Training,
    forget,
    make_state,
    nbytes_of,
    one_process_group,
    raw_read,
    raw_write,
    timed,
    touch,
)
from benchmarks.checkpoint_writers import measure_readers, measure_writers
from benchmarks.common import finish, median, parse_arguments, percentile
from storage.testing import RcloneServer


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments(__doc__ or "", repeats=5, extend=_add_arguments)
    scratch = Path(tempfile.mkdtemp(prefix="checkpoint-bench-", dir=arguments.dir))
    state = make_state(arguments.mib)
    figures: dict[str, Any] = {"mib": nbytes_of(state) / 2**20}
    try:
        with one_process_group():
            figures["saves"] = _measure_saves(scratch, state, arguments.repeats)
            figures["loads"] = _measure_loads(scratch, state, arguments.repeats)
            figures["steps"] = _measure_steps(scratch, state, arguments.repeats)
            figures["tiny"] = _measure_tiny(scratch, arguments.repeats)
            if arguments.s3:
                figures["s3"] = _measure_s3(state, arguments.repeats)
        if arguments.writers:
            figures["writers"] = {
                str(count): measure_writers(scratch / f"w{count}", arguments.mib, count, arguments.repeats)
                for count in arguments.writers
            }
            figures["readers"] = {
                str(count): measure_readers(scratch / f"r{count}", arguments.mib, count, arguments.repeats)
                for count in arguments.writers
            }
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    figures["ratios"] = _ratios(figures)
    _print(figures)
    finish("checkpoint", figures, arguments)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mib", type=int, default=1024, help="size of the state in MiB (%(default)s)")
    parser.add_argument("--dir", type=Path, default=None, help="where the files go; default: the temporary place")
    parser.add_argument("--s3", action="store_true", help="also to an S3 server on loopback")
    parser.add_argument("--writers", type=int, nargs="*", default=[1, 2, 4], help="numbers of writers (%(default)s)")


def _measure_saves(scratch: Path, state: dict[str, Any], repeats: int) -> dict[str, Any]:
    memory = Memory(state)
    ours, peers = Ours(f"file://{scratch}/ours", state), Peers(scratch / "peers", state)
    # A state of its own, of which little changes from save to save.
    calm = make_state(nbytes_of(state) >> 20, seed=1)
    incremental = Ours(f"file://{scratch}/incremental", calm)
    incremental.save()
    incremental.save()
    cases = [
        Case("floor: memcpy, 1 thread", lambda: timed(lambda: memory.copy(1))),
        Case("floor: memcpy, 2 threads", lambda: timed(lambda: memory.copy(2))),
        Case("floor: direct write", lambda: timed(lambda: raw_write(scratch / "raw", memory.view))),
        Case("ours", ours.save, lambda: touch(state, 1.0)),
        Case("ours, 1 % changed", incremental.save, lambda: touch(calm, 0.01)),
        Case("torch.save", peers.torch_save),
        Case("safetensors", peers.safetensors_save),
        Case("dcp save", peers.dcp_save),
        Case("dcp async_save", peers.dcp_async_save),
    ]
    try:
        found = _measure(cases, repeats, nbytes_of(state))
        uploaded = incremental.last.stats.uploaded_nbytes
        found["ours, 1 % changed"]["uploaded_fraction"] = uploaded / nbytes_of(calm)
    finally:
        ours.close()
        incremental.close()
    return found


def _measure_loads(scratch: Path, state: dict[str, Any], repeats: int) -> dict[str, Any]:
    memory = Memory(state)
    ours, peers = Ours(f"file://{scratch}/ours", state), Peers(scratch / "peers", state)
    raw_write(scratch / "raw", memory.view)
    loads: dict[str, tuple[Callable[[], object], Path]] = {
        "floor: read": (lambda: raw_read(scratch / "raw", memory.view), scratch / "raw"),
        "ours": (ours.load, scratch / "ours"),
        "torch.load": (peers.torch_load, peers.folder),
        "safetensors": (peers.safetensors_load, peers.folder),
        "dcp load": (peers.dcp_load, peers.folder / "dcp"),
    }
    cases = []
    for name, (load, folder) in loads.items():
        cases.append(Case(f"{name}, warm", lambda load=load: timed(load)))  # type: ignore[misc]  # a default binds it
        cases.append(Case(f"{name}, cold", lambda load=load: timed(load), lambda folder=folder: forget(folder)))  # type: ignore[misc]  # likewise
    try:
        return _measure(cases, repeats, nbytes_of(state))
    finally:
        ours.close()


def _measure_s3(state: dict[str, Any], repeats: int) -> dict[str, Any]:
    from benchmarks.checkpoint_s3 import DcpOnS3, bare_put

    with RcloneServer() as server:
        server.make_bucket("bench")
        ours = Ours("s3://bench/ours", state, **server.options)
        peer = DcpOnS3("bench/dcp", state, server)
        memory = Memory(state)
        cases = [
            Case("floor: bare put", lambda: timed(lambda: bare_put(server, "bench", "raw", memory.view))),
            Case("ours", ours.save, lambda: touch(state, 1.0)),
            Case("dcp save, fsspec", lambda: timed(peer.save)),
        ]
        try:
            return _measure(cases, repeats, nbytes_of(state))
        finally:
            ours.close()


def _measure(cases: list[Case], repeats: int, nbytes: int) -> dict[str, Any]:
    """Run all cases in turn and return their figures; a first round, not counted, warms everything up."""
    samples: dict[str, list[tuple[Saved, float, float]]] = {case.name: [] for case in cases}
    for turn in range(repeats + 1):
        for case in cases:
            case.prepare()
            sample = _run(case)
            if turn:
                samples[case.name].append(sample)
    return {
        name: {
            "stall_s": median(saved.stall_s for saved, _, _ in found),
            "durable_s": median(saved.durable_s for saved, _, _ in found),
            "gib_per_s": nbytes / 2**30 / median(saved.durable_s for saved, _, _ in found),
            "cpu_s_per_gib": median(cpu for _, cpu, _ in found) * 2**30 / nbytes,
            "extra_memory": max(memory for _, _, memory in found) / nbytes,
        }
        for name, found in samples.items()
    }


def _run(case: Case) -> tuple[Saved, float, float]:
    with _PeakMemory() as peak:
        before = resource.getrusage(resource.RUSAGE_SELF)
        saved = case.run()
        after = resource.getrusage(resource.RUSAGE_SELF)
    return saved, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak.extra_nbytes


class _PeakMemory:
    """Watch how much memory this process takes at most, above what it had."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._before = self._peak = 0

    @property
    def extra_nbytes(self) -> int:
        return self._peak - self._before

    def __enter__(self) -> Self:
        self._before = self._peak = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self._peak = max(self._peak, self._process.memory_info().rss)


def _measure_steps(scratch: Path, state: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Return how much slower steps are while a save is written, in the mean, the median and the 99th percentile."""
    training = Training()
    training.steps_for(1.0)
    ours, peers = Ours(f"file://{scratch}/ours", state), Peers(scratch / "peers", state)
    ways: dict[str, Callable[[], Callable[[], bool]]] = {
        "ours": ours.begin_save,
        "dcp async_save": peers.begin_dcp_async_save,
    }
    samples: dict[str, list[float]] = {name: [] for name in ("alone", *ways)}
    try:
        for turn in range(2 * repeats + 1):
            for name, begin in ways.items():
                touch(state, 1.0)
                alone = training.steps_for(0.3)
                during = training.steps_until(begin())
                if turn:
                    samples["alone"] += alone
                    samples[name] += during
                ours.checkpointer.wait()
    finally:
        ours.close()
    alone = samples["alone"]
    return {
        name: {
            "steps": len(found),
            "mean_slowdown": sum(found) / len(found) / (sum(alone) / len(alone)),
            "p50_slowdown": median(found) / median(alone),
            "p99_slowdown": percentile(found, 99) / percentile(alone, 99),
        }
        for name, found in samples.items()
        if name != "alone"
    }


def _measure_tiny(scratch: Path, repeats: int) -> dict[str, Any]:
    state = make_state(5, tensors=5000)
    ours, peers = Ours(f"file://{scratch}/tiny", state), Peers(scratch / "tiny-peers", state)
    cases = [
        Case("ours", ours.save, lambda: touch(state, 1.0)),
        Case("ours, load", lambda: timed(ours.load)),
        Case("torch.save", peers.torch_save),
        Case("dcp save", peers.dcp_save),
    ]
    try:
        return _measure(cases, repeats, nbytes_of(state))
    finally:
        ours.close()


def _ratios(figures: dict[str, Any]) -> dict[str, float]:
    """Return the figures that the targets are stated in."""
    saves, loads = figures["saves"], figures["loads"]
    ours, small = saves["ours"], saves["ours, 1 % changed"]
    copy_s = min(saves[f"floor: memcpy, {n}"]["stall_s"] for n in ("1 thread", "2 threads"))
    fastest_peer_cpu = min(saves[name]["cpu_s_per_gib"] for name in ("torch.save", "safetensors", "dcp save"))
    ratios = {
        "stall / memcpy": ours["stall_s"] / copy_s,
        "stall / dcp async stall": ours["stall_s"] / saves["dcp async_save"]["stall_s"],
        "extra memory / state": ours["extra_memory"],
        "cpu / cheapest peer": ours["cpu_s_per_gib"] / fastest_peer_cpu,
        "write floor / durable": saves["floor: direct write"]["durable_s"] / ours["durable_s"],
        "read floor / load, warm": loads["floor: read, warm"]["durable_s"] / loads["ours, warm"]["durable_s"],
        "read floor / load, cold": loads["floor: read, cold"]["durable_s"] / loads["ours, cold"]["durable_s"],
        "1 % changed: bytes": small["uploaded_fraction"],
        "1 % changed: time": small["durable_s"] / ours["durable_s"],
        "step slowdown, mean": figures["steps"]["ours"]["mean_slowdown"],
    }
    for kind in ("writers", "readers"):
        for count, found in figures.get(kind, {}).items():
            ratios[f"{kind} {count}: floor / ours"] = found["floor_s"] / found["ours_s"]
    return ratios


def _print(figures: dict[str, Any]) -> None:
    for part in ("saves", "loads", "tiny", "s3"):
        for name, found in figures.get(part, {}).items():
            print(
                f"{part:6} {name:26} stall {found['stall_s']:7.3f} s  done {found['durable_s']:7.3f} s  "
                f"{found['gib_per_s']:6.2f} GiB/s  {found['cpu_s_per_gib']:6.2f} CPU-s/GiB  "
                f"memory +{found['extra_memory']:.2f}"
            )
    for part in ("steps", "writers", "readers"):
        for name, found in figures.get(part, {}).items():
            print(f"{part:8} {name:20} " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    for name, value in figures["ratios"].items():
        print(f"{name:28} {value:.3f}")


if __name__ == "__main__":
    main()
