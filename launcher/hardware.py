"""What this machine has, found without importing torch (the launcher itself should start in no time)."""

from __future__ import annotations

import os
from glob import glob
from pathlib import Path

RANKS_PER_CORE = 4  # more than that on a CPU only wait for each other


def gpus() -> int:
    """NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    return len(glob("/dev/nvidia[0-9]*"))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def ranks_here() -> int:
    """The most ranks that this machine takes: one for each GPU, or a few for each core."""
    return gpus() or RANKS_PER_CORE * cores()


def memory() -> tuple[int, int]:
    """Bytes, all and free, of the machine or of the container that we are in."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no such container, or "max"
        return total, free
    return min(total, limit), min(free, max(0, limit - used))
