"""`Timeline`: at which second of its source each row of a clip is shown.

    row      0    1    2    3    4    5    6          knots (0, 2.0 s), (3, 2.3 s), (4, 2.8 s); 10 rows a second
    second  2.0  2.1  2.2  2.3  2.8  2.9  3.0         straight lines between knots, the clip's rate behind the last

Seconds come from time stamps, never from row / rate: one pause, or one change of the rate, would move all that follows.
A clip of an even rate has one knot, 12 bytes in the index; more are kept only where a row would be told wrong by more
than a third of a frame. Seconds count from where a player begins: the first time stamp of the file, of whatever stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

NEAR = 0.05  # of a frame: a clip that begins so near to its first time stamp begins with it
OFF = 0.35  # of a frame, by which a row may be told wrong: 24 frames in 30 beats of an even rate take 0.3
PLACES = 6  # of seconds, after the point
ROUNDING = 0.05  # frames, by which a time may miss one: time stamps are of whole milliseconds


@dataclass(frozen=True)
class Timeline:
    """When the rows of a clip are shown.

    Attributes:
        rows: of the knots, ascending from 0; none of what has no time, such as an image.
        seconds: of the knots, ascending.
        fps: rows a second behind the last knot; 0 of what has no time.
    """

    rows: tuple[int, ...] = ()
    seconds: tuple[float, ...] = ()
    fps: float = 0.0

    def second(self, row: float) -> float:
        """When a row is shown, in seconds of the source; 0 if it has no time."""
        if not self.rows or self.fps <= 0:
            return 0.0
        if row >= self.rows[-1]:
            return self.seconds[-1] + (row - self.rows[-1]) / self.fps
        return float(np.interp(row, self.rows, self.seconds))

    def rows_until(self, second: float) -> float:
        """How many rows lie before a second, with the part of the last one: 2.5 is in the middle of row 2."""
        if not self.rows or self.fps <= 0:
            return float("inf") if second >= 0 else 0.0
        if second >= self.seconds[-1]:
            return self.rows[-1] + (second - self.seconds[-1]) * self.fps
        if second < self.seconds[0]:
            return (second - self.seconds[0]) * self.fps
        return float(np.interp(second, self.seconds, self.rows))

    def part(self, start: int, stop: int) -> Timeline:
        """Of rows [start, stop) alone, counted from 0."""
        inside = [(row - start, s) for row, s in zip(self.rows, self.seconds, strict=True) if start < row < stop]
        knots = [(0, self.second(start)), *inside]
        return Timeline(tuple(row for row, _ in knots), tuple(s for _, s in knots), self.fps) if self.rows else self


STILL = Timeline()  # of an image, or of text


def timeline_of(seconds: Sequence[float] | Floats, fps: float) -> Timeline:
    """The fewest knots found that tell each row well enough.

    Args:
        seconds: [rows] at which each is shown, ascending.
        fps: rows a second, for the most part.
    """
    found = np.asarray(seconds, np.float64)
    if not len(found):
        return STILL
    off = found - np.arange(len(found)) / fps
    if np.abs(off - off[0]).max() * fps <= NEAR:
        return Timeline((0,), (_rounded(found[0]),), fps)
    middle = (off.max() + off.min()) / 2
    if (off.max() - middle) * fps <= OFF:
        return Timeline((0,), (_rounded(middle),), fps)
    rows = _knots(found, OFF / fps)
    return Timeline(tuple(rows), tuple(_rounded(found[row]) for row in rows), fps)


class Timelines:
    """Those of all rows of an index, as columns, so that a million moments are looked up at once.

    Attributes:
        begin: [samples] second of the first stored frame.
        fps: [samples]; 1 of what has no time, which is shown at its beginning.
    """

    def __init__(self, table: pa.Table) -> None:
        """Of a table with the columns `time_rows`, `time_seconds` and `fps`; `start` where the first two are null."""
        rows, seconds = (_whole(table[name]) for name in ("time_rows", "time_seconds"))
        fps = np.nan_to_num(_whole(table["fps"]).to_numpy(zero_copy_only=False).astype(np.float64))
        self.fps = np.where(fps > 0, fps, 1.0)
        self._counts = pa.compute.fill_null(pa.compute.list_value_length(rows), 0).to_numpy().astype(np.int64)
        self._ends = np.cumsum(self._counts)
        self._rows = rows.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        self._seconds = seconds.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        older = rows.is_null().to_numpy(zero_copy_only=False)
        start = np.nan_to_num(_whole(table["start"]).to_numpy(zero_copy_only=False).astype(np.float64))
        self.begin = np.where(older & (fps > 0), start / self.fps, 0.0)
        self._last_row, self._last_second = np.zeros(len(table), np.int64), self.begin.copy()
        known = np.flatnonzero((self._counts > 0) & (fps > 0))
        self.begin[known] = self._seconds[(self._ends - self._counts)[known]]
        self._last_row[known] = self._rows[self._ends[known] - 1]
        self._last_second[known] = self._seconds[self._ends[known] - 1]

    def ends(self, frames: Ints) -> Floats:
        """[samples] when the last of so many stored frames is over."""
        return np.asarray(self._last_second + (frames - self._last_row) / self.fps)

    def rows_until(self, samples: Ints, seconds: Floats) -> Floats:
        """`Timeline.rows_until` of each of these samples; NaN stays NaN."""
        last = self._last_second[samples]
        found = self._last_row[samples] + (seconds - last) * self.fps[samples]
        for at in np.flatnonzero((seconds < last) & (self._counts[samples] > 1)):
            sample = samples[at]
            knots = slice(self._ends[sample] - self._counts[sample], self._ends[sample])
            if seconds[at] < self.begin[sample]:
                found[at] = (seconds[at] - self.begin[sample]) * self.fps[sample]
            else:
                found[at] = np.interp(seconds[at], self._seconds[knots], self._rows[knots])
        return np.asarray(found)

    def between(
        self, samples: Ints, begin: Floats, end: Floats, whole: Ints, stride: int = 1, watched: Bools | bool = False
    ) -> tuple[Ints, Ints]:
        """Frames [first, last) of each of these samples that are shown from `begin` on and not after `end`.

        Of what is watched the frame at `begin` itself was shown in the stretch before, and is not shown again.

        Args:
            samples: rows of the table.
            begin, end: [samples] seconds of the source; NaN for those of the sample.
            whole: [samples] frames of each, every `stride`th counted.
            stride: rows from a frame to the next.
            watched: whether each is, [samples] or one for all.
        """
        until_begin, until_end = (self.rows_until(samples, time) for time in (begin, end))
        after, from_ = np.floor((until_begin + ROUNDING) / stride) + 1, np.ceil((until_begin - ROUNDING) / stride)
        first, last = np.where(watched, after, from_), np.floor((until_end + ROUNDING) / stride) + 1
        first = np.clip(np.where(np.isnan(begin), 0, first), 0, whole).astype(np.int64)
        last = np.clip(np.where(np.isnan(end), whole, last), 0, whole).astype(np.int64)
        return first, np.maximum(last, first)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    found = column.combine_chunks()
    return found.chunk(0) if isinstance(found, pa.ChunkedArray) else found


def _knots(seconds: Floats, tolerance: float) -> list[int]:
    """Rows between which a straight line is nowhere farther than `tolerance` from any: one pass, a cone at a time."""
    knots, low, high = [0], -np.inf, np.inf
    values = seconds.tolist()
    for row in range(1, len(values)):
        steps, rise = row - knots[-1], values[row] - values[knots[-1]]
        if not low <= rise / steps <= high:
            knots.append(row - 1)
            steps, rise, low, high = 1, values[row] - values[row - 1], -np.inf, np.inf
        low, high = max(low, (rise - tolerance) / steps), min(high, (rise + tolerance) / steps)
    return [*knots, len(values) - 1] if knots[-1] < len(values) - 1 else knots


def _rounded(second: float) -> float:
    return round(float(second), PLACES)
