"""The elastic script that PyTorch's tutorials teach, run under torchrun: DDP with a snapshot every few steps.

Every rank appends one JSON line per committed step to a file, so that a benchmark outside sees what happened when
(``time_s`` is CLOCK_MONOTONIC, which all processes of a machine share). Environment: ``PEER_EVENTS`` (that file),
``PEER_SNAPSHOT`` (where the snapshot lies), ``PEER_STEPS`` (how many), ``PEER_SNAPSHOT_EVERY`` (default 20 steps).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.workload import build_model, build_optimizer, build_samples, part_of


def main() -> None:
    """Train from the newest snapshot to the last step."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    snapshot = Path(os.environ["PEER_SNAPSHOT"])
    every = int(os.environ.get("PEER_SNAPSHOT_EVERY", "20"))
    model = build_model()
    optimizer = build_optimizer(model)
    first_step = load(snapshot, model, optimizer)
    ddp_model = DistributedDataParallel(model)
    inputs, targets = build_samples()
    events = os.open(os.environ["PEER_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(first_step, int(os.environ["PEER_STEPS"])):
        part = part_of(step, rank, world_size)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(ddp_model(inputs[part]), targets[part]).backward()
        optimizer.step()
        line = {"time_s": time.monotonic(), "step": step, "rank": rank, "world_size": world_size, "pid": os.getpid()}
        os.write(events, json.dumps(line).encode() + b"\n")  # one write with O_APPEND is one whole line
        if rank == 0 and (step + 1) % every == 0:
            save(snapshot, model, optimizer, step + 1)
    dist.barrier()
    dist.destroy_process_group()


def load(snapshot: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore the snapshot if there is one, and return the step to go on with."""
    if not snapshot.exists():
        return 0
    state = torch.load(snapshot, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save(snapshot: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write the snapshot beside the old one and put it in its place."""
    unfinished = snapshot.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    unfinished.replace(snapshot)


if __name__ == "__main__":
    main()
