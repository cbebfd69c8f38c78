"""How far a rank is: the step and the phase that it is in, and since when. Written by its loop, read by its watcher.

rank's loop --enter--> HeartbeatBoard --heartbeat, when asked--> watcher     a stopped rank does not answer
                         |
                         +--> shared memory that outlives the rank, so that a kill leaves its last heartbeat
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["start", "load", "data", "agree", "forward", "backward", "update", "save", "end"]
PHASES: tuple[Phase, ...] = ("start", "load", "data", "agree", "forward", "backward", "update", "save", "end")
WORD = struct.Struct("=qqqdq")  # turns, step, phase, since when, turns again: a word half written is seen
BOARD_BYTES = WORD.size
TRIES = 100


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank is.

    Attributes:
        step: the one being computed, from 1; 0 before the first.
        phase: of the step.
        seconds: spent in this phase so far.
        turns: phases entered since the rank began, which tells a rank that moves from one that does not.
    """

    step: int
    phase: Phase
    seconds: float
    turns: int


class HeartbeatBoard:
    """The newest heartbeat of this rank. One thread enters, others may read: a tuple is replaced as a whole.

    Args:
        on_enter: called with (phase, step) at each heartbeat, before it counts; the fault kit strikes here.
        shared: `BOARD_BYTES` of memory shared with the watcher, where each heartbeat is written down.
    """

    def __init__(self, on_enter: Callable[[Phase, int], None] | None = None, shared: Any = None) -> None:
        self.on_enter, self.shared = on_enter, shared
        self._now: tuple[int, Phase, float, int] = (0, "start", time.monotonic(), 0)

    def enter(self, phase: Phase, step: int) -> None:
        """The rank begins with `phase` of `step`."""
        if self.on_enter is not None:
            self.on_enter(phase, step)
        turns, now = self._now[3] + 1, time.monotonic()
        self._now = (step, phase, now, turns)
        if self.shared is not None:
            WORD.pack_into(self.shared, 0, turns, step, PHASES.index(phase), now, turns)

    def read(self) -> Heartbeat:
        """Where the rank is now."""
        step, phase, since, turns = self._now
        return Heartbeat(step, phase, time.monotonic() - since, turns)


def last_heartbeat(shared: Any) -> Heartbeat:
    """Where the rank was that wrote on this board; it may be dead."""
    for _ in range(TRIES):
        turns, step, phase, since, again = WORD.unpack_from(shared, 0)
        if turns == again:
            break
    return Heartbeat(step, PHASES[phase], time.monotonic() - since if turns else 0.0, turns)
