"""Frame rates: whether the frames of a file follow an even beat, and which of them are seen at the beats of one.

    time     0   1   2   3   4   5   6   7     in beats of the chosen rate
    frames   a       b c         d   e
    seen     a   a   b c     c   d   e   e     at each beat, the last frame that has begun

A file whose frames keep within one beat of an even one (time stamps rounded to milliseconds, say) is taken as even:
every frame is seen once. Any other is seen at the rate of its usual frame, so that few are lost and pauses are filled
by repeating, unless that would more than double the number of frames: then at the mean rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LARGEST_DENOMINATOR = 1001
USUAL = 0.25  # durations that differ by less from the median count as usual
SLACK = 1e-6  # of a beat, for rounding


def rate_of(pts: Sequence[int], time_base: Fraction, declared: Fraction | None) -> tuple[Fraction, bool]:
    """(frames per second, whether the frames are even) of time stamps, ascending, in units of `time_base` seconds.

    `declared` is what the container says; it is believed if the frames keep to it.
    """
    if len(pts) < 2:
        return declared or Fraction(1), True
    seconds = np.asarray([p - pts[0] for p in pts], np.float64) * float(time_base)
    mean = _plain((len(pts) - 1) / seconds[-1], float(time_base) / seconds[-1])
    for rate in (declared, mean):
        if rate and _keeps(seconds, rate):
            return rate, True
    durations = np.diff(seconds)
    median = np.sort(durations)[len(durations) // 2]
    usual = durations[np.abs(durations - median) < USUAL * median]
    rate = _plain(float(1 / usual.mean()), float(time_base / usual.sum()))
    return (rate if rate <= 2 * mean else mean), False


def seen(pts: Sequence[int], time_base: Fraction, fps: Fraction, start: int, stop: int) -> list[int]:
    """The rows that are seen at the beats of `fps` from row `start` until row `stop` begins; the last lasts a beat."""
    began = np.asarray(pts[start : stop + 1], np.int64)
    seconds = (began - began[0]) * float(time_base)
    end = float(seconds[stop - start]) if stop < len(pts) else float(seconds[-1]) + float(1 / fps)
    beats = np.arange(max(1, round(end * float(fps)))) / float(fps)
    rounding = min(float(time_base), 0.25 / float(fps))  # a frame that begins so little later is seen
    found: list[int] = (start - 1 + np.searchsorted(seconds[: stop - start], beats + rounding, side="right")).tolist()
    return found


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
    """Whether one phase exists at which every beat sees the next frame."""
    late = seconds * float(rate) - np.arange(len(seconds))
    return bool(late.max() - late.min() < 1 - SLACK)
