"""Rectangles with a diagonal band, in tables of integers: the algebra of masks, without a loop over rectangles.

A row (q0, q1, k0, k1, low, high) says: query q of [q0, q1) sees key k of [k0, k1) if low <= q - k <= high.

      full: no bounds        causal: q - k >= 0        window of 3: 0 <= q - k <= 2
      # # # #                # . . .                   # . . .
      # # # #                # # . .                   # # . .
      # # # #                # # # .                   # # # .
      # # # #                # # # #                   . # # #

The form is closed: cutting, shifting and intersecting rows gives rows again, and one row without another is at most
six rows. Kernels know less: `kernel_pieces` cuts a row into full rectangles and triangles of squares.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

Q0, Q1, K0, K1, LOW, HIGH = range(6)
FREE = 1 << 60  # a bound that does not bind
FULL, CAUSAL, ANTICAUSAL, DIAGONAL = range(4)  # kinds of kernel pieces: all; of squares key <= query, >=, ==
GRID = 4  # diagonals of one length from each of some ranges of queries to each of some ranges of keys


def table(rows: Iterable[tuple[int, ...]] = ()) -> Ints:
    """Rows of 4 (full) or 6 numbers, normal form."""
    full = [row if len(row) == 6 else (*row, -FREE, FREE) for row in rows]
    return normal(np.array(full, np.int64).reshape(-1, 6))


def normal(t: Ints) -> Ints:
    """The same pairs: boxes shrunk until every row and column holds a pair, bounds freed that do not bind."""
    return _normal(t)[1]


def area(t: Ints) -> Ints:
    """Pairs of one query and one key of each row of a table in normal form."""
    q0, q1, k0, k1, low, high = t.T
    rows = q1 - q0
    late, early = k1 - 1 - q0 + low, q1 - 1 - k0 - high  # keys cut off the first query, and off the last one
    pairs: Ints = rows * (k1 - k0) - _trapezoid(late, rows) - _trapezoid(early, rows)
    return pairs


def shift(t: Ints, queries: int | Ints, keys: int | Ints) -> Ints:
    """Every row moved by so many queries and keys."""
    moved = t.copy()
    moved[:, (Q0, Q1)] += np.reshape(queries, (-1, 1))
    moved[:, (K0, K1)] += np.reshape(keys, (-1, 1))
    by = np.asarray(queries) - np.asarray(keys)
    moved[:, LOW] = np.where(t[:, LOW] == -FREE, -FREE, t[:, LOW] + by)
    moved[:, HIGH] = np.where(t[:, HIGH] == FREE, FREE, t[:, HIGH] + by)
    return moved


def cut_by(t: Ints, starts: Ints, stops: Ints, axis: int) -> tuple[Ints, Ints]:
    """Cut rows at disjoint ranges in rising order; what lies in no range is gone.

    Args:
        t: a table in normal form.
        starts, stops: of the ranges.
        axis: Q0 to cut queries, K0 to cut keys.

    Returns:
        the pieces in normal form, and for each the number of its range.
    """
    first = np.searchsorted(stops, t[:, axis], side="right")
    last = np.searchsorted(starts, t[:, axis + 1], side="left")
    row, which = spread(first, np.maximum(last, first))
    pieces = t[row]
    pieces[:, axis] = np.maximum(pieces[:, axis], starts[which])
    pieces[:, axis + 1] = np.minimum(pieces[:, axis + 1], stops[which])
    keep, pieces = _normal(pieces)
    return pieces, which[keep]


def intersect(a: Ints, b: Ints) -> Ints:
    """Pairs of queries and keys that are in both tables."""
    i, j = _overlapping(a, b)
    low, high = np.maximum(a[i, LOW], b[j, LOW]), np.minimum(a[i, HIGH], b[j, HIGH])
    starts = np.maximum(a[i][:, (Q0, K0)], b[j][:, (Q0, K0)])
    stops = np.minimum(a[i][:, (Q1, K1)], b[j][:, (Q1, K1)])
    return normal(np.stack((starts[:, 0], stops[:, 0], starts[:, 1], stops[:, 1], low, high), axis=1))


def subtract(a: Ints, b: Ints) -> Ints:
    """Pairs of `a` that are not in `b`: each row of `b` in turn leaves at most six rows of what it touches."""
    for hole in b:
        (touched,) = np.nonzero(
            (a[:, Q0] < hole[Q1]) & (hole[Q0] < a[:, Q1]) & (a[:, K0] < hole[K1]) & (hole[K0] < a[:, K1])
        )
        if len(touched):
            a = np.concatenate((np.delete(a, touched, axis=0), _without(a[touched], hole)))
    return a


def kernel_pieces(t: Ints) -> Ints:
    """Rows as (q0, q1, k0, k1, kind, row of `t`), in the order of `t`: full rectangles, and parts of squares.

    No piece has a row or a column without a pair.
    """
    source = np.arange(len(t))
    line = t[:, LOW] == t[:, HIGH]
    q0, q1, k0, k1 = t[line, :4].T
    found = [_pieces(q0, q1, k0, k1, DIAGONAL, source[line])]
    both = (t[:, LOW] != -FREE) & (t[:, HIGH] != FREE) & ~line
    one = ~both & ~line
    strips, of = _strips(t[both])
    t, source = np.concatenate((t[one], strips)), np.concatenate((source[one], source[both][of]))
    q0, q1, k0, k1, low, high = t.T
    causal, anti = low != -FREE, high != FREE
    whole = ~causal & ~anti
    found.append(_pieces(q0, q1, k0, k1, FULL, source)[whole])
    #   c   a   d          a, b: the keys that the first and last query are aligned with; c, d: first and last key
    # a # # . .            above the triangle's top the keys before a, below its foot all of them
    #   # # # .
    # d # # # #
    a, b = q0 - low, q1 - low
    found += [
        _pieces(q0, k1 + low, k0, a, FULL, source)[causal & (k0 < a)],
        _pieces(q0, k1 + low, a, k1, CAUSAL, source)[causal],
        _pieces(k1 + low, q1, k0, k1, FULL, source)[causal & (k1 < b)],
    ]
    a, b = q0 - high, q1 - high
    found += [
        _pieces(q0, k0 + high, k0, k1, FULL, source)[anti & (a < k0)],
        _pieces(k0 + high, q1, k0, b, ANTICAUSAL, source)[anti],
        _pieces(k0 + high, q1, b, k1, FULL, source)[anti & (b < k1)],
    ]
    pieces = np.concatenate(found)
    ordered: Ints = pieces[np.argsort(pieces[:, 5], kind="stable")]
    return ordered


def merge_rows(t: Ints) -> Ints:
    """Full rows that stand side by side or one below the other become one; rows with bands are left as they are."""
    plain = (t[:, LOW] == -FREE) & (t[:, HIGH] == FREE)
    found, rest = t[plain], t[~plain]
    for axis, other in ((K0, Q0), (Q0, K0)):
        order = np.lexsort((found[:, axis], found[:, other + 1], found[:, other]))
        found = found[order]
        same = (found[1:, other : other + 2] == found[:-1, other : other + 2]).all(axis=1)
        first = np.concatenate(([True], ~same | (found[1:, axis] != found[:-1, axis + 1])))[: len(found)]
        last = np.concatenate((first[1:], [True]))[: len(found)]
        stops = found[last, axis + 1]
        found = found[first]
        found[:, axis + 1] = stops
    return np.concatenate((found, rest))


def merge_ranges(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """The union of ranges, as disjoint ranges in rising order that do not touch."""
    if len(starts) == 0:
        return starts, stops
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    fresh = np.concatenate(([True], starts[1:] > reach[:-1]))
    ends = np.concatenate((np.nonzero(fresh)[0][1:] - 1, [len(starts) - 1]))
    return starts[fresh], reach[ends]


def spread(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """All (i, j) with first[i] <= j < last[i]."""
    counts = last - first
    row = np.repeat(np.arange(len(first)), counts)
    return row, np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[row]


def _trapezoid(longest: Ints, rows: Ints) -> Ints:
    """longest + (longest - 1) + ... over so many rows, nothing below zero."""
    longest = np.where(longest > FREE // 2, 0, np.maximum(longest, 0))
    rest = np.maximum(longest - rows, 0)
    total: Ints = (longest * (longest + 1) - rest * (rest + 1)) // 2
    return total


def _normal(t: Ints) -> tuple[Ints, Ints]:
    """Which rows hold pairs, and these in normal form."""
    q0, q1, k0, k1, low, high = t.T
    q0, q1 = np.maximum(q0, low + k0), np.minimum(q1, high + k1)
    k0, k1 = np.maximum(k0, q0 - high), np.minimum(k1, q1 - low)
    low = np.where(q0 - k1 + 1 < low, low, -FREE)
    high = np.where(q1 - 1 - k0 > high, high, FREE)
    keep = np.flatnonzero((q0 < q1) & (k0 < k1) & (t[:, LOW] <= t[:, HIGH]))
    return keep, np.stack((q0, q1, k0, k1, low, high), axis=1)[keep]


def _overlapping(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Pairs of rows whose boxes share something; `b` is searched by its first queries."""
    order = np.argsort(b[:, Q0], kind="stable")
    reach = np.maximum.accumulate(b[order, Q1])
    i, j = spread(np.searchsorted(reach, a[:, Q0], "right"), np.searchsorted(b[order, Q0], a[:, Q1], "left"))
    j = order[j]
    share = (a[i, Q0] < b[j, Q1]) & (b[j, Q0] < a[i, Q1]) & (a[i, K0] < b[j, K1]) & (b[j, K0] < a[i, K1])
    return i[share], j[share]


def _without(t: Ints, hole: Ints) -> Ints:
    """Rows that all touch the box of `hole`, without it: beside the box, and inside it beside the band."""
    q0, q1, k0, k1, low, high = hole
    parts = []
    for axis, start, stop in ((Q0, q0, q1), (K0, k0, k1)):  # first the queries outside, then the keys outside
        before, after, inside = t.copy(), t.copy(), t.copy()
        before[:, axis + 1] = np.minimum(t[:, axis + 1], start)
        after[:, axis] = np.maximum(t[:, axis], stop)
        inside[:, axis] = np.maximum(t[:, axis], start)
        inside[:, axis + 1] = np.minimum(t[:, axis + 1], stop)
        parts += [before, after]
        t = inside
    above, below = t.copy(), t.copy()
    if low != -FREE:
        above[:, HIGH] = np.minimum(t[:, HIGH], low - 1)
        parts.append(above)
    if high != FREE:
        below[:, LOW] = np.maximum(t[:, LOW], high + 1)
        parts.append(below)
    return normal(np.concatenate(parts))


def _strips(t: Ints) -> tuple[Ints, Ints]:
    """Rows with two bounds as rows with one: strips as high as the band is wide, each cut where the bounds part."""
    width = t[:, HIGH] - t[:, LOW] + 1
    row, number = spread(np.zeros(len(t), np.int64), -(-(t[:, Q1] - t[:, Q0]) // np.maximum(width, 1)))
    left = t[row]
    left[:, Q0] += number * width[row]
    left[:, Q1] = np.minimum(left[:, Q1], left[:, Q0] + width[row])
    right = left.copy()
    border = left[:, Q0] - left[:, LOW] + 1
    left[:, K1] = np.minimum(left[:, K1], border)
    left[:, LOW] = -FREE  # up to here no query is bound by it
    right[:, K0] = np.maximum(right[:, K0], border)
    right[:, HIGH] = FREE  # and from here on by this
    both, of = np.concatenate((left, right)), np.concatenate((row, row))
    keep, both = _normal(both)
    return both, of[keep]


def _pieces(q0: Ints, q1: Ints, k0: Ints, k1: Ints, kind: int, source: Ints) -> Ints:
    return np.stack((q0, q1, k0, k1, np.full(len(source), kind), source), axis=1)
