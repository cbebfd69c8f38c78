"""Jobs for worker processes, in a module of its own: whatever it imports, each of them imports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

HANG, EAT = 100, 200


def work(job: int) -> int:
    """The square, but for jobs that do harm."""
    if job < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == HANG:
        time.sleep(600)
    if job == EAT:
        eaten = b"x" * (1 << 30)
        time.sleep(600 + len(eaten))
    time.sleep(0.01 * (job % 3))
    return job * job


def fail(job: int) -> int:
    raise ValueError(f"job {job}")


def process_id(_: int) -> int:
    return os.getpid()


def wait_for_many(job: tuple[Path, int], most: int) -> int:
    """Job 0 ends when 20 others have, and says how many; it notes if they are more than `most`."""
    path, number = job
    path.touch()
    deadline = time.monotonic() + 120
    while number == 0 and time.monotonic() < deadline:
        done = len(list(path.parent.iterdir())) - 1
        if done > most:
            (path.parent / "too many").touch()
        if done >= 20:
            return done
        time.sleep(0.01)
    return number


def convert_but_hang(todo: Any, **options: Any) -> Any:
    """As `convert`, but for a file called hangs.mp4."""
    from data.prepare.convert import convert

    if todo.file.name == "hangs.mp4":
        time.sleep(600)
    return convert(todo, **options)


def hold_scratch() -> None:
    """A file in a folder that goes when this process does."""
    from data.remote.scratch import scratch

    with scratch() as folder:
        (folder / "file").touch()
        time.sleep(600)


def kill_parent(job: int) -> int:
    """The square, but for a negative job, which kills the process that watches this one."""
    if job < 0:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return job * job
