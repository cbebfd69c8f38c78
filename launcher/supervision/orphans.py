"""Ranks of an earlier start on this machine that were stopped when their launcher was killed, and so cannot leave.

A rank leaves when its launcher is gone; one that is stopped (SIGSTOP, a debugger) does so only once it is continued.
Until then it holds memory, perhaps a GPU, and the lock on the run's records.
"""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

from launcher.core.run_folder import RunFolder, events_of
from launcher.core.stacks import state_of


def end_leftovers(folder: RunFolder) -> list[int]:
    """SIGKILL to stopped ranks of the last start of this run on this machine; gives their ranks.

    To be called by who holds the run folder alone: no other launcher waits for these ranks.
    """
    starts = [event for event in events_of(folder) if event["event"] == "ranks"]
    ended = []
    places = starts[-1].get("places") if starts else ()
    for place in places if isinstance(places, list) else ():
        if not isinstance(place, dict) or place.get("host") != socket.gethostname():
            continue
        pid, rank = place.get("pid"), place.get("rank")
        if type(pid) is int and pid > 1 and type(rank) is int and _is_rank(pid) and state_of(pid)[0] in "Tt":
            os.kill(pid, signal.SIGKILL)
            ended.append(rank)
    return ended


def _is_rank(pid: int) -> bool:
    """Whether it is a process of Python's multiprocessing, and not one that got the number since."""
    try:
        return b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
