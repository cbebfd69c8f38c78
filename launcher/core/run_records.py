"""What the records of a run say, as far as it can be taken for what it should be: `Steps` and events.

    metrics.jsonl --read_steps--> Steps: one array of numbers for each figure, and how many lines are no step
    events.jsonl  --read_events-> events, and how many lines are none

A record is a file that anybody may have edited, cut or written to. A line that is no JSON, or whose step is a word,
costs itself: it is left out and counted. Arrays, because a run of a million steps has a gigabyte of lines: a line takes
4 us and 150 bytes here, of which its JSON is most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.core.run_folder import MOST_STEPS, Lines, is_event, is_step

CHUNK = 4096  # lines that become numbers together
USUAL = (
    "step", "time", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second", "seconds", "data_seconds",
)  # fmt: skip
MORE = ("flops", "mfu", "memory_bytes", "memory_allocated", "memory_reserved", "memory_total", "memory_rank")
FIGURES = (*USUAL, *MORE)
LARGEST = 1e100  # of a figure; what is larger is as good as infinite
NUMBERS, PRESENT = frozenset((int, float, type(None))), frozenset((int, float))
USUAL_OF = itemgetter(*USUAL)
Row = Mapping[str, Any]
Numbers = npt.NDArray[np.float64]


@dataclass
class Steps:
    """The lines of metrics.jsonl as columns, by rising step; a step that was done twice counts once, as it was last.

    Attributes:
        columns: figure -> [steps], NaN where a line has none, or none that is finite; "samples" counts those named.
        first, last: lines of the first and the last step; empty without any.
        memory_of: what the lines say that their memory is of.
        broken: lines that are no step.
    """

    columns: dict[str, Numbers] = field(default_factory=dict)
    first: Row = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    memory_of: frozenset[str] = frozenset()
    broken: int = 0

    def __len__(self) -> int:
        return len(self.column("step"))

    def column(self, name: str) -> Numbers:
        """One figure of every step; NaN where it is missing or not finite."""
        return self.columns.get(name, np.empty(0))

    def known(self, name: str) -> Numbers:
        """The same without the gaps."""
        column = self.column(name)
        return column[~np.isnan(column)]

    @property
    def done(self) -> int:
        """The last step."""
        return int(self.column("step")[-1]) if len(self) else 0


def read_steps(path: Path) -> Steps:
    """The steps of a record; none if there is no such file."""
    lines, rows, tables = Lines(path), list[list[float | None]](), list[Numbers]()
    known, broken, before = set[str](), 0, object()
    first, last, ends = dict[str, Any](), dict[str, Any](), (float("inf"), float("-inf"))
    for line in lines:
        values = _values(line)
        if values is None:
            broken += 1
            continue
        rows.append(values)
        if len(rows) == CHUNK:
            tables.append(_table(rows))
            rows = []
        step = line["step"]
        if step <= ends[0]:
            first, ends = line, (step, ends[1])
        if step >= ends[1]:
            last, ends = line, (ends[0], step)
        if (of := line.get("memory_of")) != before and len(known) < 4:
            before = of
            known.add(str(of)[:16])
    tables.append(_table(rows))
    columns = {
        name: np.concatenate([table[:, place] for table in tables]) for place, name in enumerate((*FIGURES, "samples"))
    }
    order = _order(columns["step"])
    if order is not None:
        columns = {name: column[order] for name, column in columns.items()}
    return Steps(columns, first, last, frozenset(known), broken + lines.broken)


def read_events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events of a record in the order of their writing, and how many of its lines are none."""
    lines, events, broken = Lines(path), list[dict[str, Any]](), 0
    for line in lines:
        if is_event(line):
            events.append(line)
        else:
            broken += 1
    return events, broken + lines.broken


def _values(line: Row) -> list[Any] | None:
    """The figures of a line and how many samples it names; None if it is no step. Once for each line of a run."""
    try:
        usual = USUAL_OF(line)
        fine = type(usual[0]) is int and 0 <= usual[0] <= MOST_STEPS and PRESENT.issuperset(map(type, usual))
    except KeyError:  # of an older run: some are missing
        fine = False
    if not fine:
        if not is_step(line):
            return None
        usual = tuple(map(line.get, USUAL))
    more = [line.get(name) for name in MORE]
    if not NUMBERS.issuperset(map(type, more)):
        more = [value if type(value) in NUMBERS else None for value in more]
    samples = line.get("samples")
    return [*usual, *more, len(samples) if type(samples) is list else None]


def _table(rows: list[list[Any]]) -> Numbers:
    """[lines, figures] of numbers, NaN for none and for what is not finite."""
    try:
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(FIGURES) + 1)
    except OverflowError:  # a whole number that no float holds
        return _table([[v if v is None or abs(v) < LARGEST else None for v in row] for row in rows])
    with np.errstate(invalid="ignore"):
        table[~(np.abs(table) < LARGEST)] = np.nan
    return table


def _order(steps: Numbers) -> npt.NDArray[np.intp] | None:
    """The places of the lines that count, by rising step; None if that is all of them as they are."""
    if np.all(steps[1:] > steps[:-1]):
        return None
    order: npt.NDArray[np.intp] = np.argsort(steps, kind="stable")
    is_last = np.append(steps[order][1:] != steps[order][:-1], True)
    return np.asarray(order[is_last])
