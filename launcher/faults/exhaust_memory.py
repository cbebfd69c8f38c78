"""A process that takes memory until the kernel's memory killer ends it, and nobody else.

It does so only inside a control group with a limit: one that is made for it, if we may write below /sys/fs/cgroup, else
its own, if that has a limit. Without a limit it refuses, because the killer would look over the whole machine.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

from launcher.core.hardware import GROUPS, memory_group, memory_limit
from parallel.errors import InputError

ROOM_BYTES = 256 << 20  # above what the process has already
PIECES = 50
WORST = 1000  # of oom_score_adj: the first that the killer takes


def exhaust_memory(seconds: float) -> None:
    """Take memory, over about so many seconds, until this process is killed for it.

    Raises:
        InputError: there is no control group with a limit, and none can be made.
    """
    limit = _fence() or memory_limit(memory_group(os.getpid()))
    if limit is None:
        raise InputError(
            "memory is used up inside a control group with a limit only, so that nothing else is killed",
            f"process {os.getpid()} has no limit, and none can be made under {GROUPS}",
            "run as a user who may make control groups, or in a container with a memory limit",
        )
    Path("/proc/self/oom_score_adj").write_text(str(WORST))
    pages: list[mmap.mmap] = []
    while sum(len(piece) for piece in pages) <= 2 * limit:
        pages.append(mmap.mmap(-1, ROOM_BYTES // PIECES))
        pages[-1].write(b"\1" * len(pages[-1]))
        time.sleep(seconds / PIECES)
    raise MemoryError("the memory killer did not come: control groups do not limit here")


def _fence() -> int | None:
    """Move this process into a control group of its own, with a limit; None if that is not allowed."""
    pid = os.getpid()
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") + ROOM_BYTES
    for folder, setting, swap in _places():
        group = folder / f"longreel-fault-{pid}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / setting).write_text(str(limit))
            if (group / swap).exists():
                (group / swap).write_text(str(limit if swap.startswith("memory.memsw") else 0))
        except OSError:
            group.rmdir()
            continue
        # it stays outside, outlives this process, and takes the group away
        sweep = f"while kill -0 {pid}; do sleep 1; done; sleep 1; rmdir {group}"
        subprocess.Popen(["sh", "-c", sweep], stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            continue
        return limit
    return None


def _places() -> list[tuple[Path, str, str]]:
    """Where a control group may be made, the file of its limit and that of its swap, for versions 1 and 2."""
    first = (GROUPS / "memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    second = (GROUPS, "memory.max", "memory.swap.max")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/").lstrip("/")
    beside = (GROUPS / own).parent  # a group with processes has no children that are limited
    return [place for place in (first, second, (beside, *second[1:])) if (place[0] / "cgroup.procs").exists()]
