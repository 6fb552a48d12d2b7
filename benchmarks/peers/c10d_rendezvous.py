"""torch's own rendezvous (`DynamicRendezvousHandler`, c10d): N agents in few processes, until all have a rank."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from typing import Any


def rendezvous_s(count: int, processes: int) -> float:
    """Return the seconds from the start of all agents until the last has its rank."""
    from torch._C._distributed_c10d import TCPStore

    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("spawn")
    connections, children = [], []
    try:
        for first in range(processes):
            ours, theirs = context.Pipe()
            share = len(range(first, count, processes))
            child = context.Process(target=_serve, args=(theirs, server.port, share, count), daemon=True)
            child.start()
            connections.append(ours)
            children.append(child)
        for connection in connections:
            connection.recv()
        began_s = time.monotonic()
        for connection in connections:
            connection.send(None)
        return max(float(connection.recv()) for connection in connections) - began_s
    finally:
        for child in children:
            child.kill()
            child.join()
        del server


def _serve(connection: Connection, port: int, share: int, count: int) -> None:
    handlers = [_handler(port, count) for _ in range(share)]
    done: list[float] = []

    def join(handler: Any) -> None:
        handler.next_rendezvous()
        done.append(time.monotonic())

    connection.send(None)
    connection.recv()
    threads = [threading.Thread(target=join, args=(handler,)) for handler in handlers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    connection.send(max(done))
    connection.recv()  # alive until the end: the others may still be reading


def _handler(port: int, count: int) -> Any:
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    endpoint = f"127.0.0.1:{port}"
    parameters = RendezvousParameters("c10d", endpoint, "bench", count, count, is_host="0", join_timeout="300")
    backend, store = create_backend(parameters)
    return create_handler(store, backend, parameters)
