"""`Figure`: a number that every sample has or lacks, as one column of the index; how it is spread over the samples.

    index --column--> [rows], NaN where there is none --sort--> quantiles, histogram

One sort serves all quantiles and the histogram: ten million rows of thirteen figures take five seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset.index import Ints
from data.media.timeline import Timelines

Floats = npt.NDArray[np.float64]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 48  # of a histogram, at most
DECADES = 4  # of a logarithmic histogram; what is smaller lies in its first bin
SOURCE = r"^(?P<source>[a-z][a-z0-9+.-]*://[^/]*|/?[^/]*)/"  # the first folder, or the host, of a file


@dataclass(frozen=True)
class Figure:
    """A number that a sample may have.

    Attributes:
        name: one word.
        unit: in words.
        column: table of the index -> [rows], NaN where a sample has none.
        log: it is spread over several powers of ten.
        whole: it is a whole number.
    """

    name: str
    unit: str
    column: Callable[[pa.Table], Floats]
    log: bool = False
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Histogram:
    """`counts[i]` values v have edges[i] <= v < edges[i + 1]; the outer bins take in what lies beyond by rounding."""

    edges: Floats
    counts: Ints


@dataclass(frozen=True, eq=False)
class Spread:
    """How a figure is spread over the samples that have it.

    Attributes:
        name, unit: of the figure.
        known: how many samples have it.
        mean: over them; NaN if there are none.
        quantiles: at `QUANTILES`; empty if there are none.
        histogram: None if there are none.
    """

    name: str
    unit: str
    known: int
    mean: float
    quantiles: tuple[float, ...]
    histogram: Histogram | None


def spread(figure: Figure, values: Floats) -> Spread:
    """How the values, [rows], are spread; what is not finite is none."""
    ordered = np.sort(values[np.isfinite(values)])
    if not len(ordered):
        return Spread(figure.name, figure.unit, 0, float("nan"), (), None)
    at = np.round(np.multiply(QUANTILES, len(ordered) - 1)).astype(np.int64)
    quantiles = tuple(float(v) for v in ordered[at])
    histogram = _histogram(ordered, figure)
    return Spread(figure.name, figure.unit, len(ordered), float(ordered.mean()), quantiles, histogram)


def edges_of(ordered: Floats, figure: Figure) -> Floats:
    """Edges of at most `BINS` bins for ascending values, rounded to four digits or whole; one if there is one value."""
    low, high = float(ordered[0]), float(ordered[-1])
    positive = ordered[np.searchsorted(ordered, 0, "right") :]
    if figure.log and len(positive) and high > 4 * positive[0]:
        floor = max(float(positive[0]), high / 10**DECADES)
        edges = np.geomspace(floor, high, BINS + 1)
        edges[0] = low
    else:
        edges = np.linspace(low, high, BINS + 1)
    edges[-1] = high
    return np.unique(np.ceil(edges) if figure.whole else rounded(edges))


def rounded(values: Floats, digits: int = 4) -> Floats:
    """To so many significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        power = np.where((values == 0) | ~np.isfinite(values), 0, np.floor(np.log10(np.abs(values))))
    scale = 10.0 ** (digits - 1 - power)
    result: Floats = np.round(values * scale) / scale
    return result


def _histogram(ordered: Floats, figure: Figure) -> Histogram:
    edges = edges_of(ordered, figure)
    if len(edges) == 1:
        return Histogram(np.repeat(edges, 2), np.array([len(ordered)]))
    inner = np.searchsorted(ordered, edges[1:-1], "left")
    return Histogram(edges, np.diff(np.concatenate(([0], inner, [len(ordered)]))))


def source_of(table: pa.Table) -> pa.ChunkedArray:
    """[rows] the first folder of each sample's file, or its host; "" for a file in no folder."""
    return of_each(table["file"], lambda files: pc.extract_regex(files, SOURCE).field("source").fill_null(""))


def of_each(column: pa.ChunkedArray, function: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    """`function` of a column, computed once for each value of its dictionary if it has one."""
    if not pa.types.is_dictionary(column.type):
        return pa.chunked_array([function(chunk) for chunk in column.chunks])
    return pa.chunked_array([function(chunk.dictionary).take(chunk.indices) for chunk in column.chunks])


def _number(name: str, table: pa.Table) -> Floats:
    """A column as it is; none of it is NaN."""
    values: Floats = table[name].cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return values


def _of_frames(name: str, table: pa.Table) -> Floats:
    """A column of samples that have frames; zero is unknown."""
    values = _number(name, table)
    return np.where((_number("frames", table) > 0) & (values > 0), values, np.nan)


def video_seconds(table: pa.Table) -> Floats:
    """[rows] seconds of each video; NaN for what is not one."""
    timelines, frames = Timelines(table), _number("frames", table)
    lasts = timelines.ends(frames.astype(np.int64)) - timelines.begin
    return np.where(np.isnan(_rate(table)), np.nan, lasts)


def _rate(table: pa.Table) -> Floats:
    """Frames a second of each video."""
    fps = _number("fps", table)
    return np.where((_number("frames", table) > 1) & (fps > 0), fps, np.nan)


def _short_side(table: pa.Table) -> Floats:
    return np.minimum(_of_frames("height", table), _of_frames("width", table))


def _aspect(table: pa.Table) -> Floats:
    return _of_frames("width", table) / _of_frames("height", table)


def _characters(name: str, table: pa.Table) -> Floats:
    """Of a text; a sample without it has none."""
    lengths = pc.utf8_length(table[name]).cast(pa.float64()).fill_null(0).to_numpy()
    return np.where(lengths > 0, lengths, np.nan)


def _score(name: str, unit: str, log: bool = False) -> Figure:
    return Figure(name, unit, partial(_number, name), log)


FIGURES: tuple[Figure, ...] = (
    Figure("frames", "frames", partial(_of_frames, "frames"), log=True, whole=True),
    Figure("seconds", "s", video_seconds, log=True),
    Figure("fps", "frames a second", _rate),
    Figure("side", "pixels of the shorter side", _short_side, log=True, whole=True),
    Figure("aspect", "width to height", _aspect),
    Figure("bytes", "bytes", partial(_of_frames, "media_size"), log=True, whole=True),
    Figure("caption", "characters", partial(_characters, "caption"), log=True, whole=True),
    Figure("caption_long", "characters", partial(_characters, "caption_long"), log=True, whole=True),
    _score("motion", "change from frame to frame, 0 to 255", log=True),
    _score("sharpness", "of the sharpest frames", log=True),
    _score("brightness", "mean, 0 to 255"),
    _score("black", "share of frames that are almost black"),
    _score("text", "share of the picture that looks like text"),
)
