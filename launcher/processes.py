"""Ranks as plain processes on this machine (`--no-ray`).

On CPU they are forked from a server that loads torch and DeepSpeed once, while the command checks its input; with a
GPU they are spawned, because CUDA does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from pathlib import Path

from launcher.children import Children
from launcher.config import RunConfig
from launcher.hardware import gpus
from launcher.pulse import Beat
from launcher.ranks import End, Seat, Wait, Where, is_bad, settled

ANSWER_SECONDS = 0.5  # for a beat
TELL_SECONDS = 2.0  # for a rank to tell its stacks, before py-spy looks
PRELOAD = [
    "torch._dynamo",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # what initialize() imports, for two to four seconds
    "deepspeed.runtime.zero.stage3",
    "launcher.rank",
]


def context(stage: int) -> BaseContext:
    """How processes are made here; the fork server starts to load its modules at once."""
    if gpus():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    server.set_forkserver_preload(PRELOAD if stage else [m for m in PRELOAD if "deepspeed" not in m])
    from multiprocessing.forkserver import ensure_running

    # The server of Python 3.11 looks for what it loads in PYTHONPATH and the working folder alone. In a worker of Ray
    # neither is ours, and it would load an installed Longreel instead of the one that Ray brought.
    paths = [str(Path(__file__).resolve().parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. What is
    # blocked stays blocked in the server and in the ranks that it forks.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


class ProcessRanks:
    """See `Ranks`."""

    def __init__(self, processes: BaseContext) -> None:
        self.children = Children(processes, os.getpid())
        self.ends: list[End] = []
        self.first_failure = float("inf")

    def place(self, config: RunConfig) -> Wait | None:
        """See `Ranks`."""
        return None

    def start(self, config: RunConfig) -> list[Where]:
        """See `Ranks`."""
        world, address = config.mesh.mesh().ranks, f"127.0.0.1:{free_port()}"
        self.ends, self.first_failure = [], float("inf")
        pids = self.children.start(config, [Seat(rank, world, rank, world, address) for rank in range(world)])
        host = socket.gethostname()
        return [Where(rank, host, host, pid) for rank, pid in pids.items()]

    def poll(self, seconds: float) -> list[End] | None:
        """See `Ranks`."""
        self.children.hear(seconds)
        new = self.children.take_ends()
        self.ends += new
        if any(is_bad(end) for end in new):
            self.first_failure = min(self.first_failure, time.monotonic())
        clear = settled(self.ends, len(self.children.ranks), time.monotonic() - self.first_failure)
        return self.ends if clear else None

    def beats(self) -> dict[int, Beat | None]:
        """See `Ranks`."""
        asked = self.children.ask()
        self.children.hear(ANSWER_SECONDS, lambda: not self.children.owe(asked))
        return self.children.take_beats()

    def last(self, rank: int) -> Beat | None:
        """See `Ranks`."""
        return self.children.last(rank)

    def state(self, rank: int) -> str:
        """See `Ranks`."""
        return self.children.state(rank)

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """See `Ranks`."""
        return self.children.stacks(ranks, TELL_SECONDS)

    def rooms(self, in_all: bool = False) -> tuple[int, ...] | None:
        """See `Ranks`."""
        return None

    def stop(self) -> None:
        """See `Ranks`."""
        self.children.stop()

    def kill(self) -> None:
        """See `Ranks`."""
        self.children.kill()

    def close(self) -> None:
        """See `Ranks`."""
        self.kill()


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
