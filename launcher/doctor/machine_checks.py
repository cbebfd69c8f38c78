"""What the machine itself gives a run: memory, shared memory, open files, disks."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from launcher.core.hardware import cores
from launcher.core.hardware import memory as memory_here
from launcher.doctor.finding import GIB, Finding, gib
from parallel import shell

MEMORY_OF_A_RANK = 600 << 20  # a Ray worker with torch and DeepSpeed takes 500 to 560 MB
OPEN_FILES = 4096
LITTLE_DISK, NO_DISK = 20 * GIB, 1 * GIB


def memory() -> Iterator[Finding]:
    """Room for at least one rank."""
    total, free = memory_here()
    found = f"{gib(free)} of {gib(total)} free, {cores()} cores"
    if free < MEMORY_OF_A_RANK:
        remedy = f"a rank takes {MEMORY_OF_A_RANK >> 20} MiB before the model: end other programs"
        yield Finding("memory", "problem", found, remedy)
    elif free < MEMORY_OF_A_RANK * cores():
        yield Finding("memory", "note", found, f"room for {free // MEMORY_OF_A_RANK} ranks before the model")
    else:
        yield Finding("memory", "ok", found)


def open_files() -> Iterator[Finding]:
    """As many as Ray and many shards take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        yield Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft:,}")
        return
    highest = 16 * OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, 16 * OPEN_FILES)
    remedy = f"ulimit -n {highest}" if highest >= OPEN_FILES else "raise nofile in /etc/security/limits.conf"
    yield Finding("open files", "note", f"at most {soft:,}; Ray and many shards take more", remedy)


def disk(name: str, path: Path, enough: int) -> Iterator[Finding]:
    """`enough`: bytes below which nothing works; 0 if little room is never a problem."""
    path = path.absolute()
    there = next(p for p in (path, *path.parents) if p.exists())
    free = free_bytes(there)
    found = f"{gib(free)} free in {there}"
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            name, "problem", f"{there} cannot be written", f"chmod u+w {shell.quote(str(there))}, or another folder"
        )
    elif free < enough:
        yield Finding(name, "problem", found, "make room: a checkpoint takes 12 bytes a parameter")
    elif free < (LITTLE_DISK if enough else NO_DISK):
        yield Finding(name, "note", found, "make room: a checkpoint takes 12 bytes a parameter")
    else:
        yield Finding(name, "ok", found)


def free_bytes(path: Path) -> int:
    """Of the disk that holds a folder; 0 if there is no such folder."""
    return shutil.disk_usage(path).free if path.exists() else 0
