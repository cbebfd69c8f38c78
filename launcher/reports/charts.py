"""Curves over steps as inline SVG: no library, no image file, readable from a phone to a wide screen.

      0.8 |.            the SVG stretches with the page and holds lines alone (strokes keep their width);
          | `.__        labels are HTML, placed by per cent, so their size never changes and they never overlap;
      0.2 |____`--      the legend below doubles as the read-out: moving over any chart shows that step on all of them
          0   1k   2k

Long runs are thinned to at most `POINTS` points a curve; what is measured then becomes a band from lowest to highest of
each stretch of steps, so that a spike of one step stays visible. A chart costs 20 to 60 KB of page whatever the length
of the run. Without scripts everything but the read-out works: the switch to a log scale is CSS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

POINTS = 500  # of a curve; a phone shows fewer, a wide screen two pixels each
SMOOTH_PARTS = 40  # the smoothed curve is the mean over this fraction of the run
SIDE = 1000  # of the SVG's own square coordinates
LOG_FIRST = 5  # the log scale comes first if the highest value is this many times the median
FULL_MARKS = 60  # more vertical lines than that become short ticks at the foot of the chart
Numbers = npt.NDArray[np.float64]
MIDDLES: dict[str, Callable[[Numbers], Any]] = {"mean": np.mean, "median": np.median}
Values = Sequence[float | None] | Numbers


@dataclass(frozen=True)
class Curve:
    """One quantity by step.

    Attributes:
        name: in the legend.
        values: one for each step of the chart; None or NaN where there is none.
        look: "mean" and "median" draw the values faint and their moving mean or median over them; "area" fills down
            to zero.
        colour: which of the page's colours, 1 to 3; 3 is that of a limit.
    """

    name: str
    values: Values
    look: Literal["line", "mean", "median", "area"] = "line"
    colour: int = 1


@dataclass(frozen=True)
class Mark:
    """A vertical line.

    Attributes:
        step: where.
        kind: its name in the legend, and its look: "checkpoint", "resume" or "failure".
    """

    step: float
    kind: Literal["checkpoint", "resume", "failure"]


@dataclass(frozen=True)
class Scale:
    """The vertical axis: values from `low` at the foot to `high` at the top."""

    low: float
    high: float
    log: bool = False

    def height(self, value: float) -> float:
        """From 0 at the foot to 1 at the top."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values inside."""
        if self.log and self.high / self.low > 4:
            return _log_ticks(self.low, self.high)
        return round_ticks(self.low, self.high, 5)


def chart(
    title: str,
    steps: Sequence[int] | Numbers,
    curves: Sequence[Curve],
    unit: str = "",
    marks: Sequence[Mark] = (),
    log: bool = False,
    zero: bool = False,
) -> str:
    """A `<figure>` of curves over steps.

    Args:
        title: above it.
        steps: rising; each curve has as many values.
        curves: drawn in this order.
        unit: of the values, beside the title.
        marks: vertical lines.
        log: offer a log scale where the values allow it; it is the first choice if they span much.
        zero: the axis begins at zero.
    """
    there = [numbers(curve.values) for curve in curves]
    there = [values[~np.isnan(values)] for values in there]
    shown = [float(end(values)) for values in there if len(values) for end in (np.min, np.max)]
    head = f"<b>{escape(title)}</b> <span class=soft>{escape(unit)}</span>"
    if not shown:
        return f'<figure class="card chart"><figcaption>{head}</figcaption><p class=soft>no values yet</p></figure>'
    buckets = thin(len(steps))
    lines = [line for curve in curves for line in _lines(curve, buckets)]
    offer_log = log and min(shown) > 0 and max(shown) > 1.5 * min(shown)
    scales = [linear_scale(shown, zero)] + ([log_scale(shown)] if offer_log else [])
    switch = ""
    if offer_log:
        checked = " checked" if max(shown) > LOG_FIRST * float(np.median(np.concatenate(there))) else ""
        switch = f"<label class=switch><input type=checkbox{checked}> log scale</label>"
    xs = [int(steps[b.stop - 1]) for b in buckets]
    plots = "".join(_plot(title, xs, lines, scale, marks) for scale in scales)
    data = json.dumps({"steps": xs, "values": [line.shown() for line in lines]}, separators=(",", ":"))
    return (
        f'<figure class="card chart" data-points="{escape(data)}"><figcaption>{head}'
        f"<span class=at>step {xs[-1]:,}</span>{switch}</figcaption>"
        f"{plots}<p class=legend>{_legend(lines, marks)}{_gaps(curves)}</p></figure>"
    )


@dataclass(frozen=True)
class _Line:
    """One drawn line: for each point the lowest and highest value of its steps, and their mean."""

    name: str
    look: str
    points: Sequence[tuple[float, float, float] | None]

    def shown(self) -> list[float | None]:
        """The means, as the read-out gives them."""
        return [None if p is None else float(f"{p[2]:.6g}") for p in self.points]


def numbers(values: Values) -> Numbers:
    """As an array, NaN for none."""
    return np.asarray(values, dtype=np.float64)


def thin(count: int, points: int = POINTS) -> list[range]:
    """`count` steps as at most `points` stretches of nearly equal length."""
    parts = min(count, points)
    return [range(i * count // parts, (i + 1) * count // parts) for i in range(parts)]


def smooth(
    values: Values, buckets: Sequence[range], window: int, middle: Callable[[Numbers], Any] = np.mean
) -> list[float | None]:
    """For each stretch the middle of its values and of those up to `window` // 2 to each side of it."""
    reach, all_ = window // 2, numbers(values)
    around = (all_[max(0, b.start - reach) : b.stop + reach] for b in buckets)
    known = (a[~np.isnan(a)] for a in around)
    return [float(middle(a)) if len(a) else None for a in known]


def thinning(count: int) -> int:
    """How many steps a point of a chart stands for."""
    return max((len(b) for b in thin(count)), default=1)


def window_of(count: int) -> int:
    """How many steps the smoothed curve averages; an odd number."""
    return max(5, count // SMOOTH_PARTS) | 1


def linear_scale(values: Sequence[float], zero: bool) -> Scale:
    """A scale with a little room around the values."""
    low, high = min(values), max(values)
    flat = high - low < 1e-9 * max(abs(high), abs(low))
    margin = (0.1 * abs(high) if flat else 0.06 * (high - low)) or 1.0
    if zero and low >= 0:
        return Scale(0.0, (high + 0.06 * high) or 1.0)
    return Scale(low - margin, high + margin)


def log_scale(values: Sequence[float]) -> Scale:
    """The same with equal factors at equal distances."""
    low, high = min(values), max(values)
    margin = (high / low) ** 0.06
    return Scale(low / margin, high * margin, log=True)


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high], about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m, limit in ((1, 1.42), (2, 3.17), (5, 7.08), (10, 11)) if rough < limit * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def label(value: float) -> str:
    """A tick in at most six characters: 0.25, 1,200, 15k, 2.5M, 3e-5."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for limit, divisor, suffix in ((1e4, 1.0, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M"), (1e12, 1e9, "G")):
        if size < limit:
            text = f"{value / divisor:.4g}"
            return (f"{value:,.0f}" if size >= 1e3 and not suffix else text) + suffix
    return f"{value:.2g}"


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**d for d in decades for m in multiples if low <= m * 10.0**d <= high]
        if len(ticks) <= 7:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 6)]


def _lines(curve: Curve, buckets: Sequence[range]) -> Iterator[_Line]:
    spans: list[tuple[float, float, float] | None] = []
    values = numbers(curve.values)
    for bucket in buckets:
        part = values[bucket.start : bucket.stop]
        part = part[~np.isnan(part)]
        spans.append((float(part.min()), float(part.max()), float(part.mean())) if len(part) else None)
    colour = f"c{curve.colour}"
    if curve.look not in MIDDLES:
        yield _Line(curve.name, f"{colour} {curve.look}", spans)
        return
    band = " band" if any(len(b) > 1 for b in buckets) else ""
    yield _Line(curve.name, f"{colour} faint{band}", spans)
    window = window_of(len(values))
    middles = smooth(values, buckets, window, MIDDLES[curve.look])
    yield _Line(
        f"{curve.look} of {window} steps", f"{colour} line", [None if m is None else (m, m, m) for m in middles]
    )


def _plot(title: str, xs: Sequence[int], lines: Sequence[_Line], scale: Scale, marks: Sequence[Mark]) -> str:
    first, last = (xs[0], xs[-1]) if xs[-1] > xs[0] else (xs[0] - 1, xs[0] + 1)
    at = [(x - first) / (last - first) for x in xs]
    ticks = scale.ticks()
    names = [t for t in round_ticks(first, last, 5) if t == int(t)]
    shapes = "".join(f'<path class=grid d="M0 {_y(scale, t)}H{SIDE}"/>' for t in ticks)
    shapes += _mark_lines(marks, first, last)
    shapes += "".join(f'<path class="{line.look}" d="{_path(at, line, scale)}"/>' for line in lines)
    y_labels = "".join(f'<span class=y style="bottom:{100 * scale.height(t):.2f}%">{label(t)}</span>' for t in ticks)
    x_labels = "".join(
        f'<span class=x style="left:{100 * (t - first) / (last - first):.2f}%">{label(t)}</span>' for t in names
    )
    dots = "".join(f'<i class="dot {line.look}"></i>' for line in lines)
    spoken = f"{title} over steps {xs[0]} to {xs[-1]}, between {label(scale.low)} and {label(scale.high)}"
    return (
        f'<div class="plot {"log" if scale.log else "linear"}" tabindex=0'
        f' data-x="{first},{last}" data-y="{scale.low!r},{scale.high!r}">'
        f'<svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio=none role=img aria-label="{escape(spoken)}">'
        f"{shapes}</svg>{y_labels}{x_labels}<i class=cross></i>{dots}</div>"
    )


def _y(scale: Scale, value: float) -> str:
    return f"{SIDE * (1 - scale.height(value)):.1f}"


def _path(at: Sequence[float], line: _Line, scale: Scale) -> str:
    """SVG path of a line; each gap begins a new piece, and a piece of one point is a dot."""
    pieces: list[list[tuple[str, tuple[float, float, float]]]] = [[]]
    for x, point in zip(at, line.points, strict=True):
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append((f"{SIDE * x:.1f}", point))
    draw = _band if "band" in line.look else _trace
    return "".join(draw(piece, line.look, scale) for piece in pieces if piece)


def _band(piece: Sequence[tuple[str, tuple[float, float, float]]], look: str, scale: Scale) -> str:
    """Along the highest values and back along the lowest."""
    there = "L".join(f"{x} {_y(scale, high)}" for x, (_, high, _) in piece)
    back = "L".join(f"{x} {_y(scale, low)}" for x, (low, _, _) in reversed(piece))
    return f"M{there}L{back}Z"


def _trace(piece: Sequence[tuple[str, tuple[float, float, float]]], look: str, scale: Scale) -> str:
    """Along the means; an area goes on down to the foot."""
    line = "L".join(f"{x} {_y(scale, mean)}" for x, (_, _, mean) in piece)
    if "area" in look:
        return f"M{piece[0][0]} {SIDE}L{line}V{SIDE}Z"
    return f"M{line}" + ("h.1" if len(piece) == 1 else "")


def _mark_lines(marks: Sequence[Mark], first: float, last: float) -> str:
    spots = dict.fromkeys(
        (mark.kind, round(SIDE * min(1.0, max(0.0, (mark.step - first) / (last - first))), -1)) for mark in marks
    )
    top = {kind: 0 if _count(marks, kind) <= FULL_MARKS else 0.94 * SIDE for kind, _ in spots}
    return "".join(f'<path class="mark {kind}" d="M{x:g} {SIDE}V{top[kind]:g}"/>' for kind, x in spots)


def _count(marks: Sequence[Mark], kind: str) -> int:
    return sum(mark.kind == kind for mark in marks)


def _legend(lines: Sequence[_Line], marks: Sequence[Mark]) -> str:
    last = [_read_out(line.shown()[-1]) for line in lines]
    items = [
        f'<span><i class="key {line.look}"></i>{escape(line.name)} <b class=value>{value}</b></span>'
        for line, value in zip(lines, last, strict=True)
    ]
    for kind in dict.fromkeys(mark.kind for mark in marks):
        items.append(f'<span><i class="key mark {kind}"></i>{kind} <b>{_count(marks, kind)}</b></span>')
    return "".join(items)


def _read_out(value: float | None) -> str:
    """As `say` of the script writes it."""
    if value is None:
        return "-"
    if 0 < abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.3e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _gaps(curves: Sequence[Curve]) -> str:
    missing = {curve.name: int(np.isnan(numbers(curve.values)).sum()) for curve in curves}
    said = "; ".join(f"{count:,} steps have no finite {name}" for name, count in missing.items() if count)
    return f"<span class=soft>{escape(said)}</span>" if said else ""
