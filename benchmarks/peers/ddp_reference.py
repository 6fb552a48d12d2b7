"""Plain DDP with nothing around it: how fast a step can be.

Run under torchrun; rank 0 writes the seconds between its steps as a JSON list to ``PEER_EVENTS`` at the end.
Environment: ``PEER_STEPS`` (how many are measured), ``PEER_WARMUP`` (how many go before, default 20),
``PEER_WORKLOAD`` (module of model and data).
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    """Train and write down how long each step took."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    workload = importlib.import_module(os.environ["PEER_WORKLOAD"])
    model = workload.build_model()
    optimizer = workload.build_optimizer(model)
    ddp_model = DistributedDataParallel(model)
    inputs, targets = workload.build_samples()
    warmup = int(os.environ.get("PEER_WARMUP", "20"))
    steps = int(os.environ["PEER_STEPS"])
    ends = []
    for step in range(warmup + steps + 1):
        part = workload.part_of(step, rank, world_size)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(ddp_model(inputs[part]), targets[part]).backward()
        optimizer.step()
        ends.append(time.monotonic())
    if rank == 0:
        seconds = [end - start for start, end in itertools.pairwise(ends)]
        Path(os.environ["PEER_EVENTS"]).write_text(json.dumps(seconds[warmup:]))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
