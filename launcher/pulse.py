"""How far a rank is: the step and the phase that it is in, and since when. Written by its loop, read by its watcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["start", "load", "data", "agree", "forward", "backward", "update", "save", "end"]
PHASES: tuple[Phase, ...] = ("start", "load", "data", "agree", "forward", "backward", "update", "save", "end")


@dataclass(frozen=True)
class Beat:
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


class Pulse:
    """The newest beat of this rank. One thread enters, others may read: a tuple is replaced as a whole.

    Args:
        on_enter: called with (phase, step) at each beat, before it counts; the fault kit strikes here.
    """

    def __init__(self, on_enter: Callable[[Phase, int], None] | None = None) -> None:
        self.on_enter = on_enter
        self._now: tuple[int, Phase, float, int] = (0, "start", time.monotonic(), 0)

    def enter(self, phase: Phase, step: int) -> None:
        """The rank begins with `phase` of `step`."""
        if self.on_enter is not None:
            self.on_enter(phase, step)
        self._now = (step, phase, time.monotonic(), self._now[3] + 1)

    def read(self) -> Beat:
        """Where the rank is now."""
        step, phase, since, turns = self._now
        return Beat(step, phase, time.monotonic() - since, turns)
