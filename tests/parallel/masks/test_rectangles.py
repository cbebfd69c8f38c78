"""The algebra of masks against dense booleans: nothing lost, nothing twice."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.masks import rectangles
from parallel.masks.rectangles import CAUSAL, DIAGONAL, FREE, FULL, Ints

SIZE = 24
MANY = settings(max_examples=300)


@st.composite
def rows(draw: st.DrawFn) -> tuple[int, ...]:
    q0, q1 = sorted((draw(st.integers(0, SIZE)), draw(st.integers(0, SIZE))))
    k0, k1 = sorted((draw(st.integers(0, SIZE)), draw(st.integers(0, SIZE))))
    low = draw(st.one_of(st.just(-FREE), st.integers(-SIZE, SIZE)))
    high = draw(st.one_of(st.just(FREE), st.integers(-SIZE, SIZE)))
    return q0, q1, k0, k1, low, high


def counted(t: Ints | list[tuple[int, ...]]) -> npt.NDArray[np.int64]:
    """How often each pair stands in a table."""
    pairs = np.zeros((SIZE, SIZE), np.int64)
    q, k = np.indices(pairs.shape)
    for q0, q1, k0, k1, low, high in t:
        pairs += (q0 <= q) & (q < q1) & (k0 <= k) & (k < k1) & (low <= q - k) & (q - k <= high)
    return pairs


def disjoint(given_rows: list[tuple[int, ...]]) -> Ints:
    """A table of the pairs that are in any of the rows, none of them twice."""
    t = rectangles.table()
    for row in given_rows:
        t = np.concatenate((t, rectangles.subtract(rectangles.table([row]), t)))
    return t


@given(st.lists(rows(), max_size=4))
@MANY
def test_normal_form_holds_the_same_pairs_and_no_empty_row_or_column(given_rows: list[tuple[int, ...]]) -> None:
    t = rectangles.table(given_rows)
    assert np.array_equal(counted(t), counted(given_rows))
    for row, size in zip(t, rectangles.area(t), strict=True):
        pairs = counted(row[None])[row[0] : row[1], row[2] : row[3]]
        assert pairs.sum() == size
        assert pairs.any(axis=0).all()
        assert pairs.any(axis=1).all()
    assert np.array_equal(rectangles.normal(t), t)


@given(st.lists(rows(), max_size=4), st.lists(rows(), max_size=4))
@MANY
def test_intersection_and_difference(first: list[tuple[int, ...]], second: list[tuple[int, ...]]) -> None:
    a, b = disjoint(first), disjoint(second)
    in_a, in_b = counted(first) > 0, counted(second) > 0
    assert np.array_equal(counted(a), in_a)  # so a difference is exact, and never holds a pair twice
    assert np.array_equal(counted(rectangles.intersect(a, b)), in_a & in_b)
    assert np.array_equal(counted(rectangles.subtract(a, b)), in_a & ~in_b)


@given(st.lists(rows(), max_size=4), st.integers(-9, 9), st.integers(-9, 9))
@MANY
def test_shift(given_rows: list[tuple[int, ...]], queries: int, keys: int) -> None:
    t = rectangles.table(given_rows)
    there = rectangles.shift(t, queries, keys)
    assert np.array_equal(rectangles.area(there), rectangles.area(t))
    assert np.array_equal(rectangles.shift(there, -queries, -keys), t)
    assert np.array_equal(rectangles.normal(there), there)


@given(st.lists(rows(), max_size=4), st.lists(st.integers(0, SIZE), max_size=8, unique=True), st.booleans())
@MANY
def test_cuts(given_rows: list[tuple[int, ...]], borders: list[int], queries: bool) -> None:
    t, stops = rectangles.table(given_rows), sorted(borders)[1::2]
    starts = sorted(borders)[0::2][: len(stops)]
    pieces, which = rectangles.cut_by(t, np.array(starts, np.int64), np.array(stops, np.int64), 0 if queries else 2)
    inside = np.zeros(SIZE, bool)
    for start, stop in zip(starts, stops, strict=True):
        inside[start:stop] = True
    assert np.array_equal(counted(pieces), counted(t) * (inside[:, None] if queries else inside[None]))
    for piece, number in zip(pieces, which, strict=True):
        low, high = piece[0:2] if queries else piece[2:4]
        assert starts[number] <= low < high <= stops[number]


@given(st.lists(rows(), max_size=4))
@MANY
def test_kernel_pieces(given_rows: list[tuple[int, ...]]) -> None:
    t = disjoint(given_rows)
    pieces = rectangles.kernel_pieces(t)
    found = np.zeros((SIZE, SIZE), np.int64)
    for q0, q1, k0, k1, kind, row in pieces:
        assert q0 < q1
        assert k0 < k1
        assert kind == FULL or q1 - q0 == k1 - k0, "a triangle of what is no square"
        block = np.ones((q1 - q0, k1 - k0), np.int64)
        if kind == DIAGONAL:
            block = np.eye(len(block), dtype=np.int64)
        elif kind != FULL:
            block = np.tril(block) if kind == CAUSAL else np.triu(block)
        found[q0:q1, k0:k1] += block
        assert (counted(t[row : row + 1])[q0:q1, k0:k1] >= block).all()
    assert np.array_equal(found, counted(t))
    assert np.array_equal(np.sort(pieces[:, 5], kind="stable"), pieces[:, 5])


@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8))
@MANY
def test_union_of_ranges(ranges: list[tuple[int, int]]) -> None:
    ordered = [(min(r), max(r)) for r in ranges if r[0] != r[1]]
    starts, stops = (np.array(x, np.int64) for x in zip(*ordered, strict=True)) if ordered else (np.zeros(0, int),) * 2
    inside = np.zeros(SIZE, bool)
    for start, stop in ordered:
        inside[start:stop] = True
    found = np.zeros(SIZE, np.int64)
    starts, stops = rectangles.merge_ranges(starts, stops)
    assert (starts[1:] > stops[:-1]).all()
    for start, stop in zip(starts, stops, strict=True):
        found[start:stop] += 1
    assert np.array_equal(found, inside)
