"""What this machine has, found without importing torch (the launcher itself should start in no time)."""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from glob import glob
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from parallel.errors import InputError

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu"]  # what a run asks for: GPUs if there are any, or the CPU whatever there is
WSL = Path("/usr/lib/wsl/lib/libcuda.so.1")  # Windows shows its GPU to Linux without a device file
RANKS_PER_CORE = 4  # more than that on a CPU only wait for each other


def gpus(wanted: Device = "auto") -> int:
    """NVIDIA GPUs that this process may use; none for who wants the CPU."""
    if wanted == "cpu":
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # the driver reads it up to the first that cannot be one
        names = (name.strip() for name in visible.split(","))
        return len(list(takewhile(lambda name: name not in ("", "-1"), names)))
    return len(glob("/dev/nvidia[0-9]*")) or int(WSL.exists())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def ranks_here(wanted: Device = "auto") -> int:
    """The most ranks that this machine takes: one for each GPU, or a few for each core."""
    return gpus(wanted) or RANKS_PER_CORE * cores()


def driver() -> str:
    """The version of NVIDIA's driver."""
    try:
        found = re.search(r"Module.*?\s(\d+[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def refuse_unusable_gpus() -> None:
    """GPUs are used where they are, or not on purpose: a run on the CPU takes a thousand times as long.

    Raises:
        InputError: this machine has GPUs, and torch cannot use them.
    """
    seen = gpus()
    if not seen:
        return
    import torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if usable:
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
    said = f": {' '.join(str(told[0].message).split())}" if told else ""
    raise InputError(
        "torch can use the GPUs of a machine that has some",
        f"{seen} NVIDIA GPUs, driver {driver()}; torch {torch.__version__}, {built}, cannot use them{said}",
        "install a build of torch that fits the driver (make setup TORCH=cu126, longreel doctor), or take the CPU on "
        "purpose: device=cpu in a run, CUDA_VISIBLE_DEVICES= before any command",
    )


def device_here(wanted: Device = "auto") -> torch.device:
    """The device of a command that runs in one process.

    Raises:
        InputError: see `refuse_unusable_gpus`.
    """
    import torch

    if wanted == "auto":
        refuse_unusable_gpus()
    return torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else "cpu")


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


def memory_and_swap() -> int:
    """Bytes that processes here can have together, in memory and in swap."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    swap = int(lines["SwapTotal"].split()[0]) * 1024
    with suppress(OSError, ValueError):  # no such container, or "max"
        swap = min(swap, int(Path("/sys/fs/cgroup/memory.swap.max").read_text()))
    return memory()[0] + swap


GROUPS = Path("/sys/fs/cgroup")


def memory_group(pid: int) -> Path | None:
    """The file that counts what the kernel's memory killer did in the control group of a process; None without one.

    Version 1 has it in memory.oom_control, version 2 in memory.events.
    """
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {names: path for _, names, path in (line.split(":", 2) for line in lines)}
    for names, root, file in (("memory", GROUPS / "memory", "memory.oom_control"), ("", GROUPS, "memory.events")):
        path = next((p for n, p in paths.items() if names in n.split(",")), None)
        if path is None:
            continue
        for folder in (root / path.lstrip("/"), root):  # a container sees its own group at the root
            if _count(folder / file) is not None:
                return folder / file
    return None


def memory_kills(group: Path | None) -> int:
    """How often the kernel's memory killer has struck in a control group; on the whole machine if there is none."""
    found = _count(group) if group is not None else _count(Path("/proc/vmstat"))
    return found or 0


def memory_limit(group: Path | None) -> int | None:
    """Bytes that the processes of a control group may have together; None for no limit."""
    if group is None:
        return None
    name = "memory.limit_in_bytes" if group.name == "memory.oom_control" else "memory.max"
    try:
        limit = int((group.parent / name).read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return limit if limit < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") else None


def _count(file: Path) -> int | None:
    try:
        words = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next((int(word[1]) for word in words if word[0] == "oom_kill"), None)


GPU_MEMORY_ERRORS = ("OutOfMemoryError", "GpuMemoryError")


GPU_MEMORY_WORDS = (  # of torch's allocator and graphs, the driver, NCCL, and the libraries that take what is left
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "Cuda failure 'out of memory'",
    "Cuda failure 2 'out of memory'",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)


def is_gpu_shortage(name: str, message: str) -> bool:
    """Whether an exception of this name, with this message or traceback, says that a GPU has no memory left."""
    return name in GPU_MEMORY_ERRORS or any(words in message for words in GPU_MEMORY_WORDS)
