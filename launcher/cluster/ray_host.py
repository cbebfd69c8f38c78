"""What Ray runs on each machine of a run: an actor that has the ranks there as its children.

    launcher --look, stop, strike--> Host (Ray actor) --pipes--> rank, rank, ...

A rank is not itself an actor, for four reasons. Ray cannot tell by which signal a worker died, a parent can. A rank
that is stopped cannot keep Ray's calls waiting. Ranks are forked from a process that has torch and DeepSpeed loaded,
once for a machine: 30 ms and little memory each, where a worker takes seconds and half a gigabyte. And a restart needs
no new workers. What an actor is for, placing, resources, visible GPUs and news of a dead machine, stays Ray's.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.core import stacks
from launcher.core.hardware import Device
from launcher.supervision.fork_server import context

if TYPE_CHECKING:  # they import torch, while it is being loaded in the process that ranks are forked from
    from launcher.config.run_config import RunConfig
    from launcher.core.heartbeat import Heartbeat
    from launcher.supervision.rank_group import End, Seat


@dataclass(frozen=True)
class HostReport:
    """What a host sees of its ranks.

    Attributes:
        ends: since the last look.
        heartbeats: of those that have not ended; None for one that did not answer.
        last: where each is, or was.
        states: of the processes that did not answer.
    """

    ends: list[End]
    heartbeats: dict[int, Heartbeat | None]
    last: dict[int, Heartbeat]
    states: dict[int, str]


class Host:
    """The actor. Its methods run in Ray's threads: one at a time, but for `strike`.

    Args:
        stage: of ZeRO, which decides what is loaded beforehand.
        launcher: see `Children`.
        wanted: device of the ranks.
    """

    def __init__(self, stage: int, launcher: int, wanted: Device = "auto") -> None:
        self.turn = threading.Lock()
        with _nobody_main():
            processes = context(stage, wanted)
            from launcher.supervision.rank_processes import Children

            self.children = Children(processes, launcher)

    def where(self) -> tuple[str, str]:
        """Ray's name of this machine, and its own."""
        import ray

        return str(ray.get_runtime_context().get_node_id()), socket.gethostname()

    def rendezvous_address(self, loopback: bool) -> str:
        """An address on this machine that all ranks reach, and a port that is free now."""
        import ray

        address = "127.0.0.1" if loopback else ray.util.get_node_ip_address()
        with socket.socket() as s:
            s.bind((address, 0))
            return f"{address}:{s.getsockname()[1]}"

    def start(self, config: RunConfig, seats: Sequence[Seat], lease: float | None) -> dict[int, int]:
        """Start these ranks; gives their process numbers."""
        with self.turn, _nobody_main():
            return self.children.start(config, seats, lease)

    def look(self, seconds: float) -> HostReport:
        """Ask every rank for a heartbeat, and wait so long for answers and ends."""
        with self.turn:
            self.children.ask()
            self.children.hear(seconds)
            heartbeats = self.children.take_heartbeats()
            states = {rank: self.children.state(rank) for rank, heartbeat in heartbeats.items() if heartbeat is None}
            last = {rank: self.children.last(rank) for rank in self.children.ranks}
            return HostReport(self.children.take_ends(), heartbeats, last, states)

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """See `Ranks`."""
        with self.turn:
            return self.children.stacks(ranks, stacks.TELL_SECONDS)

    def stop(self) -> None:
        """See `Ranks`."""
        with self.turn:
            self.children.stop()

    def strike(self) -> None:
        """SIGKILL to every rank, whatever else is going on."""
        for child in list(self.children.ranks.values()):
            child.process.kill()

    def kill(self) -> None:
        """See `Ranks`."""
        with self.turn:
            self.children.kill()


def spy(pids: dict[int, int]) -> dict[int, str]:
    """For a task on a machine whose host does not answer: the stacks of its ranks."""
    return {rank: stacks.of_process(pid) for rank, pid in pids.items()}


def slay(pids: Sequence[int]) -> None:
    """For such a task: end these processes of the run, also those that are stopped."""
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _nobody_main() -> Iterator[None]:
    """Hide this process's main module, Ray's worker script: children would import it, with all of Ray."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
