"""Ranks as child processes of this one, and what can be known of them: heartbeats, stacks, ends.

Two pipes and a piece of memory lead to each:

    parent  --"heartbeat", "stacks", "stop"-->  child      a thread of the child listens, whatever its loop does
            <--Heartbeat, Stacks, End---------
            <--what faulthandler writes--             the stacks of a crash in native code
            <--Board--------------------              where its loop is, readable when it is dead

At most one question to a child is open at a time, so the parent never waits to write to one that is stopped. When the
parent dies, its side closes and the child leaves at once. A child with a lease also leaves when it is asked nothing for
so long: on a cluster its machine may be cut off, and others go on in its place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from launcher.config.run_config import RunConfig
from launcher.core import stacks
from launcher.core.hardware import memory_group, memory_kills, memory_limit
from launcher.core.heartbeat import BOARD_BYTES, Heartbeat, HeartbeatBoard, last_heartbeat
from launcher.supervision.rank_group import UNKNOWN, End, Seat, run_reporting

DIE_SECONDS = 10.0  # for a process to be gone after SIGKILL; one that waits for a dead network disk may not
CRASH_BYTES = 1 << 16
LISTEN_SECONDS = 1.0
ORPHANED = 255  # what a fork server that is dead itself seems to say of its children


@dataclass(frozen=True)
class Stacks:
    """What a rank's threads are doing, told by itself."""

    text: str


@dataclass
class Child:
    """One rank's process.

    Attributes:
        asked: a question is open.
        heartbeat: its newest answer that nobody has taken yet.
        told: its own stacks, once it has told them.
        group: of its memory, and how often the memory killer had struck there when it began.
    """

    seat: Seat
    process: BaseProcess
    pipe: Connection
    crash: Connection
    shared: Any
    group: Path | None
    kills: int
    asked: bool = False
    heartbeat: Heartbeat | None = None
    told: str | None = None
    end: End | None = None


class Children:
    """Some ranks of a run, all on this machine.

    Args:
        context: how processes are made.
        launcher: process number of the command, if it runs on this machine; 0 if not.
    """

    def __init__(self, context: BaseContext, launcher: int) -> None:
        self.context, self.launcher = context, launcher
        self.ranks: dict[int, Child] = {}
        self._ends: list[End] = []

    def start(self, config: RunConfig, seats: Sequence[Seat], lease: float | None = None) -> dict[int, int]:
        """Start a rank for each seat; gives their process numbers."""
        assert not self.ranks, "the ranks of the last attempt were not killed"
        for seat in seats:
            self.ranks[seat.rank] = self._start(config, seat, lease)
        return {rank: child.process.pid or 0 for rank, child in self.ranks.items()}

    def hear(self, seconds: float, until: Callable[[], bool] | None = None) -> None:
        """Take in what the ranks say for at most so long, or `until` there is no need; until one ends if not given."""
        deadline = time.monotonic() + seconds
        while not (until() if until is not None else self._ends):
            pipes = {child.pipe: child for child in self.ranks.values() if child.end is None}
            left = deadline - time.monotonic()
            for pipe in wait(list(pipes), timeout=max(0.0, left)) if pipes else []:
                assert isinstance(pipe, Connection)
                self._receive(pipes[pipe])
            if not pipes or left <= 0:
                return

    def ask(self) -> list[int]:
        """Ask every rank for a heartbeat, but those that owe an answer; gives those that were asked."""
        free = [child for child in self.ranks.values() if child.end is None and not child.asked]
        for child in free:
            child.asked = _send(child.pipe, "heartbeat")
        return [child.seat.rank for child in free if child.asked]

    def owe(self, ranks: Sequence[int]) -> bool:
        """Whether any of these has not answered yet."""
        return any(self.ranks[rank].asked and self.ranks[rank].end is None for rank in ranks)

    def take_ends(self) -> list[End]:
        """Ranks that ended since the last call, the first first."""
        taken, self._ends = self._ends, []
        return taken

    def take_heartbeats(self) -> dict[int, Heartbeat | None]:
        """What each rank that has not ended has answered since the last call."""
        taken = {rank: child.heartbeat for rank, child in self.ranks.items() if child.end is None}
        for child in self.ranks.values():
            child.heartbeat = None
        return taken

    def last(self, rank: int) -> Heartbeat:
        """Where a rank is, or was when it died."""
        return last_heartbeat(self.ranks[rank].shared)

    def state(self, rank: int) -> str:
        """What /proc says of a rank's process."""
        return stacks.state_of(self.ranks[rank].process.pid or 0)

    def stacks(self, ranks: Sequence[int], seconds: float) -> dict[int, str]:
        """Asked of the ranks themselves, and of py-spy where they do not answer within `seconds`."""
        asked = [self.ranks[rank] for rank in ranks]
        for child in asked:
            child.told = None
            if child.end is None and not child.asked:
                child.asked = _send(child.pipe, "stacks")
        self.hear(seconds, lambda: all(c.told is not None or c.end is not None for c in asked))
        return {c.seat.rank: c.told or stacks.of_process(c.process.pid or 0) for c in asked}

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""
        for child in self.ranks.values():
            _send(child.pipe, "stop")

    def kill(self) -> None:
        """End them now."""
        for child in self.ranks.values():
            child.process.kill()
        for child in self.ranks.values():
            child.process.join(DIE_SECONDS)
            child.pipe.close()
            child.crash.close()
        self.ranks, self._ends = {}, []

    def _start(self, config: RunConfig, seat: Seat, lease: float | None) -> Child:
        here, there = self.context.Pipe()
        crash, crashing = self.context.Pipe(duplex=False)
        shared = self.context.RawArray(ctypes.c_char, BOARD_BYTES)
        process = self.context.Process(  # type: ignore[attr-defined]
            target=_rank,
            args=(there, crashing, shared, config, seat, lease, self.launcher),
            name=f"longreel-rank-{seat.rank}",
        )
        process.start()
        there.close()
        crashing.close()
        group = memory_group(process.pid or 0)
        return Child(seat, process, here, crash, shared, group, memory_kills(group))

    def _receive(self, child: Child) -> None:
        try:
            said = child.pipe.recv()
        except (EOFError, OSError):
            said = self._death(child)
        if isinstance(said, End):
            child.end = said
            self._ends.append(said)
            return
        child.asked = False
        if isinstance(said, Heartbeat):
            child.heartbeat = said
            group = memory_group(child.process.pid or 0)
            if group != child.group:  # somebody moved it: what is counted there is of others, up to now
                child.group, child.kills = group, memory_kills(group)
        else:
            child.told = said.text

    def _death(self, child: Child) -> End:
        child.process.join(DIE_SECONDS)
        code, at = child.process.exitcode, last_heartbeat(child.shared)
        sign = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        message = f"killed by {sign}" if sign.startswith("SIG") else sign
        if code == ORPHANED:
            sign, message = UNKNOWN, "killed together with the server that it was forked from"
        for_memory = sign in ("SIGKILL", UNKNOWN) and memory_kills(child.group) > child.kills
        if for_memory:
            limit = memory_limit(child.group)
            room = f"its control group has {limit:,} bytes" if limit else "the machine had none left"
            message = f"killed by the kernel's memory killer: {room}"
        crashed = _left(child.crash)
        return End(
            child.seat.rank, "died", at.step, f"{crashed}\n{message}" if crashed else message,
            phase=at.phase, sign=sign, for_memory=for_memory,
        )  # fmt: skip


def _left(pipe: Connection) -> str:
    """What lies in the pipe of a process that is dead."""
    os.set_blocking(pipe.fileno(), False)
    try:
        return os.read(pipe.fileno(), CRASH_BYTES).decode(errors="replace").strip()
    except BlockingIOError:  # a process that it forked still holds the other side
        return ""


def _send(pipe: Connection, word: str) -> bool:
    try:
        pipe.send(word)
    except OSError:
        return False  # it has ended already
    return True


def _rank(
    pipe: Connection,
    crash: Connection,
    shared: Any,
    config: RunConfig,
    seat: Seat,
    lease: float | None,
    launcher: int,
) -> None:
    """A rank's process."""
    import faulthandler

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the launcher, which then asks
    faulthandler.enable(file=crash.fileno())
    os.set_blocking(crash.fileno(), False)  # a crash does not wait for a reader
    heartbeat = heartbeat_board_of(config, seat.rank, launcher, shared)
    asked, speaking = threading.Event(), threading.Lock()
    listener = threading.Thread(
        target=_listen, args=(pipe, speaking, asked, heartbeat, lease), daemon=True, name="listener"
    )
    listener.start()

    def work() -> tuple[int, bool]:
        from launcher.training.loop import run
        from launcher.training.rendezvous import RankPlace

        outcome = run(config, RankPlace(*seat), asked.is_set, heartbeat)
        return outcome.step, outcome.stopped

    def leave(end: End) -> None:
        with speaking:
            pipe.send(end)
        os._exit(0)  # DeepSpeed and gloo sometimes abort at interpreter exit, after the work is done

    run_reporting(seat.rank, work, heartbeat, leave)


def heartbeat_board_of(config: RunConfig, rank: int, launcher: int, shared: Any = None) -> HeartbeatBoard:
    """The heartbeat of a rank, with the faults that it does to itself, if its run has any."""
    on_enter: Callable[..., None] | None = None
    if config.faults:
        from launcher.faults.inject import striker

        on_enter = striker(config.faults, config.out, rank, launcher)
    return HeartbeatBoard(on_enter, shared)


def _listen(
    pipe: Connection, speaking: threading.Lock, asked: threading.Event, heartbeat: HeartbeatBoard, lease: float | None
) -> None:
    """Answer the parent until it is gone."""
    silence = 0.0  # of turns in which nobody asked: a time in which this process was stopped is one turn
    while True:
        try:
            if not pipe.poll(LISTEN_SECONDS):
                silence += LISTEN_SECONDS
                if lease is not None and silence >= lease:
                    os._exit(1)  # cut off: others go on in our place
                continue
            silence, word = 0.0, pipe.recv()
            if word == "stop":
                asked.set()
                continue
            answer = heartbeat.read() if word == "heartbeat" else Stacks(stacks.own())
            with speaking:
                pipe.send(answer)
        except (EOFError, OSError):
            os._exit(1)  # the parent is gone
