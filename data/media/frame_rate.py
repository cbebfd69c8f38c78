"""Frame rates: stretches of one rate in the time stamps of a file, and which frame is shown at each beat of it.

    steps      . . . . . ------------------------------ . . . . - - - - - - - - -
    stretches  |   25    |  a pause: nothing is shown   |  25   |       5        |

    time       0   1   2   3   4   5   6   7      in beats of the rate
    frames     a       b c         d   e
    shown      a   a   b   c   c   d   e          each frame at least once, a held one as often as it lasts

No single rate is true of a whole file: the mean is moved by one outlier, the usual rate drops a burst. So a step that
is much longer than those around it ends a stretch, and a stretch whose steps are of two kinds is divided between them.
Frames that keep within one beat of an even rate (time stamps rounded to milliseconds, 24 frames in 30 beats) are shown
once each. Any others are shown at the rate of the quicker ones that makes at most twice as many beats of them; where
none does and nothing can be divided, held frames are cut short. No frame is ever dropped, and when each is shown is
told by its time stamp (`data.media.timeline`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LARGEST_DENOMINATOR = 1001
USUAL = 0.15  # durations that differ by less from a typical one count as usual
SLACK = 1e-6  # of a beat, for rounding
PAUSE_SECONDS, PAUSE_STEPS = 2.0, 8  # a step longer than both is a pause
AROUND = 8  # steps before and behind, that say what is usual
MOST_BEATS = 2  # a frame, on average
QUICK = (0.1, 0.25, 0.5)  # quantiles of the steps whose rate is tried
LEAST_STEPS = 8  # of a stretch that is divided off
RUN = 8  # steps too short for a beat, in a row: these are a stretch of their own
UNLIKE = 1.5  # times, by which the typical steps on both sides of a division differ
ROUND = 0.02  # of a rate that is no plain one: what frames that are not even keep to is no exact number


@dataclass(frozen=True, eq=False)
class Stretch:
    """Frames of one rate.

    Attributes:
        rows: of the file, one for each beat; every row of the stretch is among them, in order.
        fps: beats a second.
        seconds: [beats] when each is shown.
        even: whether each row has one beat.
        pause: seconds between this stretch and the one before it, if that is why it begins; else 0.
    """

    rows: Sequence[int]
    fps: Fraction
    seconds: Floats
    even: bool
    pause: float = 0.0

    def part(self, start: int, stop: int) -> Stretch:
        """Beats [start, stop)."""
        return Stretch(self.rows[start:stop], self.fps, self.seconds[start:stop], self.even)

    def of_rows(self, start: int, stop: int) -> Stretch:
        """The beats of rows [start, stop) of the file."""
        return self.part(bisect_left(self.rows, start), bisect_left(self.rows, stop))


def rate_of(pts: Sequence[int], time_base: Fraction, declared: Fraction | None) -> tuple[Fraction, bool]:
    """(frames per second, whether the frames are even) of time stamps, ascending, in units of `time_base` seconds.

    `declared` is what the container says; it is believed if the frames keep to it. Of frames that are not even it is
    the rate of the usual one.
    """
    if len(pts) < 2:
        return declared or Fraction(1), True
    seconds = _seconds(pts, time_base)
    even = _even(seconds, time_base, declared)
    return (even, True) if even else (_usual(np.diff(seconds), 0.5, time_base), False)


def stretches(pts: Sequence[int], time_base: Fraction, declared: Fraction | None) -> list[Stretch]:
    """The rows of a file as stretches of one rate each, end to end; their seconds are counted from row 0.

    Args:
        pts: time stamps, ascending, in units of `time_base` seconds.
        declared: as of `rate_of`.
    """
    seconds = _seconds(pts, time_base)
    steps = np.maximum(np.diff(seconds), float(time_base) / 4)
    ends = [row + 1 for row in pauses(steps)]
    found: list[Stretch] = []
    for a, b in pairwise([0, *ends, len(seconds)]):
        for number, (c, d, fps, most) in enumerate(_divided(seconds[a:b], time_base, declared)):
            begin = a + c
            pause = float(steps[begin - 1]) if begin and not number else 0.0
            found.append(_stretch(seconds[begin : a + d], begin, fps, most, pause))
    return found


def pauses(steps: Floats) -> list[int]:
    """Which steps are pauses: much longer than those around them. Of several in a row, the first and the last."""
    if not (steps > PAUSE_SECONDS).any():
        return []
    padded = np.pad(steps, AROUND, constant_values=np.nan)
    around = np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, 2 * AROUND + 1), axis=1)
    long = steps > np.maximum(PAUSE_SECONDS, PAUSE_STEPS * around)
    inside = long & np.append(False, long[:-1]) & np.append(long[1:], False)
    return [int(row) for row in np.flatnonzero(long & ~inside)]


def beats(steps: Floats, fps: Fraction, most: int | None = None) -> list[int]:
    """How many beats each frame is shown, one at least, `most` at most; the last, which has no step, one.

    Half a beat that is over, or missing, is carried on to the next frame; more is let go.
    """
    counts, over = [], 0.0
    for step in (steps * float(fps)).tolist():
        over += step
        count = max(1, round(over))
        count = count if most is None else min(count, most)
        counts.append(count)
        over = over - count if abs(over - count) <= 0.5 else 0.0
    return [*counts, 1]


def _divided(
    seconds: Floats, time_base: Fraction, declared: Fraction | None
) -> Iterator[tuple[int, int, Fraction, int | None]]:
    """(first row, row after the last, rate, most beats of a frame, 1 where even) of stretches without a pause."""
    if len(seconds) < 2:
        yield 0, len(seconds), declared or Fraction(1), 1
        return
    even = _even(seconds, time_base, declared)
    if even:
        yield 0, len(seconds), even, 1
        return
    steps = np.maximum(np.diff(seconds), float(time_base) / 4)
    rate = next((r for q in QUICK if _fits(steps, r := _usual(steps, q, time_base))), None)
    at = _divide(steps) if rate is None or _longest_run(steps * float(rate) < 1 / UNLIKE) >= RUN else None
    if at is None:
        yield 0, len(seconds), rate or _usual(steps, 0.5, time_base), None if rate else MOST_BEATS
        return
    for a, b in ((0, at), (at, len(seconds))):
        yield from ((a + c, a + d, fps, most) for c, d, fps, most in _divided(seconds[a:b], time_base, declared))


def _stretch(seconds: Floats, start: int, fps: Fraction, most: int | None, pause: float) -> Stretch:
    if most == 1:
        return Stretch(range(start, start + len(seconds)), fps, seconds, True, pause)
    counts = beats(np.diff(seconds), fps, most)
    rows = np.repeat(np.arange(len(seconds)), counts)
    again = np.arange(len(rows)) - np.repeat(np.cumsum([0, *counts[:-1]]), counts)  # beats since the frame began
    held = np.minimum(seconds[rows] + again / float(fps), np.append(seconds[1:], np.inf)[rows])
    return Stretch((start + rows).tolist(), fps, held, False, pause)


def _fits(steps: Floats, rate: Fraction) -> bool:
    return sum(beats(steps, rate)) <= MOST_BEATS * (len(steps) + 1)


def _divide(steps: Floats) -> int | None:
    """The row at which steps of another kind begin; None if there is no such row."""
    if len(steps) < 2 * LEAST_STEPS:
        return None
    logs = np.log(steps)
    sums, count = np.cumsum(logs), np.arange(1, len(logs) + 1)
    left, right = sums[:-1] / count[:-1], (sums[-1] - sums[:-1]) / count[-2::-1]
    gain = (left - right) ** 2 * count[:-1] * count[-2::-1]  # less squares from two means than from one
    inner = gain[LEAST_STEPS - 1 : len(gain) - LEAST_STEPS + 1]
    at = int(np.argmax(inner)) + LEAST_STEPS
    near = np.median(logs[max(0, at - RUN) : at]) - np.median(logs[at : at + RUN])
    return at if abs(near) > np.log(UNLIKE) else None


def _longest_run(short: npt.NDArray[np.bool_]) -> int:
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], short, [False]]).astype(np.int8)))
    return int((bounds[1::2] - bounds[::2]).max(initial=0))


def _even(seconds: Floats, time_base: Fraction, declared: Fraction | None) -> Fraction | None:
    """The rate that frames keep to."""
    length = seconds[-1] - seconds[0]
    mean = _plain((len(seconds) - 1) / length, float(time_base) / length)
    return next((rate for rate in (declared, mean) if rate and _keeps(seconds, rate)), None)


def _usual(steps: Floats, quantile: float, time_base: Fraction) -> Fraction:
    """The rate of steps about as long as one that is longer than `quantile` of them."""
    typical = np.sort(steps)[int(len(steps) * quantile)]
    rounding = min(1.01 * float(time_base), 2 * USUAL * typical)
    usual = steps[np.abs(steps - typical) < max(USUAL * typical, rounding)]
    rate = _plain(float(1 / usual.mean()), float(time_base / usual.sum()))
    whole = round(rate)
    return Fraction(whole) if rate.denominator not in (1, 1001) and abs(whole - rate) < ROUND * rate else rate


def _seconds(pts: Sequence[int], time_base: Fraction) -> Floats:
    stamps = np.asarray(pts, np.int64)
    return np.asarray((stamps - stamps[0]) * float(time_base))


def _plain(rate: float, error: float) -> Fraction:
    """A rate known up to a relative error: a whole number, or one over 1.001, or the nearest fraction."""
    for factor in (Fraction(1), Fraction(1000, 1001)):
        plain = max(1, round(rate / factor)) * factor
        if abs(rate / float(plain) - 1) <= max(error, SLACK):
            return plain
    if rate < 1:
        return 1 / Fraction(1 / rate).limit_denominator(LARGEST_DENOMINATOR)
    return Fraction(rate).limit_denominator(LARGEST_DENOMINATOR)


def _keeps(seconds: Floats, rate: Fraction) -> bool:
    """Whether one phase exists at which every beat sees the next frame, and most steps are about a beat."""
    place = (seconds - seconds[0]) * float(rate)
    late, steps = place - np.arange(len(seconds)), np.diff(place)
    about = np.mean((steps > 0.25) & (steps < 4))
    return bool(late.max() - late.min() < 1 - SLACK and about >= 0.75)
