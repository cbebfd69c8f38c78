"""Figures of a dataset: what is in it, and what to know before choosing `data.frames`, `data.size`, `data.pack_tokens`.

    index --figures--> a column of numbers each --sort--> quantiles, histogram
          --shapes---> (frames, height, width) and how many have it --> sizes, length bands, tokens

Clips come in few shapes, so what depends on the shape alone is computed once for each of them. Ten million rows take
about ten seconds on one core; nothing but the index is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.dataset.index import Index, Ints
from data.planning.clip_sampling import Sampling, Size
from data.statistics.index_columns import FIGURES, QUANTILES, Spread, of_each, source_of, spread, video_seconds

LENGTHS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)  # to try as data.frames
FILLED = ("file", "caption", "caption_long", "motion", "sharpness", "brightness", "black", "text", "phash")


@dataclass(frozen=True)
class Group:
    """Samples that have something in common, such as their source."""

    name: str
    samples: int
    frames: int
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False)
class Shapes:
    """The distinct shapes of clips and images.

    Attributes:
        frames, height, width: [shapes].
        counts: [shapes] samples that have it.
    """

    frames: Ints
    height: Ints
    width: Ints
    counts: Ints


@dataclass(frozen=True, eq=False)
class SizeRow:
    """A size in which samples are stored, and what it would do as `data.size`.

    Attributes:
        height, width: pixels.
        samples: of this size.
        lengths: [bands] of them, by number of frames.
        enlarged: share of all samples that would have to be enlarged to it.
        cut: share of all pixels, as scaled, that the crop to it would cut off.
    """

    height: int
    width: int
    samples: int
    lengths: Ints
    enlarged: float
    cut: float


@dataclass(frozen=True)
class LengthRow:
    """What `data.frames` = `frames` would do.

    Attributes:
        frames: at most so many of each sample; None: all.
        as_long: share of samples that have so many.
        used: share of all frames that one epoch sees.
        too_small: samples that do not fill one token.
        tokens: of the others, at `QUANTILES`; empty if there are none.
        total: tokens of an epoch.
    """

    frames: int | None
    as_long: float
    used: float
    too_small: int
    tokens: tuple[float, ...]
    total: int


@dataclass(frozen=True, eq=False)
class Stats:
    """What is in a dataset.

    Attributes:
        samples, frames, bytes, shards: numbers; bytes of the media parts.
        seconds: of all videos.
        spreads: of each of `FIGURES`.
        sources: by first folder of the file, the largest first.
        media: by suffix of the part with the frames.
        filled: share of samples in which a field is not empty.
        sizes: the most frequent first; `bands` are the numbers of frames at which their length bands begin.
        lengths: for some `data.frames`; empty without a `Sampling`.
    """

    samples: int
    frames: int
    seconds: float
    bytes: int
    shards: int
    spreads: tuple[Spread, ...]
    sources: tuple[Group, ...]
    media: tuple[Group, ...]
    filled: Mapping[str, float]
    bands: tuple[int, ...]
    sizes: tuple[SizeRow, ...]
    lengths: tuple[LengthRow, ...]


def stats(index: Index, sampling: Sampling | None = None, most_sizes: int = 12) -> Stats:
    """Everything.

    Args:
        index: of one dataset or of several.
        sampling: how clips become tokens; without it nothing is said of tokens.
        most_sizes: how many of the sizes are looked at.
    """
    table, found = index.table, shapes(index)
    seconds = np.nan_to_num(video_seconds(table))
    counted = pa.table(
        {
            "source": source_of(table),
            "media": _plain(table["media"]),
            "frames": table["frames"],
            "seconds": seconds,
            "bytes": table["media_size"],
        }
    )
    bands = _bands(found.frames)
    return Stats(
        samples=len(index),
        frames=int(index.frames.sum()),
        seconds=float(seconds.sum()),
        bytes=int(pc.sum(table["media_size"]).as_py() or 0),
        shards=len(pc.unique(table["shard"])),
        spreads=tuple(spread(figure, figure.column(table)) for figure in FIGURES),
        sources=_groups(counted, "source"),
        media=_groups(counted, "media"),
        filled={name: _filled(table[name]) for name in FILLED},
        bands=bands,
        sizes=tuple(_sizes(found, bands, most_sizes)),
        lengths=tuple(_lengths(found, sampling)) if sampling else (),
    )


def shapes(index: Index) -> Shapes:
    """The shapes of the samples that are not text alone, in no order that matters."""
    key = (index.frames << 32) | (index.height << 16) | index.width
    found = pc.value_counts(pa.array(key[(index.frames > 0) & (index.height > 0) & (index.width > 0)]))
    keys, counts = (found.field(name).to_numpy() for name in ("values", "counts"))
    return Shapes(keys >> 32, (keys >> 16) & 0xFFFF, keys & 0xFFFF, counts)


def tokens_of(table: pa.Table, sampling: Sampling) -> Ints:
    """[rows] tokens of each sample; 0 if it does not fill one."""
    frames, height, width = (table[name].to_numpy() for name in ("frames", "height", "width"))
    key = pa.array((frames << 32) | (height << 16) | width).dictionary_encode()
    each = [sampling.length(k >> 32, (k >> 16) & 0xFFFF, k & 0xFFFF) for k in key.dictionary.to_pylist()]
    lengths: Ints = np.array(each, np.int64)[key.indices.to_numpy()]
    return lengths


def _groups(counted: pa.Table, by: str) -> tuple[Group, ...]:
    sums = [(name, "sum") for name in ("frames", "seconds", "bytes")]
    rows = counted.group_by(by).aggregate([*sums, ([], "count_all")]).to_pylist()
    found = (
        Group(row[by], row["count_all"], row["frames_sum"], row["seconds_sum"], row["bytes_sum"] or 0) for row in rows
    )
    return tuple(sorted(found, key=lambda group: (-group.samples, group.name)))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _bands(frames: Ints) -> tuple[int, ...]:
    """Where at most seven bands of lengths begin, in powers of two."""
    if not len(frames):
        return ()
    first, last = (int(n).bit_length() - 1 for n in (frames.min(), frames.max()))
    step = (last - first) // 7 + 1
    return tuple(1 << power for power in range(first, last + 1, step))


def _sizes(found: Shapes, bands: Sequence[int], most: int) -> Iterable[SizeRow]:
    sizes, which = np.unique(found.height << 16 | found.width, return_inverse=True)
    band = np.searchsorted(bands, found.frames, "right") - 1
    table = np.zeros((len(sizes), max(1, len(bands))), np.int64)
    np.add.at(table, (which, band), found.counts)
    counts = table.sum(axis=1)
    height, width = sizes >> 16, sizes & 0xFFFF
    for row in np.argsort(-counts, kind="stable")[:most].tolist():
        size = int(height[row]), int(width[row])
        yield SizeRow(*size, int(counts[row]), table[row], *_fitted(height, width, counts, size))


def _fitted(height: Ints, width: Ints, counts: Ints, size: Size) -> tuple[float, float]:
    """(share of samples that are enlarged, share of pixels that are cut off) when scaled to cover `size`."""
    scale = np.maximum(size[0] / height, size[1] / width)
    kept = size[0] * size[1] / (scale**2 * height * width)
    return float(counts[scale > 1].sum() / counts.sum()), float(np.average(1 - kept, weights=counts))


def _lengths(found: Shapes, sampling: Sampling) -> Iterable[LengthRow]:
    if not len(found.counts):
        return
    longest, samples = int(found.frames.max()), int(found.counts.sum())
    each = {n for n in (*LENGTHS, sampling.frames or 1) if n <= longest and sampling.geometry.usable_frames(n)}
    for frames in (*sorted(each), None):
        chosen = replace(sampling, frames=frames)
        shape = zip(found.frames.tolist(), found.height.tolist(), found.width.tolist(), strict=True)
        tokens = np.array([chosen.length(*one) for one in shape], np.int64)
        reach = -(-found.frames // sampling.stride) >= (frames or 1)
        taken = np.array(
            [chosen.frames_used(n) if t else 0 for n, t in zip(found.frames.tolist(), tokens, strict=True)]
        )
        yield LengthRow(
            frames,
            float(found.counts[reach].sum() / samples),
            float((found.counts * taken).sum() / (found.counts * found.frames).sum()),
            int(found.counts[tokens == 0].sum()),
            _weighted(tokens[tokens > 0], found.counts[tokens > 0]),
            int((tokens * found.counts).sum()),
        )


def _weighted(values: Ints, counts: Ints) -> tuple[float, ...]:
    """Quantiles of values that come so many times each."""
    if not len(values):
        return ()
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(counts[order])
    at = np.round(np.multiply(QUANTILES, upto[-1] - 1))
    return tuple(float(v) for v in values[order][np.searchsorted(upto, at, "right")])


def _filled(column: pa.ChunkedArray) -> float:
    there = of_each(column, _not_empty)
    return float(pc.mean(there).as_py() or 0.0)


def _not_empty(values: pa.Array) -> pa.Array:
    if pa.types.is_floating(values.type):
        return pc.invert(pc.is_null(values, nan_is_null=True))
    return pc.fill_null(pc.greater(pc.binary_length(values), 0), False)


def as_dict(found: Stats) -> dict[str, Any]:
    """For JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.tolist()
        if hasattr(value, "__dataclass_fields__"):
            return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and np.isnan(value) else value

    return {**plain(found), "filled": dict(found.filled), "at": list(QUANTILES)}
