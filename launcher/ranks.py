"""The ranks of a run as seen from outside: start them, hear how each ended, stop or kill them.

Two ways to have ranks, plain processes (`processes.py`) and Ray actors (`actors.py`), and one way to run in them:
`run_reporting`, which turns whatever happens to a rank into an `End`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from launcher.config import RunConfig
from parallel.errors import InputError

How = Literal["done", "stopped", "refused", "failed", "died"]
BY_BLAME: tuple[How, ...] = ("refused", "died", "failed")  # what came first, when a fault took all ranks with it
ECHOES = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


@dataclass(frozen=True)
class End:
    """How one rank ended.

    Attributes:
        rank: which.
        how: "refused" is an InputError, "failed" an exception, "died" an end without a word.
        step: the last one, if it is known.
        message: a traceback, the signal, or empty.
        refusal: rule, value and remedy of an InputError.
    """

    rank: int
    how: How
    step: int = 0
    message: str = ""
    refusal: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class Where:
    """A rank's process, for py-spy, kill and the record of the run."""

    rank: int
    node: str
    pid: int


class Ranks(Protocol):
    """All ranks of one attempt."""

    def start(self, config: RunConfig) -> list[Where]:
        """Start them; says where each of them is."""

    def poll(self, seconds: float) -> list[End] | None:
        """Wait at most so long; all ends once there is nothing more to wait for, else None."""

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""

    def kill(self) -> None:
        """End them now."""

    def close(self) -> None:
        """Give everything back."""


def run_reporting(config: RunConfig, rank: int, work: Callable[[], tuple[int, bool]]) -> End:
    """Run `work`, which gives (last step, stopped), and say how it ended."""
    try:
        step, stopped = work()
        return End(rank, "stopped" if stopped else "done", step)
    except InputError as error:
        return End(rank, "refused", message=str(error), refusal=(error.rule, error.value, error.remedy))
    except BaseException:  # it is reported, not swallowed: the supervisor decides
        return End(rank, "failed", message=traceback.format_exc())


def culprit(ends: Sequence[End]) -> End | None:
    """The rank that the others fell over; None if all ended well.

    A rank that was refused or died without a word comes before one that only lost its peer.
    """
    for how in BY_BLAME:
        found = [e for e in ends if e.how == how]
        own = [e for e in found if not any(echo in e.message for echo in ECHOES)]
        if own or found:
            return (own or found)[0]
    return None
