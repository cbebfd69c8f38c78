"""How benchmarks/data.py measures: ways take turns, CPU-seconds count, and ratios are of the same round."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Rates = dict[str, list[float]]  # of each way, by round


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        ours, peer: medians over rounds, in `unit`.
        ratio: ours to the peer, median of the rounds; of a figure without a peer, the figure itself.
        goal: for the ratio; None if it is only to be known.
        better: whether the ratio should be above or below its goal.
        rounds: what each round gave.
    """

    part: str
    what: str
    unit: str
    ours: float
    peer: float | None = None
    ratio: float | None = None
    goal: float | None = None
    better: Literal["above", "below"] = "above"
    note: str = ""
    rounds: Rates = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the goal was; None without a goal."""
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio >= self.goal if self.better == "above" else self.ratio <= self.goal


def cpu_seconds() -> float:
    """That this process, all its threads, and its children that have ended took so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def take_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """What each way did per CPU-second, by round; a way does its work and returns how much that was.

    One round before is not counted, unless there is but one: files come into memory, allocators and codecs warm up.
    Every second round goes backwards, so that no way always follows the same one.
    """
    found: Rates = {name: [] for name in ways}
    for number in range(0 if rounds > 1 else 1, rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            began = cpu_seconds()
            done = ways[name]()
            if number:
                found[name].append(done / (cpu_seconds() - began))
    return found


def compared(
    part: str, what: str, unit: str, found: Rates, ours: str, peer: str, goal: float | None = None, note: str = ""
) -> Row:
    """The row of two ways of `take_turns`."""
    ratio = statistics.median(a / b for a, b in zip(found[ours], found[peer], strict=True))
    rounds = {ours: found[ours], peer: found[peer]}
    one, other = (statistics.median(rates) for rates in rounds.values())
    return Row(part, what, unit, one, other, ratio, goal, "above", note, rounds)


def table(rows: list[Row]) -> str:
    """For people: a line each, under the name of each part."""
    lines, before = [], ""
    for row in rows:
        if row.part != before:
            lines += ["", f"{row.part:80}{'ours':>10}{'peer':>10}{'ratio':>8}{'goal':>8}"]
            before = row.part
        goal = "" if row.goal is None else f"{'>=' if row.better == 'above' else '<='} {row.goal:g}"
        reached = {None: "", True: "reached", False: "NOT reached"}[row.reached]
        cells = "".join(f"{'' if x is None else figure(x):>{w}}" for x, w in ((row.ours, 10), (row.peer, 10)))
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        named = f"  {row.what}, {row.unit}"
        lines.append(f"{named:80}{cells}{ratio:>8}{goal:>8}  {reached}{'  ' + row.note if row.note else ''}".rstrip())
    return "\n".join(lines)


def figure(value: float) -> str:
    """With three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
