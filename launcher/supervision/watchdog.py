"""Who holds the others up: from the heartbeats of all ranks, and nothing else, the rank that stands still.

    heartbeat of rank 0   5 update   5 update   5 update  ...          silent   no answer, while others answer
    heartbeat of rank 1   5 backw.   5 backw.   5 backw.  ...          behind   nobody gets on; this one is the last
                     ----------- deadline -----------> rank 1     all      nobody gets on; all are at one place

Pure: no clock and no process in it, so that a test can feed it any history. Time in which the watcher itself did not
look (it was stopped, or the machine slept) is not held against anybody.

The deadline is ten times the slowest of the last 20 steps, at least 20 s; reading data has three times as much, because
a store may have to be asked again. Start, load, save and the first step (which may compile) have ten minutes. None is
less than `patience` (`hang_timeout.py`): a step of much arithmetic stands in one phase for as long as that takes, and
packs of long samples take longer than those before them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from launcher.config.sections import RestartConfig
from launcher.core.heartbeat import Heartbeat, Phase

Kind = Literal["silent", "behind", "all"]
SLOW_PHASES: tuple[Phase, ...] = ("start", "load", "save", "end")
SLOW_SECONDS = 600.0
LEAST_SECONDS = 20.0
TIMES_SLOWEST = 10.0
DATA_TIMES = 3.0
STEPS = 20
LONGEST_LOOK = 5.0  # seconds between two looks that count; more means that the watcher slept
UNHEARD = Heartbeat(0, "start", 0.0, -1)  # of a rank that never answered
ALL_SILENT = 3.0  # times as long when nobody answers: the line to all of them may have a moment's trouble


@dataclass(frozen=True)
class Hang:
    """A rank that holds the others up.

    Attributes:
        rank: which.
        kind: "silent", "behind" or "all"; for "all" it is the first of them.
        step, phase: where it was when it was last heard.
        seconds: of silence, or since any rank got on.
        silent: every rank that does not answer.
    """

    rank: int
    kind: Kind
    step: int
    phase: Phase
    seconds: float
    silent: tuple[int, ...] = ()


@dataclass
class _Seen:
    """What was last heard of a rank, and when on the watchdog's clock."""

    heartbeat: Heartbeat
    answered: float


class Watchdog:
    """Watches one attempt of a run: ranks that were restarted have a new one.

    Args:
        settings: of the run.
        patience: seconds that the dearest step of the run may take, if the settings do not say it.
    """

    def __init__(self, settings: RestartConfig, patience: float = 0.0) -> None:
        self.settings, self.patience = settings, patience
        self._clock = 0.0  # seconds that count
        self._last: float | None = None
        self._seen: dict[int, _Seen] = {}
        self._moved = 0.0
        self._pace = _Pace()

    def see(self, now: float, heartbeats: Mapping[int, Heartbeat | None], running: Collection[int] = ()) -> Hang | None:
        """Look at the newest heartbeats; gives who hangs, if anybody.

        Args:
            now: seconds of a clock that only goes forward.
            heartbeats: of every rank that has not ended; None for one that did not answer since the last look.
            running: silent ranks whose process is known to run, such as one that is busy in a library that lets no
                other thread speak. They have the whole deadline.
        """
        self._clock += min(now - self._last, LONGEST_LOOK) if self._last is not None else 0.0
        self._last = now
        for rank, heartbeat in heartbeats.items():
            if heartbeat is None:
                continue
            before = self._seen.get(rank)
            if before is None or before.heartbeat.turns != heartbeat.turns:
                self._moved = self._clock
            self._seen[rank] = _Seen(heartbeat, self._clock)
        heard = [heartbeat for heartbeat in heartbeats.values() if heartbeat is not None]
        self._pace.see(self._clock, heard)
        return (self._silence(heartbeats, running) or self._standstill(heartbeats)) if heartbeats else None

    def quiet(self, seconds: float) -> list[int]:
        """Ranks that answered before, but not for so long."""
        return [rank for rank, seen in self._seen.items() if self._clock - seen.answered >= seconds]

    def deadline(self, heartbeat: Heartbeat) -> float:
        """How long nobody may get on while the last of them is here."""
        chosen = self.settings.hang_timeout_seconds
        if heartbeat.phase in SLOW_PHASES or self._pace.in_first_step:
            return max(SLOW_SECONDS, self.patience if chosen is None else chosen)
        if chosen is not None:
            return chosen
        seconds = max(LEAST_SECONDS, self.patience, TIMES_SLOWEST * self._pace.slowest)
        return DATA_TIMES * seconds if heartbeat.phase == "data" else seconds

    def _silence(self, ranks: Iterable[int], running: Collection[int]) -> Hang | None:
        """A rank that never answered is still starting: it is no silence yet."""
        limit, known = self.settings.heartbeat_timeout_seconds, [rank for rank in ranks if rank in self._seen]
        silent = [rank for rank in self.quiet(limit) if rank in known]
        if len(silent) == len(known) > 1:
            limit *= ALL_SILENT
        found = []
        for rank in silent:
            seen = self._seen[rank]
            allowed = max(limit, self.deadline(seen.heartbeat)) if rank in running else limit
            if self._clock - seen.answered >= allowed:
                found.append(rank)
        if not found:
            return None
        first = min(found, key=self._place)
        heartbeat = self._seen[first].heartbeat
        quiet = self._clock - self._seen[first].answered
        return Hang(first, "silent", heartbeat.step, heartbeat.phase, quiet, tuple(sorted(found)))

    def _standstill(self, ranks: Iterable[int]) -> Hang | None:
        places = sorted(self._place(rank) for rank in ranks)
        last = places[0][-1]
        heartbeat = self._seen[last].heartbeat if last in self._seen else UNHEARD
        still = self._clock - self._moved
        nobody_speaks = bool(self._seen) and len(self.quiet(LONGEST_LOOK)) == len(self._seen)
        if still < self.deadline(heartbeat) or nobody_speaks:
            return None
        together = len({place[:2] for place in places}) == 1
        return Hang(last, "all" if together else "behind", heartbeat.step, heartbeat.phase, still)

    def _place(self, rank: int) -> tuple[int, int, int]:
        """Earliest first. Every rank enters the same phases, so the number of turns orders those within a step."""
        heartbeat = self._seen[rank].heartbeat if rank in self._seen else UNHEARD
        return heartbeat.step, heartbeat.turns, rank


class _Pace:
    """How long steps take, from the heartbeats alone. Steps with a save in them do not count."""

    def __init__(self) -> None:
        self.took: deque[float] = deque(maxlen=STEPS)
        self.in_first_step = True
        self._first: int | None = None
        self._front, self._since, self._saved = 0, 0.0, False
        self._first_took = 0.0

    @property
    def slowest(self) -> float:
        """Seconds; of the first step as long as there is no other."""
        return max(self.took, default=self._first_took)

    def see(self, now: float, heartbeats: Collection[Heartbeat]) -> None:
        """The newest heartbeats, at `now`."""
        self._saved |= any(heartbeat.phase == "save" for heartbeat in heartbeats)
        front = max((heartbeat.step for heartbeat in heartbeats), default=0)
        if front <= self._front:
            return
        each = (now - self._since) / (front - self._front)
        if self._first is None:
            self._first = front
        elif self.in_first_step:
            self.in_first_step, self._first_took = False, each
        elif not self._saved:
            self.took.append(each)
        self._front, self._since, self._saved = front, now, False
