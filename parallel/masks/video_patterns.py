"""Masks of video: over frames, over tiles, and of text with video.

Tokens of a clip come frame by frame (t, y, x). For patterns in three dimensions a `Tiling` puts the tokens of one tile
next to each other, so that what a tile sees is a handful of rectangles:

    a 2 x 4 frame in tiles of 2 x 2        raster 0 1 | 2 3      tile order  0 1 4 5 | 2 3 6 7
                                                  4 5 | 6 7
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np

from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.mask import Mask, Sees, blocks, causal, packed, parts, strided, window
from parallel.masks.rectangles import FREE, Ints

Triple = tuple[int, int, int]


def frame_causal(frames: int, tokens: int) -> Mask:
    """Each frame of `tokens` tokens sees itself whole and the past."""
    return causal(frames) if tokens == 1 else blocks(causal(frames), [tokens] * frames)


def frame_window(frames: int, tokens: int, before: int, after: int = 0, sinks: int = 0) -> Mask:
    """Each frame sees the `before` frames before it, itself, `after` frames after it, and the first `sinks`."""
    return blocks(window(frames, before, after, sinks), [tokens] * frames)


def spatial(frames: int, tokens: int) -> Mask:
    """Each frame sees itself alone."""
    return packed([tokens] * frames)


def temporal(frames: int, tokens: int) -> Mask:
    """Each token sees its own place in all frames; on a ring `relayout` to a split by place sends less."""
    return strided(frames * tokens, tokens)


def text_video(
    lengths: Sequence[int], is_video: Sequence[bool], video: Literal["all", "past", "itself"] = "all"
) -> Mask:
    """Text and videos in one sequence: text sees the past, and a part of video what came before it, and itself.

    Args:
        lengths: tokens of each part.
        is_video: of each part.
        video: what a token of video sees of the video: of its own part, and of the parts before it if "all". With
            "itself" there is no attention among visual tokens but to themselves (EE-MLLM, arXiv:2408.11795).

    Raises:
        InputError: a part has no tokens, or the two lists differ in length.
    """
    if len(lengths) != len(is_video):
        raise InputError(
            "every part is text or video", f"{len(lengths)} and {len(is_video)}", "give both for each part"
        )

    def seen(i: int, j: int) -> Sees:
        if i == j:
            return video if is_video[i] else "past"
        return "none" if j > i or (is_video[i] and is_video[j] and video == "itself") else "all"

    return parts(lengths, [[seen(i, j) for j in range(len(lengths))] for i in range(len(lengths))])


@dataclass(frozen=True)
class Tiling:
    """A clip in tiles, which come in raster order; tiles at the far edges may be smaller.

    Attributes:
        grid: tokens of the clip (t, y, x).
        tile: tokens of a tile (t, y, x).
    """

    grid: Triple
    tile: Triple

    def __post_init__(self) -> None:
        if min(*self.grid, *self.tile) < 1:
            raise InputError("clips and tiles hold tokens", f"{self.grid} in {self.tile}", "1 or more on each axis")

    @property
    def tiles(self) -> Triple:
        """Tiles on each axis."""
        t, y, x = (-(-g // s) for g, s in zip(self.grid, self.tile, strict=True))
        return t, y, x

    def order(self) -> Ints:
        """[tokens]: the raster position of each token in tile order; `x[order]` reorders rows of tokens."""
        at = np.indices(self.grid).reshape(3, -1)
        tile, inside = at // np.reshape(self.tile, (3, 1)), at % np.reshape(self.tile, (3, 1))
        return np.lexsort((*inside[::-1], *tile[::-1]))

    def sizes(self) -> list[int]:
        """Tokens of each tile."""
        edges = [
            np.minimum(size, total - size * np.arange(count))
            for size, total, count in zip(self.tile, self.grid, self.tiles, strict=True)
        ]
        sizes: list[int] = np.einsum("t,y,x->tyx", *edges).reshape(-1).tolist()
        return sizes

    def mask(self, queries: Ints, keys: Ints) -> Mask:
        """The mask, over tokens in tile order, of these pairs of tiles; a pair may be given several times."""
        tiles = prod(self.tiles)
        pairs = np.unique(queries * tiles + keys)
        q, k, free = pairs // tiles, pairs % tiles, np.full_like(pairs, FREE)
        rows = rectangles.merge_rows(np.stack((q, q + 1, k, k + 1, -free, free), axis=1))
        return blocks(Mask(rows, tiles, tiles), self.sizes())


def neighbourhood(tiling: Tiling, radius: Triple) -> Mask:
    """Each tile sees the tiles up to `radius` (t, y, x) tiles away (sliding tile attention, arXiv:2502.04507)."""
    ranges = (np.arange(-min(r, n - 1), min(r, n - 1) + 1) for r, n in zip(radius, tiling.tiles, strict=True))
    return _offsets(tiling, np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3))


def criss_cross(tiling: Tiling) -> Mask:
    """Each tile sees the tiles on its three axes (Huang et al., arXiv:1811.11721, in time too)."""
    lines = [
        np.arange(1 - count, count)[:, None] * np.eye(3, dtype=np.int64)[a] for a, count in enumerate(tiling.tiles)
    ]
    return _offsets(tiling, np.concatenate(lines))


def dilated(tiling: Tiling, stride: Triple) -> Mask:
    """Each tile sees the tiles that are multiples of `stride` (t, y, x) away, on all axes together."""
    if min(stride) < 1:
        raise InputError("a stride is at least 1", str(stride), "1 for every tile")
    steps = [s * np.arange(-((n - 1) // s), (n - 1) // s + 1) for s, n in zip(stride, tiling.tiles, strict=True)]
    return _offsets(tiling, np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3))


def shifted_windows(tiling: Tiling, window: Triple, shift: Triple = (0, 0, 0)) -> Mask:
    """Windows of `window` tiles that do not overlap, moved by `shift` tiles (Liu et al., Swin, arXiv:2103.14030).

    No window wraps round: those at the edges are smaller, as the masks of Swin make them.
    """
    if min(window) < 1:
        raise InputError("a window holds tiles", str(window), "1 or more on each axis")
    at = np.indices(tiling.tiles).reshape(3, -1)
    window_of = (at + np.reshape(shift, (3, 1))) // np.reshape(window, (3, 1))
    _, label = np.unique(window_of, axis=1, return_inverse=True)
    order = np.argsort(label.reshape(-1), kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(label.reshape(-1)[order])) + 1)
    pairs = [np.meshgrid(group, group, indexing="ij") for group in groups]
    return tiling.mask(*(np.concatenate([p[axis].reshape(-1) for p in pairs]) for axis in (0, 1)))


def _offsets(tiling: Tiling, offsets: Ints) -> Mask:
    """Each tile sees the tiles at these offsets [n, 3] that exist."""
    at = np.indices(tiling.tiles).reshape(3, -1).T
    seen = at[:, None] + offsets
    inside = ((seen >= 0) & (seen < tiling.tiles)).all(axis=2)
    tile, which = np.nonzero(inside)
    keys = np.ravel_multi_index(tuple(seen[tile, which].T), tiling.tiles)
    return tiling.mask(tile, keys)
