"""A training script as torchrun's users have them: knows nothing of elastic_train."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

STEPS = 12
LOST_AT = 4


def main() -> None:
    out = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank, restarts = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    progress = out / "progress"
    for step in range(int(progress.read_text()) if progress.exists() else 0, STEPS):
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == dist.get_world_size()
        if step == LOST_AT and rank == 1 and not (out / "lost").exists():
            (out / "lost").touch()
            os._exit(9)
        if rank == 0:
            progress.write_text(str(step + 1))
    (out / f"done-{rank}").write_text(f"{dist.get_world_size()} {restarts}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
