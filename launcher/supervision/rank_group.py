"""The ranks of a run as seen from outside: start them, hear how each ended, stop or kill them.

Two ways to have ranks, plain processes (`local_ranks.py`) and processes under Ray actors (`ray_ranks.py`), and one way
to run in them: `run_reporting`, which turns whatever happens to a rank into an `End`.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from launcher.config.run_config import RunConfig
from launcher.core.heartbeat import Heartbeat, HeartbeatBoard, Phase
from parallel.errors import InputError

NODE, LINK, HOST = "node", "link", "host"  # a rank's machine died, or cannot be reached; its Ray worker died
LOST = (NODE, LINK, HOST)
UNKNOWN = "a signal"  # nobody is left to say which
How = Literal["done", "stopped", "refused", "failed", "died"]
GRACE_SECONDS = 5.0  # for the others to say what they saw, when the first word is only that a peer is gone
PROMPT_SECONDS = 0.3  # for the others to say what they saw, when the first word tells why
ECHOES = (  # of torch.distributed when a peer is gone; the peer is what matters
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "Broken pipe",
    "Timed out waiting",
    "imed out after",
    "failed to recv",
    "Application timeout caused pair closure",
    "Socket Timeout",
    "The client socket has",
    "ncclRemoteError",
    "NCCL communicator was aborted",
    "collective operation timeout",
)
SPEAKERS = ("gloo", "nccl", "NCCL", "TCPStore", "c10d", "DistNetworkError", "DistStoreError", "DistBackendError")


class NoCapacityError(InputError):
    """The cluster has too few places for the mesh."""


class HeadGoneError(InputError):
    """The head of a cluster does not answer any more."""


class LostError(RuntimeError):
    """Machines or workers went away, or failed, while ranks were being started.

    Args:
        what: happened, in a line.
        trace: of the exception that a worker raised, if that is what happened.
    """

    def __init__(self, what: str, trace: str = "") -> None:
        super().__init__(what)
        self.trace = trace


@dataclass(frozen=True)
class Wait:
    """Places for a run that others hold.

    Attributes:
        needs: of each kind of resource.
        free: now.
        total: when nobody else is there.
    """

    needs: dict[str, int]
    free: dict[str, int]
    total: dict[str, int]

    def __str__(self) -> str:
        kinds = [
            f"{number} {kind}, {self.free[kind]} of {self.total[kind]} {'is' if self.free[kind] == 1 else 'are'} free"
            for kind, number in self.needs.items()
        ]
        return f"waiting for room: takes {' and '.join(kinds)}; starts by itself"


class Seat(NamedTuple):
    """Where a rank sits: the fields of `rendezvous.RankPlace`, which takes torch to import."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str


@dataclass(frozen=True)
class End:
    """How one rank ended.

    Attributes:
        rank: which.
        how: "refused" is an InputError, "failed" an exception, "died" an end without a word.
        step: the last one, or the one in which it happened.
        message: a traceback, the signal, or empty.
        refusal: rule, value and remedy of an InputError.
        phase: in which it happened.
        sign: the name of the exception ("OSError ENOSPC"), the signal ("SIGKILL"), "exit code 3", UNKNOWN, or one of
            LOST.
        time: when it happened, on the clock of its machine.
        for_memory: whether the kernel's memory killer, or Ray's, struck there.
    """

    rank: int
    how: How
    step: int = 0
    message: str = ""
    refusal: tuple[str, str, str] | None = None
    phase: Phase | None = None
    sign: str = ""
    time: float = field(default_factory=time.time)
    for_memory: bool = False


@dataclass(frozen=True)
class Where:
    """A rank's process, for py-spy, kill and the record of the run.

    Attributes:
        rank: which.
        node: Ray's name of the machine; that of the machine itself without Ray.
        host: the machine as people call it.
        pid: of the process on it.
    """

    rank: int
    node: str
    host: str
    pid: int


class Ranks(Protocol):
    """All ranks of one attempt."""

    def place(self, config: RunConfig) -> Wait | None:
        """Hold places for the mesh, which `start` will use; None once they are held. Blocks for a second or two.

        Raises:
            NoCapacityError: the cluster has too few places, whoever holds them.
            LostError: machines went away meanwhile; trying again may help.
            HeadGoneError: there is nobody to ask.
            InputError: a machine cannot be used.
        """

    def start(self, config: RunConfig) -> list[Where]:
        """Start them; says where each of them is.

        Raises:
            LostError: machines went away meanwhile; trying again may help.
        """

    def poll(self, seconds: float) -> list[End] | None:
        """Wait at most so long; the ends, the first first, once there is nothing more to wait for, else None.

        Raises:
            HeadGoneError: there is nobody to ask.
        """

    def heartbeats(self) -> dict[int, Heartbeat | None]:
        """Where each rank is; None for one that did not answer since the last call. Blocks for a second at most."""

    def last(self, rank: int) -> Heartbeat | None:
        """Where a rank was when it was last seen, alive or dead; None if nobody knows."""

    def state(self, rank: int) -> str:
        """What its machine says of a rank's process, such as "T (stopped)", or that the machine does not answer."""

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """What the threads of these ranks are doing: told by themselves, or seen from outside."""

    def capacities(self, in_all: bool = False) -> tuple[int, ...] | None:
        """Ranks that each node has room for, those of this run included; None where that cannot change.

        Args:
            in_all: also where other runs are.
        """

    def kind(self) -> Literal["cuda", "cpu"]:
        """What they compute on."""

    def stop(self) -> None:
        """Ask for a checkpoint and an end after the current step."""

    def kill(self) -> None:
        """End them now, stopped ones too."""

    def close(self) -> None:
        """Give everything back."""


def run_reporting(
    rank: int,
    work: Callable[[], tuple[int, bool]],
    heartbeat: HeartbeatBoard,
    tell: Callable[[End], None] = lambda end: None,
) -> End:
    """Run `work`, which gives (last step, stopped), and say how it ended.

    `tell` hears it while the error still holds what `work` had: to let go of that may take long, since data that are
    being read ahead are read to the end of a step.
    """
    try:
        step, stopped = work()
    except InputError as error:
        at = heartbeat.read()
        refusal = (error.rule, error.value, error.remedy)
        end = End(rank, "refused", at.step, str(error), refusal, at.phase, "InputError")
        tell(end)
    except BaseException as error:  # it is reported, not swallowed: the supervisor decides
        at = heartbeat.read()
        end = End(rank, "failed", at.step, traceback.format_exc(), None, at.phase, sign_of(error))
        tell(end)
    else:
        end = End(rank, "stopped" if stopped else "done", step)
        tell(end)
    return end


def sign_of(error: BaseException) -> str:
    """The name of an exception, with the system's name of its number if it has one."""
    number = errno.errorcode.get(getattr(error, "errno", None) or 0, "")
    return f"{type(error).__name__} {number}".strip()


def is_bad(end: End) -> bool:
    """Whether the attempt failed with it."""
    return end.how not in ("done", "stopped")


def is_echo(end: End) -> bool:
    """Whether a rank only says that it lost its peers."""
    words = any(echo in end.message for echo in ECHOES)
    return end.how == "failed" and words and any(speaker in end.message for speaker in SPEAKERS)


def culprit(ends: Sequence[End]) -> End | None:
    """The rank that the others fell over; None if all ended well.

    A refusal comes first, then whatever happened first, and last of all those that only lost their peers.
    """
    bad = [end for end in ends if is_bad(end)]
    return min(bad, key=lambda e: (e.how != "refused", is_echo(e), e.time, e.rank), default=None)


def settled(ends: Sequence[End], ranks: int, seconds: float) -> bool:
    """Whether it is clear how an attempt ended.

    Args:
        ends: so far.
        ranks: that run.
        seconds: since the first of them ended badly.
    """
    if len(ends) == ranks:
        return True
    bad = [end for end in ends if is_bad(end)]
    told = any(not is_echo(end) for end in bad)
    return bool(bad) and seconds >= (PROMPT_SECONDS if told else GRACE_SECONDS)
