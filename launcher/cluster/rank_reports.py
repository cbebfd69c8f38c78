"""What ranks on other machines reported in one attempt: their heartbeats, their states, and how they ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from launcher.cluster.ray_host import HostReport
from launcher.core.heartbeat import Heartbeat
from launcher.supervision.rank_group import End, is_bad


class RankReports:
    """Of one attempt.

    Attributes:
        ends: in the order in which they came.
        last: heartbeat of each rank.
        states: what the machine of a rank says of its process.
        first_failure: when the first bad end came, on the monotonic clock.
    """

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.last: dict[int, Heartbeat] = {}
        self.states: dict[int, str] = {}
        self.first_failure = float("inf")
        self._new: dict[int, Heartbeat] = {}

    def take(self, look: HostReport) -> None:
        """What a host says of its ranks."""
        self._new.update({rank: heartbeat for rank, heartbeat in look.heartbeats.items() if heartbeat is not None})
        self.last.update(look.last)
        self.states.update(look.states)
        self._note(look.ends)

    def lose(self, ranks: Sequence[int], message: str, sign: str, for_memory: bool) -> None:
        """Ranks are gone with their host; those that had ended stay as they are."""
        ended, ends = self.ended(), []
        for rank in ranks:
            if rank not in ended:
                at = self.last.get(rank)
                step, phase = (at.step, at.phase) if at else (0, None)
                ends.append(End(rank, "died", step, message, phase=phase, sign=sign, for_memory=for_memory))
        self._note(ends)

    def ended(self) -> set[int]:
        """Ranks that have ended."""
        return {end.rank for end in self.ends}

    def new_heartbeats(self, ranks: Sequence[int]) -> dict[int, Heartbeat | None]:
        """Heartbeats since this was last asked, of ranks that go on; None for those that gave none."""
        new, self._new = self._new, {}
        ended = self.ended()
        return {rank: new.get(rank) for rank in ranks if rank not in ended}

    def _note(self, ends: Sequence[End]) -> None:
        self.ends += ends
        if any(is_bad(end) for end in ends):
            self.first_failure = min(self.first_failure, time.monotonic())
