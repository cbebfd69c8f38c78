"""Ranks as plain processes on this machine (`--no-ray`)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from typing import Literal

from launcher.config.run_config import RunConfig
from launcher.core.hardware import Device, gpus
from launcher.core.heartbeat import Heartbeat
from launcher.core.stacks import TELL_SECONDS
from launcher.supervision.rank_group import End, Seat, Wait, Where, is_bad, settled
from launcher.supervision.rank_processes import Children

ANSWER_SECONDS = 0.5  # for a heartbeat


class ProcessRanks:
    """See `Ranks`."""

    def __init__(self, processes: BaseContext) -> None:
        self.children = Children(processes, os.getpid())
        self.device: Device = "auto"
        self.ends: list[End] = []
        self.first_failure = float("inf")

    def place(self, config: RunConfig) -> Wait | None:
        """See `Ranks`."""
        return None

    def start(self, config: RunConfig) -> list[Where]:
        """See `Ranks`."""
        self.device = config.device
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

    def heartbeats(self) -> dict[int, Heartbeat | None]:
        """See `Ranks`."""
        asked = self.children.ask()
        self.children.hear(ANSWER_SECONDS, lambda: not self.children.owe(asked))
        return self.children.take_heartbeats()

    def last(self, rank: int) -> Heartbeat | None:
        """See `Ranks`."""
        return self.children.last(rank)

    def state(self, rank: int) -> str:
        """See `Ranks`."""
        return self.children.state(rank)

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """See `Ranks`."""
        return self.children.stacks(ranks, TELL_SECONDS)

    def capacities(self, in_all: bool = False) -> tuple[int, ...] | None:
        """See `Ranks`."""
        return None

    def kind(self) -> Literal["cuda", "cpu"]:
        """See `Ranks`."""
        return "cuda" if gpus(self.device) else "cpu"

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
