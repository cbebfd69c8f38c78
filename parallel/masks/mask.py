"""`Mask`: who sees whom, as rectangles with diagonal bands over sequence positions (`rectangles.py`).

    keys ->   a a a b b        packed([3, 2])       packed([3, 2], causal=True)       window(5, before=1)
    queries a # # # . .        # # # . .            # . . . .                         # . . . .
            a # # # . .        # # # . .            # # . . .                         # # . . .
            a # # # . .        # # # . .            # # # . .                         . # # . .
            b . . . # #        . . . # #            . . . # .                         . . # # .
            b . . . # #        . . . # #            . . . # #                         . . . # #

`&`, `|` and `-` combine masks; `blocks` makes one of units (frames, tiles, documents) from one of their numbers:
`blocks(causal(frames), sizes)` lets each frame see itself whole and the past. Patterns of video: `video_patterns.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np

from parallel.errors import InputError
from parallel.masks import rectangles
from parallel.masks.rectangles import FREE, Q0, Q1, Ints

LONGEST = 1 << 31  # its square is counted in 64 bits
Sees = Literal["all", "past", "itself", "none"]


@dataclass(frozen=True, eq=False)
class Mask:
    """Pairs of a query and a key, none of them twice.

    Attributes:
        table: of rectangles, in normal form.
        queries, keys: lengths of the two sequences.
    """

    table: Ints
    queries: int
    keys: int

    @property
    def area(self) -> int:
        """Pairs of one query and one key."""
        return int(rectangles.area(self.table).sum())

    def __and__(self, other: Mask) -> Mask:
        """Pairs of both."""
        return Mask(rectangles.intersect(self.table, self._like(other).table), self.queries, self.keys)

    def __sub__(self, other: Mask) -> Mask:
        """Pairs of this one alone."""
        return Mask(rectangles.subtract(self.table, self._like(other).table), self.queries, self.keys)

    def __or__(self, other: Mask) -> Mask:
        """Pairs of either."""
        more = rectangles.subtract(self._like(other).table, self.table)
        return Mask(np.concatenate((self.table, more)), self.queries, self.keys)

    def refuse_blind(self) -> None:
        """Attention of a query to no key is not defined.

        Raises:
            InputError: a query sees no key; names the first of them.
        """
        starts, stops = rectangles.merge_ranges(self.table[:, Q0], self.table[:, Q1])
        seen = 0
        for start, stop in [*zip(starts.tolist(), stops.tolist(), strict=True), (self.queries, self.queries)]:
            if start > seen:
                raise InputError(
                    "every query of a mask sees at least one key",
                    f"queries {seen} to {start - 1} of {self.queries} see none",
                    "let them see themselves: mask | diagonal(length)",
                )
            seen = max(seen, stop)

    def _like(self, other: Mask) -> Mask:
        if (self.queries, self.keys) != (other.queries, other.keys):
            raise InputError(
                "masks that are combined are of one size",
                f"{self.queries} x {self.keys} and {other.queries} x {other.keys}",
                "make both for the same sequence",
            )
        return other


def full(length: int) -> Mask:
    """Everyone sees everyone."""
    return packed([length])


def causal(length: int) -> Mask:
    """Everyone sees itself and the past."""
    return packed([length], causal=True)


def diagonal(length: int) -> Mask:
    """Everyone sees itself alone."""
    return band(length, 0, 0)


def band(length: int, before: int, after: int) -> Mask:
    """Position i sees i - before to i + after.

    Raises:
        InputError: the length is not positive, or the band is empty.
    """
    _refuse_empty([length])
    if before + after < 0:
        raise InputError("a band is not empty", f"{before} before and {after} after", "before + after of 0 or more")
    return Mask(rectangles.table([(0, length, 0, length, -after, before)]), length, length)


def window(length: int, before: int, after: int = 0, sinks: int = 0) -> Mask:
    """A band, and the first `sinks` positions, seen by all that come after them (Xiao et al., arXiv:2309.17453).

    Raises:
        InputError: the length is not positive, the band is empty, or there are fewer than 0 sinks.
    """
    near = band(length, before, after)
    if sinks < 0:
        raise InputError("sinks are counted from 0", str(sinks), "sinks=0 for none")
    return near | Mask(rectangles.table([(0, length, 0, min(sinks, length), 0, FREE)]), length, length)


def strided(length: int, stride: int) -> Mask:
    """Position i sees every position that is a multiple of `stride` away: tokens of one place in all frames.

    Raises:
        InputError: the length or the stride is not positive.
    """
    _refuse_empty([length])
    if stride < 1:
        raise InputError("a stride is at least 1", str(stride), "stride=1 for all")
    far = (length - 1) // stride * stride
    rows = [(0, length, 0, length, at, at) for at in range(-far, far + 1, stride)] if stride > 1 else None
    return full(length) if rows is None else Mask(rectangles.table(rows), length, length)


def packed(lengths: Sequence[int], causal: bool | Sequence[bool] = False) -> Mask:
    """Each document sees itself alone: whole (video), or each token its past (language).

    Args:
        lengths: tokens of each document.
        causal: of all of them, or of each.

    Raises:
        InputError: a document has no tokens.
    """
    sizes = _refuse_empty(lengths)
    stops = sizes.cumsum()
    if not isinstance(causal, bool) and len(causal) != len(sizes):
        raise InputError(
            "causal is of all documents, or of each", f"{len(causal)} for {len(sizes)}", "give one for each"
        )
    low = np.where(np.broadcast_to(np.asarray(causal), sizes.shape), 0, -FREE)
    columns = (stops - sizes, stops, stops - sizes, stops, low, np.full_like(sizes, FREE))
    return Mask(rectangles.normal(np.stack(columns, axis=1)), int(stops[-1]), int(stops[-1]))


def stack(masks: Sequence[Mask]) -> Mask:
    """Masks of documents that are packed one after the other and do not see each other.

    Raises:
        InputError: there are none.
    """
    _refuse_empty([len(masks)])
    queries, keys = ([0, *accumulate(getattr(m, name) for m in masks)] for name in ("queries", "keys"))
    moved = [rectangles.shift(m.table, q, k) for m, q, k in zip(masks, queries[:-1], keys[:-1], strict=True)]
    return Mask(np.concatenate(moved), queries[-1], keys[-1])


def cross(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> Mask:
    """The queries of document i see all the keys of document i of another sequence (video to its caption).

    Raises:
        InputError: a document has no queries or no keys.
    """
    rows, columns = _refuse_empty(query_lengths), _refuse_empty(key_lengths)
    if len(rows) != len(columns):
        raise InputError("each document has queries and keys", f"{len(rows)} and {len(columns)}", "give both for each")
    q, k, free = rows.cumsum(), columns.cumsum(), np.full_like(rows, FREE)
    return Mask(np.stack((q - rows, q, k - columns, k, -free, free), axis=1), int(q[-1]), int(k[-1]))


def blocks(coarse: Mask, sizes: Sequence[int]) -> Mask:
    """Unit i of sizes[i] tokens sees all of unit j where position i of `coarse` sees position j.

    Raises:
        InputError: a unit has no tokens, or there are more or fewer units than positions.
    """
    tokens = _refuse_empty(sizes)
    if not coarse.queries == coarse.keys == len(tokens):
        raise InputError(
            "a coarse mask has a position for each unit",
            f"{coarse.queries} x {coarse.keys} positions, {len(tokens)} units",
            "give a size for each position",
        )
    borders = np.concatenate(([0], tokens.cumsum()))
    units = np.arange(len(tokens))
    rows, _ = rectangles.cut_by(coarse.table, units, units + 1, Q0)  # of one unit each: a stretch of keys, no bands
    fine = rows.copy()
    fine[:, :4] = borders[rows[:, :4]]
    return Mask(rectangles.merge_rows(fine), int(borders[-1]), int(borders[-1]))


def parts(lengths: Sequence[int], sees: Sequence[Sequence[Sees]]) -> Mask:
    """A sequence of parts, and what each sees of each: sees[i][j] of part j for the queries of part i.

    "all" of its tokens, its "past" (of the same part: up to itself), "itself" (of the same part: that token), "none".

    Raises:
        InputError: a part has no tokens, or the table is not of that size.
    """
    stops = _refuse_empty(lengths).cumsum()
    starts = stops - np.asarray(lengths)
    if len(sees) != len(lengths) or any(len(row) != len(lengths) for row in sees):
        found = f"{len(lengths)} parts, rows of {[len(row) for row in sees][:8]}"
        raise InputError("a table of parts has a row and a column for each", found, "give len(lengths) rows of as many")
    bounds = {"all": (-FREE, FREE), "past": (0, FREE), "itself": (0, 0)}
    rows = [
        (starts[i], stops[i], starts[j], stops[j], *bounds[seen])
        for i, row in enumerate(sees)
        for j, seen in enumerate(row)
        if seen != "none"
    ]
    return Mask(rectangles.table(rows), int(stops[-1]), int(stops[-1]))


def _refuse_empty(lengths: Sequence[int]) -> Ints:
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) == 0 or sizes.min() < 1:
        raise InputError(
            "every document of a mask holds at least one token",
            f"lengths {list(lengths)[:8]}{'...' if len(lengths) > 8 else ''}",
            "leave empty documents out of the pack",
        )
    if sizes.sum() > LONGEST:
        raise InputError(f"a sequence has at most {LONGEST:,} tokens", f"{sizes.sum():,}", "cut it into several")
    return sizes
