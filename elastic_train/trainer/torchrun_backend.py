"""The entry point ``torchrun.handlers``: ``torchrun --rdzv-backend=elastic_train --rdzv-endpoint=HOST:2379 ...``.

``--rdzv-endpoint`` is an etcd member (or several, with commas), or a whole coordination URL. ``--rdzv-conf`` knows
``join_timeout``, ``last_call_timeout`` and ``lease_ttl``, all in seconds.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import RendezvousHandler, RendezvousParameters

_DEFAULT_PORT = 2379


def get_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Return what makes a handler: the entry point itself."""
    return create_handler


def create_handler(parameters: RendezvousParameters) -> RendezvousHandler:
    """Return a handler for torchrun's parameters.

    Raises:
        RendezvousConnectionError: The coordination service does not answer.
    """
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

    from elastic_train.adapters.coordination import connect
    from elastic_train.adapters.rendezvous.board import Board
    from elastic_train.adapters.rendezvous.torchrun import ElasticRendezvous, NodeLimits
    from elastic_train.errors import CoordinationError

    try:
        coordination = connect(coordination_url(parameters.endpoint))
    except CoordinationError as error:
        raise RendezvousConnectionError(str(error)) from error
    node = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    board = Board(coordination, parameters.run_id, node, parameters.get_as_int("lease_ttl", 10) or 10)
    limits = NodeLimits(
        min_nodes=parameters.min_nodes,
        max_nodes=parameters.max_nodes,
        join_timeout_s=float(parameters.get("join_timeout", 600)),
        last_call_s=float(parameters.get("last_call_timeout", 1)),
    )
    return ElasticRendezvous(board, parameters.run_id, limits, parameters.local_addr)


def coordination_url(endpoint: str) -> str:
    """Return the coordination URL that an endpoint of torchrun's stands for."""
    if "://" in endpoint:
        return endpoint
    members = [member if ":" in member else f"{member}:{_DEFAULT_PORT}" for member in endpoint.split(",")]
    return "etcd://" + ",".join(members)
