"""How long N workers take to know their ranks, to re-form after losses, and what etcd is asked; beside torch's c10d."""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import finish, median, parse_arguments
from benchmarks.fleet import Fleet
from benchmarks.peers.c10d_rendezvous import rendezvous_s
from elastic_train.adapters.coordination import connect
from elastic_train.adapters.coordination.embedded import EmbeddedEtcd
from elastic_train.adapters.launcher.external import ExternalLauncher
from elastic_train.controller.loop import Controller
from elastic_train.core.bounds import Bounds
from elastic_train.core.records import Keys
from elastic_train.ports import Coordination

SIZES = (8, 32, 128, 512, 1000)
LOSSES = (1, 10, 40)
_PROCESSES = 4
_PEER_UP_TO = 128
_STEADY_S = 6.0


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(__doc__ or "", repeats=3, argv=argv, extend=_extend)
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {}
    for size in arguments.sizes:
        runs = [_measure(size) for _ in range(arguments.repeats if size <= _PEER_UP_TO else 1)]
        figures[str(size)] = entry = {name: _middle([run[name] for run in runs]) for name in runs[0]}
        if size <= _PEER_UP_TO and not arguments.no_peer:
            entry["c10d_s"] = median(rendezvous_s(size, _PROCESSES) for _ in range(min(2, arguments.repeats)))
            entry["times_faster_than_c10d"] = entry["c10d_s"] / entry["formed_s"]
        print(size, entry, flush=True)
    finish("rendezvous", figures, arguments)


def _extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of workers (%(default)s)")
    parser.add_argument("--no-peer", action="store_true", help="leave torch's rendezvous out")


def _middle(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _middle([value[name] for value in values]) for name in values[0]}
    return median(values)


def _measure(size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, EmbeddedEtcd(Path(folder)) as etcd:
        keys = Keys("bench")
        coordination = connect(etcd.url)
        try:
            with Fleet(etcd.url, "bench", size, _PROCESSES) as fleet, _controller(etcd.url, keys, size):
                return _drill(fleet, coordination, keys, _Server(etcd.url))
        finally:
            coordination.close()


def _drill(fleet: Fleet, coordination: Coordination, keys: Keys, server: _Server) -> dict[str, Any]:
    size = len(fleet.names)
    began_s = time.monotonic()
    fleet.register()
    before, ready_s = server.requests(), time.monotonic()
    fleet.ready()
    formed, known_s = fleet.known(0, size)
    result: dict[str, Any] = {
        "registered_s": ready_s - began_s,
        "formed_s": known_s - ready_s,
        "requests_to_form": server.requests() - before,
    }
    result["bytes_per_worker"] = (
        sum(len(item.key) + len(item.value) for item in coordination.list(keys.workers).items) / size
    )
    world = coordination.get(keys.world)
    assert world is not None
    result["world_bytes_per_worker"] = len(world.value) / size
    quiet = server.requests()
    time.sleep(_STEADY_S)
    result["steady_requests_per_worker_s"] = (server.requests() - quiet) / _STEADY_S / size
    names, result["reformed_s"], result["requests_to_reform"] = list(fleet.names), {}, {}
    for losses in (losses for losses in LOSSES if losses * 4 <= size):
        victims, names = names[-losses:], names[:-losses]
        before, lost_s = server.requests(), time.monotonic()
        fleet.lose(victims)
        formed, known_s = fleet.known(formed, len(names))
        result["reformed_s"][losses] = known_s - lost_s
        result["requests_to_reform"][losses] = server.requests() - before
    return result


class _Server:
    """What etcd counts of itself: every message that a client sent, also on open streams."""

    def __init__(self, url: str) -> None:
        self._metrics = f"http://{url.removeprefix('etcd://')}/metrics"

    def requests(self) -> int:
        with urllib.request.urlopen(self._metrics) as answer:
            lines = answer.read().decode().splitlines()
        return round(
            sum(float(line.split()[-1]) for line in lines if line.startswith("grpc_server_msg_received_total"))
        )


@contextmanager
def _controller(url: str, keys: Keys, size: int) -> Iterator[None]:
    bounds = Bounds(1, size, size, capacity=0, gather_s=60.0, ack_timeout_s=30.0, hang_timeout_s=600.0)
    coordination, launcher = connect(url), ExternalLauncher()
    controller = Controller(
        coordination=coordination, keys=keys, launcher=launcher, journal=_NoJournal(), bounds=bounds, name="bench"
    )
    launcher.start(controller.on_launcher_news)
    thread = threading.Thread(target=controller.run, name="controller")
    thread.start()
    try:
        yield
    finally:
        controller.abandon()
        thread.join()
        launcher.close()
        coordination.close()


class _NoJournal:
    def record(self, kind: str, /, **fields: Any) -> None:
        """Forget it."""


if __name__ == "__main__":
    main()
