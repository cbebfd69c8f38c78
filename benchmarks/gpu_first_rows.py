"""What a part of `gpu_first` is given, and what it says: one row at a time, so that a kill costs the rest alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

MARK = "gpu_first row "
Status = Literal["ok", "wrong", "measured", "left out", "cut short"]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: was tried.
        found: in figures, for a person.
        status: "ok" and "wrong" are of a comparison; "measured" has nothing to compare with; "left out" says
            why; "cut short" had no time of all parts left.
        figures: for a script.
    """

    what: str
    found: str
    status: Status = "measured"
    figures: dict[str, Any] = field(default_factory=dict)

    def tell(self) -> None:
        """To the process that started us."""
        print(MARK + json.dumps(asdict(self)), flush=True)


@dataclass(frozen=True)
class Case:
    """Where and how large.

    Attributes:
        kind: "cuda" or "cpu".
        small: everything in miniature.
        ends: when the part is killed, on the clock of `time.monotonic`.
    """

    kind: str
    small: bool
    ends: float

    @property
    def device(self) -> torch.device:
        """The one GPU, or the CPU."""
        import torch

        return torch.device(self.kind, 0) if self.kind == "cuda" else torch.device("cpu")

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def scaled(self, whole: int, small: int) -> int:
        """A size."""
        return small if self.small else whole


@dataclass(frozen=True)
class Part:
    """A question, answered in a process of its own.

    Attributes:
        name: for --parts.
        asks: what.
        seconds: that it may take on a GPU.
        needs: modules, beside torch and numpy.
        work: gives the rows.
    """

    name: str
    asks: str
    seconds: float
    needs: tuple[str, ...]
    work: Callable[[Case], Iterator[Row]]

    def missing(self) -> list[str]:
        """Of the modules that it needs."""
        return [name for name in self.needs if find_spec(name) is None]


def seconds_of(work: Callable[[], object], device: torch.device, rounds: int = 3) -> float:
    """The median of some rounds after one that warms up; of one round alone if it is asked for one."""
    import statistics

    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    took = []
    for _ in range(rounds + (rounds > 1)):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:] or took)


def tflops(work: float, seconds: float) -> str:
    """Of so much work, readable for a GPU and for a CPU."""
    return f"{work / seconds / 1e12:.3g} TFLOP/s"
