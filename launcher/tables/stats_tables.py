"""`longreel data stats`: what is in a dataset, as tables that fit a terminal of 80 columns.

    frames     least  5 %  25 %  median  75 %  95 %  most   ▁▂▃▅▇█▇▅▃▂▁

Quantiles first, because `data.frames`, `data.size` and `data.pack_tokens` are chosen by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from data.statistics.index_columns import QUANTILES, Spread
from data.statistics.stats import LengthRow, Stats
from launcher.core.text import duration, size_text

BARS = " ▁▂▃▄▅▆▇█"
BAR_CELLS = 16
MOST_SOURCES = 10
UNITS_IN_NAMES = ("frames", "s", "bytes", "frames a second")
NEAR_EMPTY = 0.01  # of the samples


def render(name: str, found: Stats, tokens: str) -> Group:
    """The tables.

    Args:
        name: of the dataset.
        found: its figures.
        tokens: how clips were taken to become tokens, in words.
    """
    parts: list[RenderableType] = [_head(name, found), "", _spreads(found.spreads), _units(found)]
    parts += [_sources(found), "", _filled(found)]
    if found.sizes:
        parts += ["", _sizes(found), SIZES_SAY]
    if found.lengths:
        parts += ["", _lengths(found.lengths, tokens), LENGTHS_SAY]
    return Group(*parts)


def compact(value: float) -> str:
    """Two or three digits: 0.012, 812, 12.3k, 456M."""
    for suffix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{value:.{3 if abs(value) >= 0.1 else 2}g}{suffix}"
        value /= 1000
    return f"{value:.3g}P"


def bars(counts: npt.NDArray[np.int64], cells: int = BAR_CELLS) -> str:
    """A histogram in one line; what is not empty shows at least the lowest bar."""
    edges = np.linspace(0, len(counts), min(cells, len(counts)) + 1).round().astype(int)
    sums = np.array([counts[a:b].sum() for a, b in pairwise(edges.tolist())])
    levels = np.ceil(sums / max(1, sums.max()) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels.tolist())


def _table(title: str, *columns: str) -> Table:
    found = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    found.padding = (0, 1, 0, 0)
    for number, column in enumerate(columns):
        found.add_column(column, justify="right" if number else "left", no_wrap=True)
    return found


def _head(name: str, found: Stats) -> str:
    kinds = ", ".join(f"{g.samples:,} {g.name or 'text alone'}" for g in found.media)
    whole = f"{found.samples:,} samples ({escape(kinds)}), {found.frames:,} frames, {duration(found.seconds)} of video"
    shards = "1 shard" if found.shards == 1 else f"{found.shards:,} shards"
    return f"[bold]{escape(name)}[/]\n{whole}, {size_text(found.bytes)} in {shards}"


def _spreads(spreads: Sequence[Spread]) -> Table:
    table = _table("spread", "", "least", "5 %", "25 %", "median", "75 %", "95 %", "most", "")
    table.columns[-1].justify = "left"
    for one in spreads:
        if one.histogram is not None:
            table.add_row(one.name, *map(compact, one.quantiles), f"[blue]{bars(one.histogram.counts)}[/]")
    return table


def _units(found: Stats) -> str:
    names: dict[str, list[str]] = {}
    for one in found.spreads:
        if one.known and one.unit not in UNITS_IN_NAMES:
            names.setdefault(one.unit, []).append(one.name)
    some = [f"{', '.join(same)}: {unit}" for unit, same in names.items()]
    part = [f"{one.name} {one.known:,}" for one in found.spreads if 0 < one.known < found.samples]
    known = f"\n[dim]only some samples have: {', '.join(part)}[/]" if part else ""
    return f"[dim]{'; '.join(some)}[/]{known}\n" if some or known else ""


def _sources(found: Stats) -> Table:
    table = _table("source (first folder of the file)", "", "samples", "", "frames", "video", "bytes")
    for group in found.sources[:MOST_SOURCES]:
        share = f"{100 * group.samples / found.samples:.1f} %"
        figures = compact(group.frames), duration(group.seconds), size_text(group.bytes)
        table.add_row(escape(group.name) or "[dim]no folder[/]", f"{group.samples:,}", share, *figures)
    rest = found.sources[MOST_SOURCES:]
    if rest:
        table.add_row(f"[dim]{len(rest):,} more[/]", f"{sum(group.samples for group in rest):,}")
    return table


def _filled(found: Stats) -> str:
    shares = [f"{name} {_share(share)}" for name, share in found.filled.items()]
    empty = [name for name, share in found.filled.items() if share < NEAR_EMPTY]
    warning = f"\n[yellow]empty or nearly so: {', '.join(empty)}[/]" if empty else ""
    return f"filled: {', '.join(shares)}{warning}"


def _share(share: float) -> str:
    if 0 < share < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < share < 1 else f"{100 * share:.3g} %"


def _sizes(found: Stats) -> Table:
    ends = [str(b - 1) for b in found.bands[1:]]
    names = [f"{a}-{b}" if str(a) != b else b for a, b in zip(found.bands, ends, strict=False)]
    names.append(f"{found.bands[-1]}-" if found.bands[-1] > 1 else "1")
    table = _table(
        "size (height x width): samples by number of frames; as data.size", "", *names, "all", "enlarged", "cut off"
    )
    for row in found.sizes:
        lengths = (compact(n) if n else "[dim]·[/]" for n in row.lengths.tolist())
        effect = _share(row.enlarged), _share(row.cut)
        table.add_row(f"{row.height}x{row.width}", *lengths, compact(row.samples), *effect)
    rest = sum(group.samples for group in found.media if group.name) - sum(row.samples for row in found.sizes)
    if rest > 0:
        table.add_row("[dim]other[/]", *[""] * len(names), compact(rest), "", "")
    return table


SIZES_SAY = """[dim]enlarged: share of all samples that data.size = this size would enlarge; \
cut off: share of the picture that its crop would lose.[/]"""


def _lengths(lengths: Sequence[LengthRow], tokens: str) -> Table:
    heads = ["data.frames", "as long", "used", "5 %", "median", "95 %", "longest", "epoch"]
    small = any(row.too_small for row in lengths)
    table = _table(f"tokens of a sample, {escape(tokens)}", *heads, *["too small"] * small)
    for row in lengths:
        _, low, _, median, _, high, most = row.tokens or [None] * len(QUANTILES)
        figures = ["-" if v is None else compact(v) for v in (low, median, high)]
        figures += ["-" if most is None else f"{most:,.0f}", compact(row.total)]
        reach = ["all" if row.frames is None else str(row.frames), _share(row.as_long), _share(row.used)]
        table.add_row(*reach, *figures, *[f"{row.too_small:,}"] * small)
    return table


LENGTHS_SAY = """[dim]as long: share of samples with so many frames; used: share of all frames that an epoch sees.
data.pack_tokens must hold the longest sample, and is filled best by several.[/]"""
