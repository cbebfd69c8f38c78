"""An attempt to run the ranks: how it went, what went wrong in it, and which rank is to blame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.supervision.failure_causes import Cause, last_line
from launcher.supervision.rank_group import End
from launcher.supervision.watchdog import Hang


@dataclass
class StopRequests:
    """How often a person or the system asked to stop."""

    times: int = 0


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt went.

    Attributes:
        ends: of the ranks, if they ended by themselves.
        hang: if one stands still.
        state: what its machine says of it.
        cut_short: a person asked to stop at once.
    """

    ends: Sequence[End] = ()
    hang: Hang | None = None
    state: str = ""
    cut_short: bool = False


@dataclass(frozen=True)
class Failure:
    """What went wrong in an attempt.

    Attributes:
        end: of the rank to blame; made up for one that hangs.
        cause: why.
    """

    end: End
    cause: Cause


def is_same(end: End, blamed: End) -> bool:
    """Whether another rank failed in the same way, as all do where all compute the same."""
    alike = end.how == blamed.how and end.sign == blamed.sign and last_line(end) == last_line(blamed)
    return end.rank != blamed.rank and end.how in ("failed", "refused") and alike
