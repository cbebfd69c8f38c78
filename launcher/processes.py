"""Ranks as plain processes on this machine (`--no-ray`).

On CPU they are forked from a server that loads torch and DeepSpeed once, while the command checks its input; with a
GPU they are spawned, because CUDA does not survive a fork. A pipe to each rank carries "stop" one way and the End the
other; when the launcher dies, however, its side closes and the rank leaves at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from launcher.config import RunConfig
from launcher.hardware import gpus
from launcher.ranks import End, Where, run_reporting

GRACE_SECONDS = 5.0  # for the other ranks to say what they saw, once one has failed
PRELOAD = ["torch._dynamo", "deepspeed", "deepspeed.runtime.zero.stage3", "launcher.rank"]


def context(stage: int) -> BaseContext:
    """How processes are made here; the fork server starts to load its modules at once."""
    if gpus():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    server.set_forkserver_preload(PRELOAD if stage else [m for m in PRELOAD if "deepspeed" not in m])
    from multiprocessing.forkserver import ensure_running

    # Whoever stops a job may signal all of its processes: only the launcher listens, and then asks the ranks. What is
    # ignored stays ignored in the server and in the ranks that it forks.
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ensure_running()
    signal.signal(signal.SIGTERM, before)
    return server


class ProcessRanks:
    """See `Ranks`."""

    def __init__(self, processes: BaseContext) -> None:
        self.context = processes
        self.pipes: dict[Connection, int] = {}
        self.processes: list[BaseProcess] = []
        self.ends: dict[int, End] = {}
        self.first_failure = float("inf")

    def start(self, config: RunConfig) -> list[Where]:
        """See `Ranks`."""
        ranks, address = config.mesh.mesh().ranks, f"127.0.0.1:{free_port()}"
        self.pipes, self.processes, self.ends, self.first_failure = {}, [], {}, float("inf")
        for rank in range(ranks):
            here, there = self.context.Pipe()
            process = self.context.Process(  # type: ignore[attr-defined]
                target=_rank, args=(there, config, rank, ranks, address), name=f"longreel-rank-{rank}"
            )
            process.start()
            there.close()
            self.pipes[here] = rank
            self.processes.append(process)
        return [Where(rank, socket.gethostname(), process.pid or 0) for rank, process in enumerate(self.processes)]

    def poll(self, seconds: float) -> list[End] | None:
        """See `Ranks`."""
        waiting = [p for p, rank in self.pipes.items() if rank not in self.ends]
        for pipe in wait(waiting, timeout=seconds):
            assert isinstance(pipe, Connection)
            rank = self.pipes[pipe]
            try:
                self.ends[rank] = pipe.recv()
            except (EOFError, OSError):
                self.ends[rank] = End(rank, "died", message=self._cause(rank))
            if self.ends[rank].how not in ("done", "stopped"):
                self.first_failure = min(self.first_failure, time.monotonic())
        if len(self.ends) == len(self.pipes) or time.monotonic() > self.first_failure + GRACE_SECONDS:
            return [self.ends[r] for r in sorted(self.ends)]
        return None

    def stop(self) -> None:
        """See `Ranks`."""
        for pipe in self.pipes:
            try:
                pipe.send("stop")
            except OSError:
                continue  # it has ended already

    def kill(self) -> None:
        """See `Ranks`."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.pipes:
            pipe.close()
        self.pipes, self.processes = {}, []

    def close(self) -> None:
        """See `Ranks`."""
        self.kill()

    def _cause(self, rank: int) -> str:
        process = self.processes[rank]
        process.join(1)
        code = process.exitcode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


def _rank(pipe: Connection, config: RunConfig, rank: int, ranks: int, address: str) -> None:
    """A rank's process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the launcher, which then asks
    asked = threading.Event()
    threading.Thread(target=_listen, args=(pipe, asked), daemon=True).start()

    def work() -> tuple[int, bool]:
        from launcher.rank import RankPlace, run

        outcome = run(config, RankPlace(rank, ranks, rank, ranks, address), asked.is_set)
        return outcome.step, outcome.stopped

    pipe.send(run_reporting(config, rank, work))
    os._exit(0)  # DeepSpeed and gloo sometimes abort at interpreter exit, after the work is done


def _listen(pipe: Connection, asked: threading.Event) -> None:
    while True:
        try:
            if pipe.recv() == "stop":
                asked.set()
        except (EOFError, OSError):
            os._exit(1)  # the launcher is gone


def free_port() -> int:
    """A port on loopback that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port
