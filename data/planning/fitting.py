"""Settings with which samples fit: what a remedy proposes is tried on the dataset's own shapes first.

none of 24 clips of 2 frames fills a token of 4 frames    model.patch=[2,8,8]
64 of 64 samples are longer than a pack of 100 tokens     data.pack_tokens=448 or data.frames=1
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data.planning.clip_sampling import Sampling, Size

Shape = tuple[int, int, int]  # frames, height, width of a clip


def filling(sampling: Sampling, shapes: Sequence[Shape]) -> Iterator[str]:
    """Settings with which at least one of these clips fills a token; none of them does."""
    for stride in range(sampling.stride - 1, 0, -1):
        if _fills(replace(sampling, stride=stride), shapes):
            yield f"data.stride={stride}"
            break
    if sampling.size is None:
        cells = _cells(sampling)
        if _fills(replace(sampling, size=cells), shapes):
            yield f"data.size=[{cells[0]},{cells[1]}]"
    t, y, x = sampling.geometry.patch
    for smaller in range(t - 1, 0, -1):
        geometry = replace(sampling.geometry, patch=(smaller, y, x))
        if _fills(replace(sampling, geometry=geometry), shapes):
            yield f"model.patch=[{smaller},{y},{x}]"
            break


def fitting(sampling: Sampling, shapes: Sequence[Shape], pack_tokens: int, stored: bool) -> Iterator[str]:
    """Settings with which every one of these clips fits into a pack; some do not. Smaller pictures, if no length does.

    Args:
        sampling: of the run.
        shapes: of its clips that fill a token.
        pack_tokens: of a pack.
        stored: some clips are latents, whose size is fixed, and whose length where their codec sees the past.
    """
    lengths = [sampling.length(*shape) for shape in shapes]
    yield f"data.pack_tokens={max(lengths)}"
    frames = _frames(sampling, shapes, pack_tokens) if not stored or sampling.geometry.sliceable else 0
    if frames:
        yield f"data.frames={frames}"
        return
    size = None if stored else _size(sampling, shapes, pack_tokens)
    if size is not None:
        yield f"data.size=[{size[0]},{size[1]}]"


def fullest(lengths: Sequence[int], pack_tokens: int, least: float, ranks: int) -> int | None:
    """Tokens of a pack, fewer than these, that an epoch fills to `least`, as a multiple of its longest sample.

    Args:
        lengths: of an epoch's samples.
        pack_tokens: of the run.
        least: share of a pack.
        ranks: that share a pack: each has a token.
    """
    import numpy as np

    from data.planning.packing import best_fit_decreasing

    longest, total = max(lengths), sum(lengths)
    for times in range(max(1, min(64, (pack_tokens - 1) // longest)), 0, -1):
        tokens = longest * times
        if not ranks <= tokens < pack_tokens:
            continue
        _, starts = best_fit_decreasing(np.array(lengths, np.int64), tokens)
        if total >= least * (len(starts) - 1) * tokens:
            return tokens
    return None


def _frames(sampling: Sampling, shapes: Sequence[Shape], pack_tokens: int) -> int:
    """The most frames with which all clips fit; 0 if one token in time is too many. More frames are more tokens."""
    usable = sampling.geometry.usable_frames
    low, high = 0, max(sampling.frames_used(shape[0]) for shape in shapes)  # what fits, and what does not
    while high - low > 1:
        middle = (low + high) // 2
        if not usable(middle) or _fit(replace(sampling, frames=usable(middle)), shapes, pack_tokens):
            low = middle
        else:
            high = middle
    return usable(low)


def _size(sampling: Sampling, shapes: Sequence[Shape], pack_tokens: int) -> Size | None:
    """The largest picture of about the shape of the largest, with which all clips fit; None if none does."""
    grids = [grid for shape in shapes if (grid := sampling.grid(*shape)) is not None]
    cell_y, cell_x = _cells(sampling)
    time, y, x = max(grid[0] for grid in grids), max(grid[1] for grid in grids), max(grid[2] for grid in grids)
    scale = math.sqrt(min(1.0, pack_tokens / (time * y * x)))
    size = (int(y * scale) * cell_y, int(x * scale) * cell_x)
    return size if min(size) and _fit(replace(sampling, size=size), shapes, pack_tokens) else None


def _cells(sampling: Sampling) -> Size:
    """Pixels of a token."""
    geometry = sampling.geometry
    return geometry.stride[1] * geometry.patch[1], geometry.stride[2] * geometry.patch[2]


def _fills(sampling: Sampling, shapes: Sequence[Shape]) -> bool:
    if sampling.frames is not None and not sampling.geometry.usable_frames(sampling.frames):
        return False
    return any(sampling.length(*shape) for shape in shapes)


def _fit(sampling: Sampling, shapes: Sequence[Shape], pack_tokens: int) -> bool:
    lengths = [sampling.length(*shape) for shape in shapes]
    return any(lengths) and max(lengths) <= pack_tokens
