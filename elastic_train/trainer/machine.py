"""What this machine holds: how many workers to start where the user does not say."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def machine_workers() -> int:
    """Return one worker per GPU, or without GPUs one per processor that this process may use."""
    return gpus() or processors()


def processors(cgroup: Path = _CGROUP) -> int:
    """Return how many processors this process may use: its affinity, within the quota of its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))


def gpus(driver: Path = _NVIDIA) -> int:
    """Return how many NVIDIA GPUs there are, without loading a framework; `CUDA_VISIBLE_DEVICES` narrows it."""
    try:
        found = sum(1 for _ in driver.iterdir())
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return found if visible is None else min(found, len([device for device in visible.split(",") if device.strip()]))
